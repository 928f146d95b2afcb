/** virtio-blk (Virtio 1.2 §5.2): registers, options and the driver. Requests are in requests.ts. */
import { createHash } from 'node:crypto';
import type { AccessSize } from '../../../../core/address.ts';
import { type CounterPage, Counters } from '../../../../core/counters.ts';
import { ConfigError, RefusedError, StoppedError, StorageHangError } from '../../../../core/errors.ts';
import { describeErrno } from '../../../../core/host/errno.ts';
import { leaveThreadBehind } from '../../../../core/host/exit-hooks.ts';
import { closeFdAside } from '../../../../core/host/files.ts';
import type { Log } from '../../../../core/log.ts';
import { checkOptions } from '../../../../core/options.ts';
import { unlessEnding } from '../../../../core/power.ts';
import { type DiskImage, openDiskImage } from '../../../storage/disk-image.ts';
import { ImageAside } from '../../../storage/image-aside.ts';
import { ImageIo } from '../../../storage/image-io.ts';
import { SECTOR_BYTES } from '../../../storage/image-options.ts';
import { imageSizeNow } from '../../../storage/image-resize.ts';
import { definePciDriver, type PciEnv } from '../../driver.ts';
import type { PciFunction } from '../../function.ts';
import { DataThreads } from '../data-thread/data-thread.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import {
  DeviceType,
  Feature,
  featureMask,
  type QueueOwner,
  readBytes,
  ringFeatures,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import { VirtioPci } from '../transport/transport.ts';
import { AsideWork } from './aside.ts';
import { BlockOptions, blockInfo, parseBlockText } from './options.ts';
import type { BlockRequestState } from './request-state.ts';
import { BlockRequests } from './requests.ts';
import { type BlockService, BlockWord, noteIn } from './server.ts';
import { NOTE_WORDS, Work, WorkNote } from './work-note.ts';

const QUEUE_SIZE = 64;
/** Data segments of one request, as the C device model announces them. */
const MAX_SEGMENTS = 256;

/** §5.2.3. */
const BlkFeature = {
  SegMax: 2,
  ReadOnly: 5,
  BlockSize: 6,
  Flush: 9,
  Topology: 10,
  ConfigWce: 11,
  Mq: 12,
  Discard: 13,
} as const;

/** §5.2.4, struct virtio_blk_config up to the discard fields. */
const Config = {
  capacity: 0,
  segMax: 12,
  blockSize: 20,
  physicalBlockExp: 24,
  writeback: 32,
  numQueues: 34,
  maxDiscardSectors: 36,
  maxDiscardSegments: 40,
  discardAlignment: 44,
  size: 48,
} as const;

export class VirtioBlock implements VirtioDevice, BlockRequestState {
  readonly name = 'virtio-blk';
  readonly configSizeBytes = Config.size;
  readonly queueSizes: readonly number[];
  readonly wantsIoeventfd: boolean;
  readonly serial: Uint8Array;
  readonly counts: CounterPage;
  readonly runsBesideDriver = false;
  /** What the device thread has under way on the image. */
  readonly note = new WorkNote(new Int32Array(NOTE_WORDS));
  readonly #options: BlockOptions;
  readonly #log: Log;
  readonly #config = new DataView(new ArrayBuffer(Config.size));
  #requests: BlockRequests | undefined;
  #transport: VirtioTransport | undefined;
  #backend: ImageIo | undefined;
  #aside: AsideWork | undefined;
  /** A disk is being plugged in. */
  #isPlugging = false;
  #resizes = 0;
  #isStopped = false;
  /** What `writeback` or `writethru` asked for; a reset goes back to it. */
  #initialWriteback = false;
  #offersFlush = false;
  readonly #workerUrl: URL | undefined;
  readonly #counters: Counters<'disk'>;
  #threads: DataThreads | undefined;
  #iothreads: DataThreads | undefined;

  /** @param workerUrl another place of the data thread's code, for tests. */
  constructor(
    options: BlockOptions,
    queues: number,
    log: Log,
    workerUrl?: URL,
    counters: Counters<'disk'> = new Counters('disk', ''),
  ) {
    this.#workerUrl = workerUrl;
    this.#counters = counters;
    this.counts = counters.own;
    this.#options = options;
    this.#log = log;
    this.queueSizes = new Array(queues).fill(QUEUE_SIZE);
    this.wantsIoeventfd = options.iothread !== undefined;
    this.serial = serialOf(options.text === '' ? options.path : options.text);
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
    this.#requests = new BlockRequests(this, this.#log, transport.clock);
  }

