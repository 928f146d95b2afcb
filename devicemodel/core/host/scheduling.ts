/** Threads of this process as the kernel's scheduler sees them. */
import { hostCall, native } from './libc.ts';

/** <sys/resource.h>: of one thread, if given its id. */
const PRIO_PROCESS = 0;
const SYS_TGKILL = 234;
const CLOCK_THREAD_CPUTIME_ID = 3;
/** CPUs a mask of this many bytes can name. */
const CPU_MASK_BYTES = 128;

const setpriority = hostCall<[which: number, who: number, nice: number]>('int setpriority(int, unsigned int, int)');
const setaffinity = hostCall<[tid: number, sizeBytes: number, mask: Uint8Array]>(
  'int sched_setaffinity(int, size_t, const void *)',
);

const getaffinity = hostCall<[tid: number, sizeBytes: number, mask: Uint8Array]>(
  'int sched_getaffinity(int, size_t, void *)',
);

const tgkill = hostCall<[number: number, pid: number, tid: number, signal: number]>(
  'int64_t syscall(int64_t, int64_t, int64_t, int64_t)',
);

/** Id of the calling thread. */
export function threadId(): number {
  return native('int gettid()')();
}

const timespec = new BigInt64Array(2);
const NS_PER_S = 1_000_000_000;

/** CPU time that the calling thread has had so far, that of a guest it ran included. */
export function threadCpuNs(): number {
  native('int clock_gettime(int, void *)')(CLOCK_THREAD_CPUTIME_ID, timespec);
  return Number(timespec[0]) * NS_PER_S + Number(timespec[1]);
}

/** Let another thread have this CPU, if one waits for it. */
export function yieldCpu(): void {
  native('int sched_yield()')();
}

/** Of the calling thread. @returns 0 or a negative errno: EACCES where this user may not. */
export function setNice(nice: number): number {
  return setpriority(PRIO_PROCESS, threadId(), nice);
}

/** A set of CPUs as sched_setaffinity(2) takes it. */
export function cpuMask(cpus: readonly number[]): Uint8Array {
  const mask = new Uint8Array(CPU_MASK_BYTES);
  for (const cpu of cpus) {
    if (cpu < CPU_MASK_BYTES * 8) mask[cpu >>> 3] = (mask[cpu >>> 3] as number) | (1 << (cpu & 7));
  }
  return mask;
}

/** Run the calling thread on these CPUs only. @returns 0 or a negative errno: EINVAL if none of them exists. */
export function pinThread(cpus: readonly number[]): number {
  return setaffinity(threadId(), CPU_MASK_BYTES, cpuMask(cpus));
}

/** Where the device thread, and what it starts, may run when it is not pinned. */
const freeCpus = new Uint8Array(CPU_MASK_BYTES).fill(0xff);
let pinnedCpu: number | undefined;

/** As {@link pinThread}, for the thread that starts all others, until {@link unpinDeviceThread}. */
export function pinDeviceThread(cpu: number): number {
  // Each time: whoever runs this may have moved it (taskset, a control group).
  if (pinnedCpu === undefined) getaffinity(threadId(), CPU_MASK_BYTES, freeCpus);
  pinnedCpu = cpu;
  return pinThread([cpu]);
}

/** Safe twice. */
export function unpinDeviceThread(): void {
  if (pinnedCpu === undefined) return;
  pinnedCpu = undefined;
  setaffinity(threadId(), CPU_MASK_BYTES, freeCpus);
}

/** A thread has the CPUs of the one that starts it: one that is started in here does not have the device thread's alone. */
export function startUnpinned<T>(start: () => T): T {
  const cpu = pinnedCpu;
  unpinDeviceThread();
  try {
    return start();
  } finally {
    if (cpu !== undefined) pinDeviceThread(cpu);
  }
}

/** A signal for one thread of this process. @returns 0 or a negative errno: ESRCH where there is no such thread. */
export function signalThread(tid: number, signal: number): number {
  return tgkill(SYS_TGKILL, process.pid, tid, signal);
}
