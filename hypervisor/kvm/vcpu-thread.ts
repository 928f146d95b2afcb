/**
 * The thread of one vCPU: sits in KVM_RUN while the vCPU is the guest's, sleeps while it is the device thread's. It
 * decides nothing and looks at nothing: an exit is read, served and answered on the device thread, in struct kvm_run.
 * It must not use anything outside itself: its source text is what runs.
 */

/** Words of a vCPU, in a SharedArrayBuffer with {@link WORDS_PER_VCPU} for each. */
export const VcpuWord = {
  /** {@link Turn}: whose the vCPU is. Its thread sleeps on this word. */
  turn: 0,
  /** What KVM_RUN gave: 0 or a negative errno. Valid once the turn is the device thread's. */
  result: 1,
  /** The device thread wants it back: EINTR is an answer. */
  recalled: 2,
  /** The id of its thread, valid while the turn is the guest's. */
  tid: 3,
} as const;
/** In place of a result: the thread ends and runs no vCPU any more (EOWNERDEAD). */
export const THREAD_ENDED = -130;
export const WORDS_PER_VCPU = 16;
/**
 * The device thread gives (`device` to `granted`) and may take that back; the vCPU's thread takes up what was given
 * (`granted` to `guest`) and returns it. `over`: the thread is to end.
 */
export const Turn = { device: 0, granted: 1, guest: 2, over: 3 } as const;

export interface VcpuThreadData {
  /** Of all vCPUs. */
  readonly words: Int32Array;
  readonly index: number;
  /** One word: bumped at each exit, slept on by the device thread. */
  readonly doorbell: Int32Array;
  /** Written to at each exit as well, where the device thread sleeps in its event loop; -1: nobody does. */
  readonly doorbellFd: number;
  readonly vcpuFd: number;
  readonly koffiPath: string;
  readonly name: string;
  /** CPUs to run on; empty: any. */
  readonly cpuMask: Uint8Array;
}

export function vcpuThread(): void {
  // Not `require`: a bundler puts something of the bundle's in its place, which is not there in the thread.
  const { workerData } = process.getBuiltinModule('node:worker_threads') as { workerData: VcpuThreadData };
  const { words, index, doorbell, doorbellFd, vcpuFd, koffiPath, name, cpuMask } = workerData;
  const koffi = process.getBuiltinModule('node:module').createRequire(koffiPath)(koffiPath);
  const library = koffi.load(null);
  type Native = (...args: unknown[]) => number;
  const ioctl = library.func('int ioctl(int, unsigned long, uintptr_t)') as Native;
  const futex = library.func('int64_t syscall(int64_t, void *, int, uint32_t, uintptr_t)') as Native;
  const write = library.func('int64_t write(int, const void *, size_t)') as Native;
  const gettid = library.func('int gettid()') as Native;
  const prctl = library.func('int prctl(int, const char *)') as Native;
  const setaffinity = library.func('int sched_setaffinity(int, size_t, const void *)') as Native;
  const [DEVICE, GRANTED, GUEST, OVER] = [0, 1, 2, 3] as [number, number, number, number];
  const TURN = 16 * index;
  const RESULT = TURN + 1;
  const RECALLED = TURN + 2;
  const TID = TURN + 3;
  const KVM_RUN = 0xae80;
  const SYS_FUTEX = 202;
  const FUTEX_WAIT_PRIVATE = 128;
  const FUTEX_WAKE_PRIVATE = 129;
  const PR_SET_NAME = 15;
  const EINTR = 4;
  const EAGAIN = 11;
  const EOWNERDEAD = 130;
  const one = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);
  const turn = words.subarray(TURN, TURN + 1);

  const giveBack = (result: number) => {
    Atomics.store(words, RESULT, result);
    Atomics.store(words, TURN, DEVICE);
    Atomics.add(doorbell, 0, 1);
    futex(SYS_FUTEX, doorbell, FUTEX_WAKE_PRIVATE, 1, 0);
    if (doorbellFd >= 0) write(doorbellFd, one, 8);
  };
  const serve = () => {
    prctl(PR_SET_NAME, name);
    if (cpuMask.length > 0) setaffinity(0, cpuMask.length, cpuMask);
    Atomics.store(words, TID, gettid());
    for (;;) {
      const was = Atomics.compareExchange(words, TURN, GRANTED, GUEST);
      if (was === OVER) return;
      if (was === DEVICE) {
        futex(SYS_FUTEX, turn, FUTEX_WAIT_PRIVATE, DEVICE, 0);
        continue;
      }
      let result = 0;
      do {
        result = ioctl(vcpuFd, KVM_RUN, 0) === -1 ? -koffi.errno() : 0;
        // A signal that was meant for another thread, or a vCPU that woke up only to sleep on.
      } while ((result === -EINTR || result === -EAGAIN) && Atomics.load(words, RECALLED) === 0);
      giveBack(result);
    }
  };
  try {
    serve();
  } catch (error) {
    // The device thread may be waiting for the vCPU, out of reach of the event that this makes.
    giveBack(-EOWNERDEAD);
    throw error;
  }
}
