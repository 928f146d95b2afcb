/**
 * The image behind a virtio disk: a file, a block device, or a range of either. System calls are synchronous and work on
 * guest memory in place; nothing here allocates per request.
 */
import { constants, fstatSync, readSync, type Stats, writeSync } from 'node:fs';
import { ConfigError, HostError } from '../../core/errors.ts';
import { describeErrno, Errno, lastErrno, libc, native, OpenFlag } from '../../core/host/libc.ts';
import { type Mapping, map } from '../../core/host/mapping.ts';
import type { Log } from '../../core/log.ts';
import { alignDown, alignUp, MiB } from '../../core/units.ts';
import { type BlockOptions, SECTOR_BYTES } from '../pci/virtio/block/options.ts';
import type { Chain } from '../pci/virtio/ring/chain.ts';

/** <linux/fs.h>, x86-64. */
const Ioctl = { BlkGetSize64: 0x80081272, BlkPhysicalBlockSize: 0x127b, BlkDiscard: 0x1277 } as const;
/** <linux/falloc.h>: the hole reads as zeros, the file keeps its length. */
const PUNCH_HOLE_KEEP_SIZE = 0x02 | 0x01;
/** <bits/fcntl-linux.h>: locks that belong to the open file, not to the process. */
const F_OFD_SETLK = 37;
const LockType = { Read: 0, Write: 1 } as const;
/** <linux/fs.h>: fail rather than wait for the medium. */
const RWF_NOWAIT = 0x08;
/** preadv takes this many pieces at once (IOV_MAX). */
const MAX_IOVECS = 1024;
/** One call moves this much at most (MAX_RW_COUNT, rounded down). */
const MAX_TRANSFER_BYTES = 0x4000_0000;
/** Unaligned requests on O_DIRECT files go through a buffer of this size. */
const BOUNCE_BYTES = 1 * MiB;

/** An open image as plain data: what a data thread needs to work on it as well. */
export interface BlockImage {
  readonly path: string;
  readonly fd: number;
  /** Opened read-only, by wish or because the host allows no more. */
  readonly isReadOnly: boolean;
  readonly sizeBytes: number;
  readonly logicalSectorBytes: number;
  readonly physicalSectorBytes: number;
  /** Undefined: discard is not offered. Counts of 512-byte sectors. */
  readonly discardLimits: DiscardLimits | undefined;
  /** First byte of the range in the file. */
  readonly base: number;
  readonly isBlockDevice: boolean;
  readonly isDirect: boolean;
  readonly hasRange: boolean;
}

export interface DiscardLimits {
  readonly maxSectors: number;
  readonly maxSegments: number;
  readonly alignmentSectors: number;
}

/**
 * Open and lock an image.
 * @throws HostError; ConfigError when it cannot be a disk.
 */
export function openBlockImage(options: BlockOptions, log: Log): BlockImage {
  const { path } = options;
  const direct = options.nocache ? constants.O_DIRECT : 0;
  let isReadOnly = options.ro;
  let fd: number;
  try {
    fd = libc.open(path, (isReadOnly ? OpenFlag.ReadOnly : OpenFlag.ReadWrite) | OpenFlag.CloseOnExec | direct);
  } catch (error) {
    if (isReadOnly) throw error;
    // As the C device model does, but not silently.
    fd = libc.open(path, OpenFlag.ReadOnly | OpenFlag.CloseOnExec | direct);
    isReadOnly = true;
    log.warn(`${path} cannot be written: the disk is read-only`);
  }
  try {
    const stat = fstatSync(fd);
    const isBlockDevice = stat.isBlockDevice();
    const whole = isBlockDevice ? blockDeviceSize(fd, path) : fileSize(stat, path);
    const logicalSectorBytes = options.sectorSize?.logical ?? SECTOR_BYTES;
    const image = {
      path,
      fd,
      isReadOnly,
      sizeBytes: options.range === undefined ? whole : options.range.sectors * logicalSectorBytes,
      logicalSectorBytes,
      physicalSectorBytes: options.sectorSize?.physical ?? (isBlockDevice ? physicalBlockSize(fd) : stat.blksize),
      base: (options.range?.startLba ?? 0) * logicalSectorBytes,
      isBlockDevice,
      isDirect: options.nocache,
      hasRange: options.range !== undefined,
    };
    lockImage(image, log);
    return { ...image, discardLimits: discardLimits(options, image, log) };
  } catch (error) {
    libc.close(fd);
    throw error;
  }
}

