/** Threads of this process as the kernel's scheduler sees them. */
import { asyncCall, hostCall, native } from './libc.ts';

/** <sys/resource.h>: of one thread, if given its id. */
const PRIO_PROCESS = 0;
const SYS_TGKILL = 234;
const CLOCK_THREAD_CPUTIME_ID = 3;
/** Linux has at most 8192 CPUs, and tells of them only to whoever has room for all of this machine's. */
const CPU_MASK_BYTES = 1024;
/** <sched.h>: policies under which a thread leaves its CPU to another only if it wants to, or has none to leave. */
const REALTIME_POLICIES: readonly number[] = [1 /* FIFO */, 2 /* RR */, 6 /* DEADLINE */];
/** Beside the policy. */
const SCHED_RESET_ON_FORK = 0x4000_0000;

const setpriority = hostCall<[which: number, who: number, nice: number]>('int setpriority(int, unsigned int, int)');
const setaffinity = hostCall<[tid: number, sizeBytes: number, mask: Uint8Array]>(
  'int sched_setaffinity(int, size_t, const void *)',
);

const getaffinity = hostCall<[tid: number, sizeBytes: number, mask: Uint8Array]>(
  'int sched_getaffinity(int, size_t, void *)',
);

const getscheduler = hostCall<[tid: number]>('int sched_getscheduler(int)');

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
const freeCpus = new Uint8Array(CPU_MASK_BYTES);
let pinnedCpu: number | undefined;

/** As {@link pinThread}, for the thread that starts all others, until {@link unpinDeviceThread}. */
export function pinDeviceThread(cpu: number): number {
  // Each time: whoever runs this may have moved it (taskset, a control group). Unknown, it could not go back.
  const result = pinnedCpu === undefined ? getaffinity(threadId(), CPU_MASK_BYTES, freeCpus) : 0;
  return result < 0 ? result : pinTo(cpu);
}

/** Any call has Node start all threads that it makes calls on. */
const startPool = asyncCall<[]>('int sched_yield()');
let hasPool = false;

function pinTo(cpu: number): number {
  // By the first read of a disk, while this thread is pinned, they would have its one CPU for good.
  if (!hasPool) void startPool();
  hasPool = true;
  const result = pinThread([cpu]);
  if (result >= 0) pinnedCpu = cpu;
  return result;
}

/**
 * As {@link pinDeviceThread}, to a CPU that this thread may have anyhow, and shares: a real-time thread would wait there for
 * another of its priority, or keep it waiting.
 * @returns whether it is pinned.
 */
export function keepDeviceThreadOn(cpu: number): boolean {
  if (REALTIME_POLICIES.includes(getscheduler(threadId()) & ~SCHED_RESET_ON_FORK)) return false;
  if (getaffinity(threadId(), CPU_MASK_BYTES, freeCpus) < 0 || !isIn(freeCpus, cpu)) return false;
  return pinTo(cpu) >= 0;
}

function isIn(mask: Uint8Array, cpu: number): boolean {
  return (((mask[cpu >>> 3] ?? 0) >>> (cpu & 7)) & 1) !== 0;
}

/**
 * Safe twice. Whoever has moved it meanwhile has decided where it runs from now on.
 * @returns the CPU that it was on alone until now.
 */
export function unpinDeviceThread(): number | undefined {
  const cpu = pinnedCpu;
  if (cpu === undefined) return undefined;
  pinnedCpu = undefined;
  const now = new Uint8Array(CPU_MASK_BYTES);
  if (getaffinity(threadId(), CPU_MASK_BYTES, now) >= 0 && !isSame(now, cpuMask([cpu]))) return undefined;
  setaffinity(threadId(), CPU_MASK_BYTES, freeCpus);
  return cpu;
}

function isSame(a: Uint8Array, b: Uint8Array): boolean {
  return Buffer.compare(a, b) === 0;
}

/** A thread has the CPUs of the one that starts it: one that is started in here does not have the device thread's alone. */
export function startUnpinned<T>(start: () => T): T {
  const cpu = unpinDeviceThread();
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
