/**
 * The thread of one vCPU: sits in KVM_RUN while the vCPU is the guest's, sleeps while it is somebody else's. It answers
 * the register at port CF8 by itself, and hands every other exit on: to the hypervisor's thread, if the access map
 * (embedded/access-map.ts) says that it is for a function there, else to the device thread. These read, serve and answer
 * it in struct kvm_run. It must not use anything outside itself: its source text is what runs.
 */

/** Words of a vCPU, in a SharedArrayBuffer with {@link WORDS_PER_VCPU} for each. */
export const VcpuWord = {
  /** {@link Turn}: whose the vCPU is. Its thread sleeps on this word. */
  turn: 0,
  /**
   * What KVM_RUN gave: 0 or a negative errno. Positive: 1 more than the parts of the access that the hypervisor's thread has
   * answered; the next one is not its own. Valid once the turn is the device thread's. While it is the hypervisor's: how
   * many parts are answered.
   */
  result: 1,
  /** The device thread wants it back: EINTR is an answer. */
  recalled: 2,
  /** The id of its thread, valid while the turn is the guest's. */
  tid: 3,
} as const;
/** In place of a result: the thread ends and runs no vCPU any more (EOWNERDEAD). */
export const THREAD_ENDED = -130;
/** As well: the hypervisor's thread, which had the vCPU, is no more (ENOTRECOVERABLE). */
export const HYPERVISOR_ENDED = -131;
export const WORDS_PER_VCPU = 16;
/**
 * The device thread gives (`device` to `granted`) and may take that back; the vCPU's thread takes up what was given
 * (`granted` to `guest`) and returns it, or hands it to the hypervisor's thread (`guest` to `hypervisor`). That one gives it
 * back to the vCPU's thread (`hypervisor` to `granted`) or to the device thread, which may hand it on, too. `over`: the
 * thread is to end.
 */
export const Turn = { device: 0, granted: 1, guest: 2, over: 3, hypervisor: 4 } as const;

export interface VcpuThreadData {
  /** Of all vCPUs. */
  readonly words: Int32Array;
  readonly index: number;
  /** One word: bumped at each exit, slept on by the device thread. */
  readonly doorbell: Int32Array;
  /** Written to at each exit as well, where the device thread sleeps in its event loop; -1: nobody does. */
  readonly doorbellFd: number;
  /** Rung for the hypervisor's thread; -1: there is none. */
  readonly hypervisorFd: number;
  /** {@link isForFunction} looks at these; the first one is the register at port CF8. */
  readonly accessMap: Int32Array;
  /** struct kvm_run and what belongs to it. */
  readonly runAddress: bigint;
  readonly runBytes: number;
  readonly vcpuFd: number;
  readonly koffiPath: string;
  readonly name: string;
  /** CPUs to run on; empty: any. */
  readonly cpuMask: Uint8Array;
}

