/** Threads of this process as the kernel's scheduler sees them. */
import { hostCall, native } from './libc.ts';

/** <sys/resource.h>: of one thread, if given its id. */
const PRIO_PROCESS = 0;
/** CPUs a mask of this many bytes can name. */
const CPU_MASK_BYTES = 128;

const setpriority = hostCall<[which: number, who: number, nice: number]>('int setpriority(int, unsigned int, int)');
const setaffinity = hostCall<[tid: number, sizeBytes: number, mask: Uint8Array]>(
  'int sched_setaffinity(int, size_t, const void *)',
);

/** Id of the calling thread. */
export function threadId(): number {
  return native('int gettid()')();
}

/** Let another thread have this CPU, if one waits for it. */
export function yieldCpu(): void {
  native('int sched_yield()')();
}

/** Of the calling thread. @returns 0 or a negative errno: EACCES where this user may not. */
export function setNice(nice: number): number {
  return setpriority(PRIO_PROCESS, threadId(), nice);
}

/** Run the calling thread on these CPUs only. @returns 0 or a negative errno: EINVAL if none of them exists. */
export function pinThread(cpus: readonly number[]): number {
  const mask = new Uint8Array(CPU_MASK_BYTES);
  for (const cpu of cpus) {
    if (cpu < CPU_MASK_BYTES * 8) mask[cpu >>> 3] = (mask[cpu >>> 3] as number) | (1 << (cpu & 7));
  }
  return setaffinity(threadId(), CPU_MASK_BYTES, mask);
}