function discardLimits(
  options: BlockOptions,
  image: Omit<BlockImage, 'discardLimits'>,
  log: Log,
): DiscardLimits | undefined {
  if (options.discard === undefined) return undefined;
  if (image.isBlockDevice && !image.isReadOnly) {
    // A discard of nothing tells whether the device knows the order.
    const nothing = new BigUint64Array(2);
    if (native('int ioctl(int, unsigned long, void *)')(image.fd, Ioctl.BlkDiscard, nothing) !== 0) {
      log.warn(`${options.path}: the device has no discard, it is not offered`);
      return undefined;
    }
  }
  return {
    maxSectors: options.discard.maxSectors ?? Math.min(Math.floor(image.sizeBytes / SECTOR_BYTES), 0xffffffff),
    maxSegments: options.discard.maxSegments ?? 1,
    alignmentSectors: options.discard.alignmentSectors ?? 0,
  };
}

/** Two User VMs that write one image destroy it: the second is refused. Readers may share. */
function lockImage(image: Omit<BlockImage, 'discardLimits'>, log: Log): void {
  // struct flock: s16 type, s16 whence, s64 start, s64 len (0: to the end), s32 pid.
  const flock = new DataView(new ArrayBuffer(32));
  flock.setInt16(0, image.isReadOnly ? LockType.Read : LockType.Write, true);
  flock.setBigInt64(8, BigInt(image.base), true);
  flock.setBigInt64(16, image.hasRange ? BigInt(image.sizeBytes) : 0n, true);
  const result = native('int fcntl(int, int, void *)')(image.fd, F_OFD_SETLK, new Uint8Array(flock.buffer));
  if (result === 0) return;
  const errno = lastErrno();
  if (errno !== Errno.EAGAIN && errno !== Errno.EACCES) {
    log.warn(`${image.path}: cannot be locked against other User VMs: ${describeErrno(errno)}`);
    return;
  }
  throw new HostError(`${image.path}: in use by another disk or User VM`, errno, {
    hint: 'stop the other VM, or give both the image with ro, or parts that do not overlap with range=',
  });
}

/** Work on an image. Each thread has its own: the buffers in here are not shared. */
export class BlockBackend {
  readonly image: BlockImage;
  readonly #base: number;
  readonly #iov = new DataView(new ArrayBuffer(MAX_IOVECS * 16));
  readonly #iovBytes = new Uint8Array(this.#iov.buffer);
  readonly #discardArg = new BigUint64Array(2);
  #bounce: Mapping | undefined;

  constructor(image: BlockImage) {
    this.image = image;
    this.#base = image.base;
  }