  get backend(): ImageIo | undefined {
    return this.#backend;
  }

  get features(): bigint {
    // Compat: before a disk is plugged a `nodisk` device offers nothing of its own but what its cache mode register says.
    let features = ringFeatures(this.#options.transport);
    if (this.#offersFlush) features |= featureMask(BlkFeature.Flush);
    if (this.#backend === undefined) return features;
    features |= featureMask(BlkFeature.SegMax, BlkFeature.BlockSize, BlkFeature.Topology, Feature.IndirectDesc);
    if (this.#initialWriteback) features |= featureMask(BlkFeature.ConfigWce);
    if (this.#backend.image.discardLimits !== undefined) features |= featureMask(BlkFeature.Discard);
    if (this.#backend.image.isReadOnly) features |= featureMask(BlkFeature.ReadOnly);
    if (this.queueSizes.length > 1) features |= featureMask(BlkFeature.Mq);
    return features;
  }

  /** The cache mode register (§5.2.4), which only a driver that can flush may have at write-back. */
  get isWriteback(): boolean {
    return this.#config.getUint8(Config.writeback) !== 0 && this.#transport?.hasFeature(BlkFeature.Flush) === true;
  }

  get reportsLength(): boolean {
    return this.#transport?.isVersion1 === true;
  }

  /** @throws HostError, ConfigError */
  async start(): Promise<void> {
    if (this.#options.path === '') return;
    await unlessEnding(this.#plug(this.#options), this.#transport?.ending);
    const { iothread } = this.#options;
    if (iothread === undefined) return;
    try {
      const threads = this.#dataThreads(iothread.count, iothread.cpus);
      await threads?.start();
      this.#iothreads = threads;
    } catch (error) {
      this.#log.warn(`${(error as Error).message}: the disk is served without it`);
    }
  }

  /** @returns undefined where there are none, and without a disk. */
  #dataThreads(count: number, cpus: readonly (readonly number[])[]): DataThreads | undefined {
    const transport = this.#transport as VirtioTransport;
    const { image } = this.#backend ?? {};
    if (image === undefined || !DataThreads.isPossible(transport, this.#workerUrl)) return undefined;
    if (this.#threads === undefined) {
      const usesRing = this.#options.aio !== 'threads';
      const service: BlockService = { kind: 'block', image, serial: this.serial, usesRing };
      const options = {
        threads: count,
        cpus,
        queueCount: this.queueSizes.length,
        service,
        what: image.path,
        describeWork: (words: Int32Array) => noteIn(words).describe(),
        log: this.#log,
        counters: this.#counters,
        workerUrl: this.#workerUrl,
      };
      this.#threads = new DataThreads(options, transport);
      this.featuresAccepted();
    }
    return this.#threads;
  }

  /** `iothread`: the queues are theirs from DRIVER_OK. */
  get queueOwner(): QueueOwner | undefined {
    return this.#iothreads;
  }

  /** Without `iothread`, a disk with much to do gets a thread all the same. */
  startDataThread(): QueueOwner | undefined | Promise<QueueOwner> {
    const threads = this.#dataThreads(1, []);
    return threads === undefined || threads.isUp ? threads : threads.start().then(() => threads);
  }

  /** Requests that are begun are completed or put back: who serves the queues next finds everything before their positions used. */
  settle(): Promise<void> | undefined {
    const transport = this.#transport as VirtioTransport;
    return this.#requests?.settle(this.queueSizes.map((_, index) => transport.queue(index)));
  }

  hung(limitMs: number): Error {
    this.#aside?.abandon();
    leaveThreadBehind();
    return new StorageHangError(this.#backend?.image.path ?? this.name, this.note.describe() ?? 'a request', limitMs);
  }

  featuresAccepted(): void {
    this.#threads?.set(BlockWord.Writeback, +this.isWriteback);
    this.#threads?.set(BlockWord.ReportsLength, +this.reportsLength);
  }

  /** Nobody waits for it: a guest finds its disk when the host has opened it. */
  async #plug(options: BlockOptions): Promise<void> {
    this.#isPlugging = true;
    let image: DiskImage;
    try {
      image = await openDiskImage(options.path, options, this.#log);
    } finally {
      this.#isPlugging = false;
    }
    if (this.#isStopped) {
      // The VM ended meanwhile, and did not wait.
      await closeFdAside(image.fd);
      throw new StoppedError(`${options.path}: opened when the VM had ended`);
    }
    const backend = new ImageIo(image);
    this.#backend = backend;
    const { clock } = this.#transport as VirtioTransport;
    this.#aside = new AsideWork(new ImageAside(backend, clock), () => this.#lookAtQueues());
    if (this.#requests !== undefined) this.#requests.aside = this.#aside;
    this.#initialWriteback = options.writeback;
    this.#offersFlush = options.writeback;
    const config = this.#config;
    const logical = image.logicalSectorBytes;
    config.setBigUint64(Config.capacity, BigInt(Math.floor(image.sizeBytes / SECTOR_BYTES)), true);
    config.setUint32(Config.segMax, MAX_SEGMENTS, true);
    config.setUint32(Config.blockSize, logical, true);
    const ratio = image.physicalSectorBytes / logical;
    config.setUint8(Config.physicalBlockExp, ratio > 1 ? Math.floor(Math.log2(ratio)) : 0);
    config.setUint8(Config.writeback, options.writeback ? 1 : 0);
    config.setUint16(Config.numQueues, this.queueSizes.length, true);
    config.setUint32(Config.maxDiscardSectors, image.discardLimits?.maxSectors ?? 0, true);
    config.setUint32(Config.maxDiscardSegments, image.discardLimits?.maxSegments ?? 0, true);
    config.setUint32(Config.discardAlignment, image.discardLimits?.alignmentSectors ?? 0, true);
  }

  #lookAtQueues(): void {
    const transport = this.#transport as VirtioTransport;
    for (let i = 0; i < this.queueSizes.length; i++) transport.notifyLater(transport.queue(i));
  }

  /**
   * Plug a disk into a `nodisk` device while the guest runs; it learns of it by a configuration interrupt.
   * @param text `PATH[,option…]` as after `virtio-blk,`.
   * @throws ConfigError if there is a disk already or the text is wrong; HostError.
   */
  async rescan(text: string): Promise<void> {
    if (this.#backend !== undefined) {
      throw new ConfigError(`virtio-blk: ${this.#backend.image.path} is plugged in: a disk cannot be replaced`);
    }
    const options = checkOptions(BlockOptions, parseBlockText(text)) as BlockOptions;
    if (options.path === '') throw new ConfigError('virtio-blk: which image file?');
    if (this.#isPlugging) throw new ConfigError('virtio-blk: another disk is being plugged in');
    await this.#plug(options);
    this.#transport?.configChanged();
  }

  /**
   * Make the disk larger, or take note of its size on the host; the guest learns of it by a configuration interrupt.
   * @returns bytes. @throws RefusedError, ConfigError, HostError
   */
  async resize(wishedBytes: number | undefined): Promise<number> {
    const backend = this.#backend;
    if (backend === undefined) throw new RefusedError('wrong-state', 'virtio-blk: there is no disk in it');
    const sizeBytes = await imageSizeNow(backend.image, wishedBytes);
    if (this.#backend !== backend) throw new StoppedError(`${backend.image.path}: resized when the VM had ended`);
    const sectors = Math.floor(sizeBytes / SECTOR_BYTES);
    backend.resize(sizeBytes);
    this.#threads?.set(BlockWord.SizeLow, sectors);
    this.#threads?.set(BlockWord.SizeHigh, Math.floor(sectors / 2 ** 32));
    this.#threads?.set(BlockWord.Resizes, ++this.#resizes);
    this.#config.setBigUint64(Config.capacity, BigInt(sectors), true);
    this.#transport?.configChanged();
    return sizeBytes;
  }

  readConfig(offset: number, size: AccessSize): number {
    return readBytes(this.#config, offset, size);
  }

  /** Only the cache mode can be written, by drivers of any age (§5.2.4). */
  writeConfig(offset: number, size: AccessSize, value: number): boolean {
    if (offset !== Config.writeback || size !== 1) return false;
    const wasWriteback = this.isWriteback;
    this.#config.setUint8(Config.writeback, value);
    // Compat: FLUSH comes and goes with the mode.
    this.#offersFlush = value !== 0;
    // From here on what is completed is on the medium, and what was completed before has to be when the access is.
    this.#threads?.set(BlockWord.Writeback, +this.isWriteback);
    const backend = this.#backend;
    if (value !== 0 || !wasWriteback || backend === undefined || backend.image.isReadOnly) return true;
    if (backend.image.neverWaits) {
      backend.sync();
      return true;
    }
    this.note.set(Work.Flush, 0, 0);
    this.#transport?.hold(backend.flush());
    return true;
  }

  notify(queue: Virtqueue): void {
    const requests = this.#requests;
    if (requests === undefined || !(queue.hasAvailable() || requests.isWaiting)) return;
    const before = requests.served;
    if (!requests.serve(queue)) this.#transport?.notifyLater(queue);
    this.#transport?.worked((requests.served - before) | 0);
  }

  reset(): void {
    this.#config.setUint8(Config.writeback, this.#initialWriteback ? 1 : 0);
    this.#offersFlush = this.#initialWriteback;
  }

  /** What the guest did not flush itself. */
  async flush(): Promise<void> {
    const backend = this.#backend;
    if (backend === undefined || backend.image.isReadOnly) return;
    this.note.set(Work.Flush, 0, 0);
    const { path } = backend.image;
    const { patience } = this.#transport as VirtioTransport;
    await patience.wait(
      backend.flush().then((errno) => {
        if (errno !== 0) this.#log.error(`${path}: the last flush failed: ${describeErrno(errno)}`);
      }),
      (limitMs) => this.hung(limitMs),
    );
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    if (this.#isPlugging) leaveThreadBehind();
    await this.#threads?.stop();
    this.#threads = undefined;
    this.#iothreads = undefined;
    // Nothing is left to be written where the life of the VM ended in good order.
    await this.flush();
    await this.#unplug();
  }

  async #unplug(): Promise<void> {
    const backend = this.#backend;
    this.#backend = undefined;
    if (backend === undefined) return;
    const { image } = backend;
    this.#aside?.dispose();
    backend.dispose();
    // The lock goes with the descriptor.
    const { patience } = this.#transport as VirtioTransport;
    await patience.wait(closeFdAside(image.fd), (limitMs) => {
      leaveThreadBehind();
      return new StorageHangError(image.path, 'close', limitMs);
    });
  }
}

/** Compat: the serial number is a digest of the option text, as C makes it, so that guests find their disks again. */
function serialOf(text: string): Uint8Array {
  const MAX_DIGESTED = 256;
  const digest = createHash('md5').update(Buffer.from(text).subarray(0, MAX_DIGESTED)).digest('hex').toUpperCase();
  return Buffer.from(`ACRN--${digest.slice(0, 4)}-${digest.slice(4, 8)}-${digest.slice(8, 12)}`, 'latin1');
}

/**
 * `blkrescan`: plug a disk into a virtio-blk function made with `nodisk`.
 * @throws ConfigError, HostError, asynchronously
 */
export async function rescanBlock(fn: PciFunction, text: string): Promise<void> {
  if (!(fn instanceof VirtioPci) || !(fn.device instanceof VirtioBlock)) {
    throw new ConfigError('only a virtio-blk device can be given a disk');
  }
  await fn.device.rescan(text);
}

/** @returns the size of a disk, that was made larger or looked at. @throws RefusedError, ConfigError, HostError, asynchronously */
export async function resizeBlock(fn: PciFunction | undefined, wishedBytes: number | undefined): Promise<number> {
  if (fn instanceof VirtioPci && fn.device instanceof VirtioBlock) return fn.device.resize(wishedBytes);
  throw new RefusedError('impossible', 'only a virtio-blk disk can change its size');
}

export const virtioBlk = definePciDriver({
  ...blockInfo,
  create: (options, env: PciEnv) => {
    const queues = Math.min(options.queues, env.machine.vcpuCount ?? options.queues);
    return new VirtioPci(new VirtioBlock(options, queues, env.log, undefined, env.counters('disk')), env, {
      mode: options.transport,
      identity: { legacyDeviceId: 0x1001, type: DeviceType.Block, classCode: 0x010000, hasWindowsId: true },
    });
  },
});
