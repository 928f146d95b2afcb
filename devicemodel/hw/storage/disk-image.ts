/**
 * The image behind a virtio disk: a file, a block device, or a range of either. System calls are synchronous and work on
 * guest memory in place; nothing here allocates per request.
 */
import { constants, fstatSync, readSync, type Stats, writeSync } from 'node:fs';
import { ConfigError, HostError } from '../../core/errors.ts';
import { blockDeviceSize, discardBlocks, physicalBlockBytes } from '../../core/host/block-device.ts';
import { Errno } from '../../core/host/errno.ts';
import { tryLock } from '../../core/host/file-lock.ts';
import {
  closeFd,
  OpenFlag,
  openFile,
  punchHole,
  readAt,
  readCachedAt,
  readVectorAt,
  syncData,
  writeAt,
  writeVectorAt,
} from '../../core/host/files.ts';
import { type Mapping, map } from '../../core/host/mapping.ts';
import type { Log } from '../../core/log.ts';
import { alignDown, alignUp, MiB } from '../../core/units.ts';
import { type BlockOptions, SECTOR_BYTES } from '../pci/virtio/block/options.ts';
import type { Chain } from '../pci/virtio/ring/chain.ts';

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
    fd = openFile(path, (isReadOnly ? OpenFlag.ReadOnly : OpenFlag.ReadWrite) | OpenFlag.CloseOnExec | direct);
  } catch (error) {
    if (isReadOnly) throw error;
    // As the C device model does, but not silently.
    fd = openFile(path, OpenFlag.ReadOnly | OpenFlag.CloseOnExec | direct);
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
      physicalSectorBytes: options.sectorSize?.physical ?? (isBlockDevice ? physicalBlockBytes(fd) : stat.blksize),
      base: (options.range?.startLba ?? 0) * logicalSectorBytes,
      isBlockDevice,
      isDirect: options.nocache,
      hasRange: options.range !== undefined,
    };
    lockImage(image, log);
    return { ...image, discardLimits: discardLimits(options, image, log) };
  } catch (error) {
    closeFd(fd);
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
    if (discardBlocks(image.fd, 0, 0) !== 0) {
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
  const range = { base: image.base, sizeBytes: image.hasRange ? image.sizeBytes : 0 };
  try {
    if (tryLock(image.fd, image.isReadOnly ? 'shared' : 'exclusive', image.path, range)) return;
  } catch (error) {
    if (!(error instanceof HostError)) throw error;
    log.warn(`${error.message}: other User VMs are not kept from it`);
    return;
  }
  throw new HostError(`${image.path}: in use by another disk or User VM`, Errno.EAGAIN, {
    hint: 'stop the other VM, or give both the image with ro, or parts that do not overlap with range=',
  });
}

/** Work on an image. Each thread has its own: the buffers in here are not shared. */
export class BlockBackend {
  readonly image: BlockImage;
  readonly #base: number;
  readonly #iov = new DataView(new ArrayBuffer(MAX_IOVECS * 16));
  readonly #iovBytes = new Uint8Array(this.#iov.buffer);
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
        ? writeVectorAt(this.image.fd, this.#iovBytes, pieces, this.#base + offset + done)
        : readVectorAt(this.image.fd, this.#iovBytes, pieces, this.#base + offset + done);
      if (got < 0) return -got;
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
    const got = readCachedAt(this.image.fd, this.#iovBytes, pieces, this.#base + offset);
    if (got === -Errno.EOPNOTSUPP) this.knowsCached = false;
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
        const got = readAt(this.image.fd, address, span, from);
        if (got < 0) return -got;
        if (got < head + part) {
          if (!isWrite && !this.image.hasRange) return Errno.EIO;
          bytes.fill(0, got, span);
        }
      }
      if (isWrite) {
        chain.copyOut(chainAt + done, bytes, head, part);
        const put = writeAt(this.image.fd, address, span, from);
        if (put < 0) return -put;
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
    return -syncData(this.image.fd);
  }

  /** Give a range back; it reads as zeros or as anything (block devices). @returns 0 or an errno. */
  discard(offset: number, count: number): number {
    const from = this.#base + offset;
    return -(this.image.isBlockDevice
      ? discardBlocks(this.image.fd, from, count)
      : punchHole(this.image.fd, from, count));
  }

  /** Give back what this object holds; the image stays open. */
  dispose(): void {
    this.#bounce?.dispose();
    this.#bounce = undefined;
  }
}

function fileSize(stat: Stats, path: string): number {
  if (!stat.isFile()) throw new ConfigError(`virtio-blk: ${path}: neither a file nor a block device`);
  if (stat.size < SECTOR_BYTES || stat.size % SECTOR_BYTES !== 0) {
    throw new ConfigError(`virtio-blk: ${path}: the size must be a multiple of 512 bytes, it is ${stat.size}`);
  }
  return stat.size;
}