  /**
   * Read into the writable part of a chain, or write from its readable part.
   * @param chainAt first byte in that part.
   * @param offset byte in the disk; the caller has checked [offset, offset + count) against `sizeBytes`.
   * @returns 0, or an errno: the request failed as a whole, how much was done is unknown.
   */
  transfer(chain: Chain, chainAt: number, count: number, offset: number, isWrite: boolean): number {
    if (!chain.ram.hasHostAddresses) return this.#transferByView(chain, chainAt, count, offset, isWrite);
    if (this.image.isDirect && !this.#isAligned(chain, chainAt, count, offset, isWrite)) {
      return this.#transferBounced(chain, chainAt, count, offset, isWrite);
    }
    let done = 0;
    while (done < count) {
      const part = Math.min(count - done, MAX_TRANSFER_BYTES);
      const pieces = chain.toIovecs(chainAt + done, part, !isWrite, this.#iov, 0, MAX_IOVECS);
      if (pieces === 0) return Errno.EINVAL;
      const got = isWrite
        ? pwritev(this.image.fd, this.#iovBytes, pieces, this.#base + offset + done)
        : preadv(this.image.fd, this.#iovBytes, pieces, this.#base + offset + done);
      if (got < 0) {
        const errno = lastErrno();
        if (errno === Errno.EINTR) continue;
        return errno;
      }
      if (got === 0) return this.#endOfFile(chain, chainAt + done, count - done, isWrite);
      done += got;
    }
    return 0;
  }

  /** Whether the kernel can work on the chain's memory as it is: not so for requests that `transfer` has to copy. */
  isDirectlyUsable(chain: Chain, chainAt: number, count: number, offset: number, isWrite: boolean): boolean {
    return (
      chain.ram.hasHostAddresses && (!this.image.isDirect || this.#isAligned(chain, chainAt, count, offset, isWrite))
    );
  }

  /** Whether `readCached` can tell; file systems in memory do not know the question, and never wait. */
  knowsCached = true;

  /** Read what the host has in its cache, without waiting. @returns whether that was all of it. */
  readCached(chain: Chain, chainAt: number, count: number, offset: number): boolean {
    const pieces = chain.toIovecs(chainAt, count, true, this.#iov, 0, MAX_IOVECS);
    if (chain.iovBytes !== count) return false;
    const got = preadv2(this.image.fd, this.#iovBytes, pieces, this.#base + offset, RWF_NOWAIT);
    if (got < 0 && lastErrno() === Errno.EOPNOTSUPP) this.knowsCached = false;
    return got === count;
  }

  /** Nothing more to read. The file shrank, or a range was given beyond its end: that reads as the hole it is. */
  #endOfFile(chain: Chain, chainAt: number, count: number, isWrite: boolean): number {
    if (isWrite || !this.image.hasRange) return Errno.EIO;
    chain.fillIn(chainAt, count, 0);
    return 0;
  }

  /** Guest RAM that no system call can be pointed at (a WebAssembly engine): piece by piece through Node. */
  #transferByView(chain: Chain, chainAt: number, count: number, offset: number, isWrite: boolean): number {
    let done = 0;
    try {
      while (done < count) {
        if (!chain.seek(chainAt + done, !isWrite)) return Errno.EINVAL;
        const i = chain.segment;
        const bytes = chain.ram.bytes[chain.chunk[i] as number] as Uint8Array;
        const at = (chain.offset[i] as number) + chain.within;
        const length = Math.min(count - done, (chain.length[i] as number) - chain.within, MAX_TRANSFER_BYTES);
        const position = this.#base + offset + done;
        const got = isWrite
          ? writeSync(this.image.fd, bytes, at, length, position)
          : readSync(this.image.fd, bytes, at, length, position);
        if (got === 0) return this.#endOfFile(chain, chainAt + done, count - done, isWrite);
        done += got;
      }
      return 0;
    } catch (error) {
      return Math.abs((error as NodeJS.ErrnoException).errno ?? Errno.EIO);
    }
  }

  /** O_DIRECT wants file offset, addresses and lengths in sectors. */
  #isAligned(chain: Chain, chainAt: number, count: number, offset: number, isWrite: boolean): boolean {
    const unit = this.image.logicalSectorBytes;
    if ((this.#base + offset) % unit !== 0 || count % unit !== 0 || !chain.seek(chainAt, !isWrite)) return false;
    const end = isWrite ? chain.readableCount : chain.segmentCount;
    let left = count;
    for (let i = chain.segment, within = chain.within; left > 0 && i < end; i++, within = 0) {
      const take = Math.min(left, (chain.length[i] as number) - within);
      const address =
        (chain.ram.hostAddresses[chain.chunk[i] as number] as number) + (chain.offset[i] as number) + within;
      if (address % unit !== 0 || take % unit !== 0) return false;
      left -= take;
    }
    return true;
  }

  #transferBounced(chain: Chain, chainAt: number, count: number, offset: number, isWrite: boolean): number {
    this.#bounce ??= map(BOUNCE_BYTES, 'disk bounce buffer');
    const { bytes, address } = this.#bounce;
    const unit = this.image.logicalSectorBytes;
    let done = 0;
    while (done < count) {
      const at = this.#base + offset + done;
      const from = alignDown(at, unit);
      const head = at - from;
      const part = Math.min(count - done, BOUNCE_BYTES - head - unit);
      const span = alignUp(head + part, unit);
      // Writes keep what is around them in the first and the last sector.
      if (!isWrite || head !== 0 || span !== head + part) {
        const got = native('int64_t pread(int, uintptr_t, size_t, int64_t)')(this.image.fd, address, span, from);
        if (got < 0) return lastErrno();
        if (got < head + part) {
          if (!isWrite && !this.image.hasRange) return Errno.EIO;
          bytes.fill(0, got, span);
        }
      }
      if (isWrite) {
        chain.copyOut(chainAt + done, bytes, head, part);
        const put = native('int64_t pwrite(int, uintptr_t, size_t, int64_t)')(this.image.fd, address, span, from);
        if (put < 0) return lastErrno();
        if (put !== span) return Errno.EIO;
      } else {
        chain.copyIn(chainAt + done, bytes, head, part);
      }
      done += part;
    }
    return 0;
  }

  /** Everything written so far is on the medium when this returns 0. @returns 0 or an errno. */
  sync(): number {
    return fdatasync(this.image.fd) === 0 ? 0 : lastErrno();
  }

  /** Give a range back; it reads as zeros or as anything (block devices). @returns 0 or an errno. */
  discard(offset: number, count: number): number {
    const from = this.#base + offset;
    if (this.image.isBlockDevice) {
      this.#discardArg[0] = BigInt(from);
      this.#discardArg[1] = BigInt(count);
      return native('int ioctl(int, unsigned long, void *)')(this.image.fd, Ioctl.BlkDiscard, this.#discardArg) === 0
        ? 0
        : lastErrno();
    }
    const done = native('int fallocate(int, int, int64_t, int64_t)')(this.image.fd, PUNCH_HOLE_KEEP_SIZE, from, count);
    return done === 0 ? 0 : lastErrno();
  }

  /** Give back what this object holds; the image stays open. */
  dispose(): void {
    this.#bounce?.dispose();
    this.#bounce = undefined;
  }
}

// Declared once: the lookup by prototype is not for every request.
let preadvFn: ReturnType<typeof native> | undefined;
let preadv2Fn: ReturnType<typeof native> | undefined;
let pwritevFn: ReturnType<typeof native> | undefined;
let fdatasyncFn: ReturnType<typeof native> | undefined;

function preadv(fd: number, iov: Uint8Array, count: number, offset: number): number {
  preadvFn ??= native('int64_t preadv(int, const void *, int, int64_t)');
  return preadvFn(fd, iov, count, offset);
}
function preadv2(fd: number, iov: Uint8Array, count: number, offset: number, flags: number): number {
  preadv2Fn ??= native('int64_t preadv2(int, const void *, int, int64_t, int)');
  return preadv2Fn(fd, iov, count, offset, flags);
}
function pwritev(fd: number, iov: Uint8Array, count: number, offset: number): number {
  pwritevFn ??= native('int64_t pwritev(int, const void *, int, int64_t)');
  return pwritevFn(fd, iov, count, offset);
}
function fdatasync(fd: number): number {
  fdatasyncFn ??= native('int fdatasync(int)');
  return fdatasyncFn(fd);
}

function fileSize(stat: Stats, path: string): number {
  if (!stat.isFile()) throw new ConfigError(`virtio-blk: ${path}: neither a file nor a block device`);
  if (stat.size < SECTOR_BYTES || stat.size % SECTOR_BYTES !== 0) {
    throw new ConfigError(`virtio-blk: ${path}: the size must be a multiple of 512 bytes, it is ${stat.size}`);
  }
  return stat.size;
}

function blockDeviceSize(fd: number, path: string): number {
  const size = new BigUint64Array(1);
  if (native('int ioctl(int, unsigned long, void *)')(fd, Ioctl.BlkGetSize64, size) !== 0) {
    const errno = lastErrno();
    throw new HostError(`${path}: BLKGETSIZE64: ${describeErrno(errno)}`, errno);
  }
  return Number(size[0]);
}

function physicalBlockSize(fd: number): number {
  const size = new Uint32Array(1);
  const result = native('int ioctl(int, unsigned long, void *)')(fd, Ioctl.BlkPhysicalBlockSize, size);
  return result === 0 && size[0] !== 0 ? (size[0] as number) : SECTOR_BYTES;
}
