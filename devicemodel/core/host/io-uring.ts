/**
 * io_uring (<linux/io_uring.h>, io_uring_setup(2)): reads and writes that go on in the kernel while this thread does
 * something else. Entries are made in shared memory; one system call hands over all that were made.
 */
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { closeFd } from './files.ts';
import { hostCall, must, native } from './libc.ts';
import { type Mapping, map, mapPresent } from './mapping.ts';

const Syscall = { setup: 425, enter: 426, register: 427 } as const;
/** struct io_uring_params: u32 at these offsets. */
const Params = { size: 120, sqEntries: 0, cqEntries: 4, features: 20, sqOffsets: 40, cqOffsets: 80 } as const;
const FEATURE_SINGLE_MMAP = 1;
const FEATURE_EXT_ARG = 1 << 8;
/** struct io_sqring_offsets and io_cqring_offsets. */
const SqOffset = { head: 0, tail: 4, mask: 8, array: 24 } as const;
const CqOffset = { head: 0, tail: 4, mask: 8, cqes: 20, flags: 24 } as const;
/** What mmap's offset names. */
const MmapOffset = { rings: 0, entries: 0x1000_0000 } as const;
/** struct io_uring_sqe. */
const Sqe = { size: 64, opcode: 0, fd: 4, offset: 8, address: 16, length: 24, flags: 28, userData: 32 } as const;
/** struct io_uring_cqe. */
const Cqe = { size: 16, userData: 0, result: 8 } as const;
const ENTER_GETEVENTS = 1;
const REGISTER_EVENTFD = 4;
/** Of the completion ring's flags. */
const CQ_EVENTFD_DISABLED = 1;
const ENTER_EXT_ARG = 8;
/** struct io_uring_getevents_arg, whose last field is the address of a struct __kernel_timespec: here it is behind it. */
const WaitArg = { size: 24, timespecAddress: 16, nanoseconds: 32 } as const;
const WAIT_ARG_BYTES = 40;

/** IORING_OP_*. */
export const UringOp = { Readv: 1, Writev: 2, Fsync: 3, Fallocate: 17 } as const;
/** IOSQE_*, in the byte after the operation: `UringOp.Writev | (UringFlag.Async << 8)`. Async: a thread of the kernel's from the start. */
export const UringFlag = { Async: 1 << 4 } as const;

const setup = hostCall<[number: number, entries: number, params: Uint8Array]>(
  'int64_t syscall(int64_t, unsigned int, void *)',
);
const enter = hostCall<
  [number: number, fd: number, submit: number, wait: number, flags: number, mask: number, maskBytes: number]
>('int64_t syscall(int64_t, unsigned int, unsigned int, unsigned int, unsigned int, uintptr_t, size_t)');

const register = hostCall<[number: number, fd: number, operation: number, fds: Int32Array, count: number]>(
  'int64_t syscall(int64_t, unsigned int, unsigned int, void *, unsigned int)',
);
/** As `enter`, but ended by a signal, and by a time. */
const ENTER_FOR = 'int64_t syscall(int64_t, unsigned int, unsigned int, unsigned int, unsigned int, uintptr_t, size_t)';

export class IoUring {
  /** Readable while there are completions. */
  readonly fd: number;
  readonly #rings: Mapping;
  readonly #entryMemory: Mapping;
  readonly #ring: Int32Array;
  readonly #entries: DataView;
  /** Indexes into `#ring`. */
  readonly #sqTail: number;
  readonly #sqMask: number;
  readonly #cqHead: number;
  readonly #cqTail: number;
  readonly #cqMask: number;
  readonly #cqes: number;
  readonly #cqFlags: number;
  readonly #waitArg: Mapping | undefined;
  #prepared = 0;
  /** Of the completion `next` found: what `prepare` was given, and a count of bytes or a negative errno. */
  userData = 0;
  result = 0;