export function vcpuThread(isForFunction: (map: Int32Array, isPort: boolean, address: number) => boolean): void {
  // Not `require`: a bundler puts something of the bundle's in its place, which is not there in the thread.
  const { workerData } = process.getBuiltinModule('node:worker_threads') as { workerData: VcpuThreadData };
  const { words, index, doorbell, doorbellFd, hypervisorFd, accessMap, vcpuFd, koffiPath, name, cpuMask } = workerData;
  const koffi = process.getBuiltinModule('node:module').createRequire(koffiPath)(koffiPath);
  const library = koffi.load(null);
  type Native = (...args: unknown[]) => number;
  const ioctl = library.func('int ioctl(int, unsigned long, uintptr_t)') as Native;
  const futex = library.func('int64_t syscall(int64_t, void *, int, uint32_t, uintptr_t)') as Native;
  const write = library.func('int64_t write(int, const void *, size_t)') as Native;
  const gettid = library.func('int gettid()') as Native;
  const prctl = library.func('int prctl(int, const char *)') as Native;
  const setaffinity = library.func('int sched_setaffinity(int, size_t, const void *)') as Native;
  const [DEVICE, GRANTED, GUEST, OVER, HYPERVISOR] = [0, 1, 2, 3, 4] as [number, number, number, number, number];
  const TURN = 16 * index;
  const RESULT = TURN + 1;
  const RECALLED = TURN + 2;
  const TID = TURN + 3;
  const KVM_RUN = 0xae80;
  const [KVM_EXIT_IO, KVM_EXIT_MMIO] = [2, 6] as const;
  const CONFIG_ADDRESS = 0xcf8;
  const SYS_FUTEX = 202;
  const FUTEX_WAIT_PRIVATE = 128;
  const FUTEX_WAKE_PRIVATE = 129;
  const PR_SET_NAME = 15;
  const EINTR = 4;
  const EAGAIN = 11;
  const EOWNERDEAD = 130;
  const one = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);
  const turn = words.subarray(TURN, TURN + 1);
  const run = new DataView(koffi.view(workerData.runAddress, workerData.runBytes));

  const giveBack = (result: number) => {
    Atomics.store(words, RESULT, result);
    Atomics.store(words, TURN, DEVICE);
    Atomics.add(doorbell, 0, 1);
    futex(SYS_FUTEX, doorbell, FUTEX_WAKE_PRIVATE, 1, 0);
    if (doorbellFd >= 0) write(doorbellFd, one, 8);
  };
  /** @returns whether the exit was an access of the whole register at port CF8: it is answered. */
  const isConfigAddress = () => {
    const reason = run.getUint32(8, true);
    const isIt = reason === KVM_EXIT_IO && run.getUint16(34, true) === CONFIG_ADDRESS && run.getUint8(33) === 4;
    if (!isIt || run.getUint32(36, true) !== 1) return false;
    const dataAt = run.getUint32(40, true);
    if (run.getUint8(32) === 1) Atomics.store(accessMap, 0, run.getInt32(dataAt, true));
    else run.setInt32(dataAt, Atomics.load(accessMap, 0), true);
    return true;
  };
  /** @returns whether the exit was for a function of the hypervisor: its thread has the vCPU now. */
  const isHandedOn = () => {
    if (hypervisorFd < 0) return false;
    const reason = run.getUint32(8, true);
    const isPort = reason === KVM_EXIT_IO;
    if (!isPort && reason !== KVM_EXIT_MMIO) return false;
    const address = isPort
      ? run.getUint16(34, true)
      : run.getUint32(32, true) + run.getUint32(36, true) * 0x1_0000_0000;
    if (!isForFunction(accessMap, isPort, address)) return false;
    Atomics.store(words, RESULT, 0);
    Atomics.store(words, TURN, HYPERVISOR);
    write(hypervisorFd, one, 8);
    return true;
  };
  /** The vCPU is the guest's, until it is somebody else's. */
  const enter = () => {
    for (;;) {
      const result = ioctl(vcpuFd, KVM_RUN, 0) === -1 ? -koffi.errno() : 0;
      // A signal that was meant for another thread, or a vCPU that woke up only to sleep on.
      if ((result === -EINTR || result === -EAGAIN) && Atomics.load(words, RECALLED) === 0) continue;
      if (result === 0) {
        // One that was recalled is told so by the next KVM_RUN, which finishes the access.
        if (isConfigAddress()) continue;
        if (isHandedOn()) return;
      }
      giveBack(result);
      return;
    }
  };
  const serve = () => {
    prctl(PR_SET_NAME, name);
    if (cpuMask.length > 0) setaffinity(0, cpuMask.length, cpuMask);
    Atomics.store(words, TID, gettid());
    for (;;) {
      const was = Atomics.compareExchange(words, TURN, GRANTED, GUEST);
      if (was === OVER) return;
      if (was === GRANTED) enter();
      else futex(SYS_FUTEX, turn, FUTEX_WAIT_PRIVATE, was, 0);
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