  /** @param entries a power of two: how many may be in flight. @throws HostError where the kernel does not let us. */
  constructor(entries: number) {
    const params = new DataView(new ArrayBuffer(Params.size));
    const fd = must(setup(Syscall.setup, entries, new Uint8Array(params.buffer)), 'io_uring_setup', 'io_uring');
    this.fd = fd;
    const u32 = (offset: number) => params.getUint32(offset, true);
    const sq = (field: number) => u32(Params.sqOffsets + field);
    const cq = (field: number) => u32(Params.cqOffsets + field);
    if ((u32(Params.features) & FEATURE_SINGLE_MMAP) === 0) {
      closeFd(fd);
      throw new HostError('io_uring: the kernel is too old', 0);
    }
    const ringBytes = Math.max(
      sq(SqOffset.array) + 4 * u32(Params.sqEntries),
      cq(CqOffset.cqes) + Cqe.size * u32(Params.cqEntries),
    );
    let rings: Mapping | undefined;
    let waitArg: Mapping | undefined;
    try {
      rings = mapPresent(ringBytes, 'io_uring', fd, MmapOffset.rings);
      if ((u32(Params.features) & FEATURE_EXT_ARG) !== 0) waitArg = map(WAIT_ARG_BYTES, 'io_uring');
      this.#entryMemory = mapPresent(Sqe.size * u32(Params.sqEntries), 'io_uring', fd, MmapOffset.entries);
    } catch (error) {
      waitArg?.dispose();
      rings?.dispose();
      closeFd(fd);
      throw error;
    }
    this.#rings = rings;
    this.#waitArg = waitArg;
    if (waitArg !== undefined) {
      const timespecAddress = waitArg.address + BigInt(WaitArg.size);
      new DataView(waitArg.bytes.buffer).setBigUint64(WaitArg.timespecAddress, timespecAddress, true);
    }
    this.#ring = new Int32Array(rings.bytes.buffer);
    this.#entries = new DataView(this.#entryMemory.bytes.buffer);
    this.#sqTail = sq(SqOffset.tail) / 4;
    this.#sqMask = this.#ring[sq(SqOffset.mask) / 4] as number;
    this.#cqHead = cq(CqOffset.head) / 4;
    this.#cqTail = cq(CqOffset.tail) / 4;
    this.#cqMask = this.#ring[cq(CqOffset.mask) / 4] as number;
    this.#cqes = cq(CqOffset.cqes) / 4;
    this.#cqFlags = cq(CqOffset.flags) / 4;
    // Entry n is always at place n.
    for (let i = 0; i <= this.#sqMask; i++) this.#ring[sq(SqOffset.array) / 4 + i] = i;
  }

  /**
   * Make an entry; the kernel sees it at `submit`. The caller has no more in flight than the ring has entries.
   * @param address and `length` are those of an array of struct iovec, which must stay until completion.
   * @param flags RWF_*.
   */
  prepare(
    op: number,
    fd: number,
    address: number,
    length: number,
    offset: number,
    flags: number,
    userData: number,
  ): void {
    const tail = this.#ring[this.#sqTail] as number;
    const at = (tail & this.#sqMask) * Sqe.size;
    const entries = this.#entries;
    entries.setUint32(at + Sqe.opcode, op, true);
    entries.setInt32(at + Sqe.fd, fd, true);
    setU64(entries, at + Sqe.offset, offset);
    setU64(entries, at + Sqe.address, address);
    entries.setUint32(at + Sqe.length, length, true);
    entries.setUint32(at + Sqe.flags, flags, true);
    setU64(entries, at + Sqe.userData, userData);
    Atomics.store(this.#ring, this.#sqTail, (tail + 1) | 0);
    this.#prepared++;
  }

  /** Hand over what was prepared, and wait for `completions` of them. @returns 0 or an errno: some of it is still to be handed over. */
  submit(completions = 0): number {
    if (this.#prepared === 0 && completions === 0) return 0;
    const flags = completions > 0 ? ENTER_GETEVENTS : 0;
    // The kernel stops, without waiting, behind an entry it refuses, and where its memory is short.
    do {
      const taken = enter(Syscall.enter, this.fd, this.#prepared, completions, flags, 0, 0);
      if (taken < 0) return -taken;
      if (taken === 0 && this.#prepared > 0) return Errno.EAGAIN;
      this.#prepared -= taken;
    } while (this.#prepared > 0);
    return 0;
  }

  /**
   * As {@link submit}, and wait until so many of all that was handed over are complete, or a signal comes, and not longer than
   * this, less than a second. Before Linux 5.11 there is no such wait. @returns as `submit`.
   */
  submitFor(completions: number, timeoutNs: number): number {
    const arg = this.#waitArg;
    if (arg === undefined) return this.submit();
    new DataView(arg.bytes.buffer).setBigUint64(WaitArg.nanoseconds, BigInt(timeoutNs), true);
    const flags = ENTER_GETEVENTS | ENTER_EXT_ARG;
    const enterFor = native(ENTER_FOR);
    const taken = enterFor(Syscall.enter, this.fd, this.#prepared, completions, flags, arg.address, WaitArg.size);
    // What it was not given all of, it did not wait for; a wait alone that was for nothing is an error.
    if (taken > 0) this.#prepared -= taken;
    return this.submit();
  }

  /**
   * Let completions ring an eventfd, while {@link rings} says so: nobody is woken by what is awaited, or complete at once.
   * @returns false where there is no such choice (before Linux 5.8): `fd` is to be watched.
   */
  ringBy(eventfd: number): boolean {
    if (this.#cqFlags === 0) return false;
    this.rings = false;
    return register(Syscall.register, this.fd, REGISTER_EVENTFD, Int32Array.of(eventfd), 1) === 0;
  }

  /** Whoever turns it on looks for completions afterwards. */
  set rings(isOn: boolean) {
    if (this.#cqFlags !== 0) Atomics.store(this.#ring, this.#cqFlags, isOn ? 0 : CQ_EVENTFD_DISABLED);
  }

  /** Whether `next` finds one. */
  get hasCompletions(): boolean {
    return this.#ring[this.#cqHead] !== Atomics.load(this.#ring, this.#cqTail);
  }

  /** Take the next completion into `userData` and `result`. @returns false when there is none. */
  next(): boolean {
    const head = this.#ring[this.#cqHead] as number;
    if (head === Atomics.load(this.#ring, this.#cqTail)) return false;
    const at = this.#cqes + ((head & this.#cqMask) * Cqe.size) / 4;
    this.userData = this.#ring[at + Cqe.userData / 4] as number;
    this.result = this.#ring[at + Cqe.result / 4] as number;
    Atomics.store(this.#ring, this.#cqHead, (head + 1) | 0);
    return true;
  }

  dispose(): void {
    this.#rings.dispose();
    this.#entryMemory.dispose();
    this.#waitArg?.dispose();
    closeFd(this.fd);
  }
}

function setU64(view: DataView, at: number, value: number): void {
  view.setUint32(at, value % 0x1_0000_0000, true);
  view.setUint32(at + 4, Math.floor(value / 0x1_0000_0000), true);
}
