/** virtio-net (Virtio 1.2 §5.1) on a tap: one receive and one transmit queue. */
import { createHash } from 'node:crypto';
import type { AccessSize, Bdf } from '../../../../core/address.ts';
import type { Clock, Timer } from '../../../../core/clock.ts';
import { type CounterPage, Counters } from '../../../../core/counters.ts';
import { RefusedError } from '../../../../core/errors.ts';
import { watchFd } from '../../../../core/host/fd-watch.ts';
import { closeFd } from '../../../../core/host/files.ts';
import { isTapGone, openTap, setHeaderSize, setOffload, TunOffload, tapFailure } from '../../../../core/host/tap.ts';
import type { Log } from '../../../../core/log.ts';
import { definePciDriver } from '../../driver.ts';
import type { PciFunction } from '../../function.ts';
import { DataThreads } from '../data-thread/data-thread.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import {
  DeviceType,
  Feature,
  featureMask,
  type QueueOwner,
  type QueueWires,
  readBytes,
  ringFeatures,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import { VirtioPci } from '../transport/transport.ts';
import { HEADER_BYTES, type NetFrameState, NetFrames, RECEIVE, SHORT_HEADER_BYTES, TRANSMIT } from './frames.ts';
import { type NetOptions, netInfo } from './options.ts';
import { type NetService, NetWord } from './server.ts';
import { VhostDevice } from './vhost.ts';

const QUEUE_SIZE = 1024;

/** §5.1.3. */
const NetFeature = {
  Csum: 0,
  GuestCsum: 1,
  Mac: 5,
  GuestTso4: 7,
  GuestTso6: 8,
  GuestEcn: 9,
  HostTso4: 11,
  HostTso6: 12,
  HostEcn: 13,
  MergeableBuffers: 15,
  Status: 16,
} as const;
const offloadFeatures = featureMask(
  NetFeature.Csum,
  NetFeature.GuestCsum,
  NetFeature.GuestTso4,
  NetFeature.GuestTso6,
  NetFeature.GuestEcn,
  NetFeature.HostTso4,
  NetFeature.HostTso6,
  NetFeature.HostEcn,
);

const VHOST_PATH = '/dev/vhost-net';
/** What vhost-net has to know of the negotiation. */
const vhostFeatures = [
  NetFeature.MergeableBuffers,
  Feature.NotifyOnEmpty,
  Feature.IndirectDesc,
  Feature.EventIdx,
  Feature.Version1,
] as const;
/** VHOST_NET_F_VIRTIO_NET_HDR: the kernel makes and takes the headers that the tap does not carry. */
const VHOST_MAKES_HEADER = 1n << 27n;

/** §5.1.4: mac[6], u16 status. */
const Config = { mac: 0, status: 6, size: 8 } as const;
const LINK_UP = 1;
const RETRY_NS = 1e9;

/** 00:16:3E, then three bytes of a digest of slot, function and seed (and of a bus above 0): stable from run to run. */
export function defaultMac(bdf: Bdf, seed: string | undefined): number[] {
  const MAX_DIGESTED = 79;
  const bus = bdf.bus === 0 ? '' : `${bdf.bus}-`;
  const text = `${bus}${bdf.device}-${bdf.function}${seed === undefined ? '' : `-${seed}`}`;
  const digest = createHash('md5').update(Buffer.from(text).subarray(0, MAX_DIGESTED)).digest();
  return [0x00, 0x16, 0x3e, digest[0] as number, digest[1] as number, digest[2] as number];
}

/** Opens the host's end. Tests hand in a socket. */
export type TapOpener = (name: string, withHeader: boolean) => number;

export interface NetWires {
  readonly clock: Clock;
  readonly log: Log;
  readonly mac: readonly number[];
  readonly openTap?: TapOpener;
  /** Default: nobody looks. */
  readonly counters?: Counters<'net'>;
  /** Another place of the data thread's code, for tests. */
  readonly workerUrl?: URL;
}

export class VirtioNet implements VirtioDevice, NetFrameState {
  readonly name = 'virtio-net';
  features: bigint;
  readonly isPolled: boolean;
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = Config.size;
  readonly #options: NetOptions;
  readonly #wires: NetWires;
  readonly #log: Log;
  readonly #config = new DataView(new ArrayBuffer(Config.size));
  readonly hasHeader: boolean;
  readonly counts: CounterPage;
  readonly #counters: Counters<'net'>;
  #frames: NetFrames | undefined;
  readonly #retry: Timer;
  #transport: VirtioTransport | undefined;
  #fd: number | undefined;
  /** As if the cable were out: somebody outside said so. */
  #isUnplugged = false;
  #unwatch: (() => void) | undefined;
  #vhost: VhostDevice | undefined;
  #lent: readonly QueueWires[] = [];
  #threads: DataThreads | undefined;

  constructor(options: NetOptions, wires: NetWires) {
    this.#options = options;
    this.#wires = wires;
    this.#log = wires.log;
    this.#counters = wires.counters ?? new Counters('net', '');
    this.counts = this.#counters.own;
    this.isPolled = !options.vhost;
    // Compat: the legacy form offers no offloads, as C; the newer ones do.
    this.hasHeader = options.offload || options.transport !== 'legacy';
    this.features =
      featureMask(NetFeature.Mac, NetFeature.MergeableBuffers, NetFeature.Status, Feature.IndirectDesc) |
      (options.transport === 'modern' ? 0n : featureMask(Feature.NotifyOnEmpty)) |
      (this.hasHeader ? offloadFeatures : 0n) |
      ringFeatures(options.transport);
    // No kernel serves packed rings.
    if (options.vhost) this.features &= ~featureMask(Feature.RingPacked);
    this.#setMac();
    this.#retry = wires.clock.createTimer(() => this.#reopen());
  }

  /** Compat: in C the address a driver wrote stays until the machine is reset; QEMU and the drivers take a reset as here. */
  #setMac(): void {
    for (let i = 0; i < Config.status; i++) this.#config.setUint8(Config.mac + i, this.#wires.mac[i] as number);
  }

  /** The tap, while frames go there. */
  get fd(): number | undefined {
    return this.#isUnplugged ? undefined : this.#fd;
  }

  /** The cable: the guest sees the link go down or come up. @throws RefusedError where the kernel moves the frames. */
  setCable(isPluggedIn: boolean): void {
    if (this.#vhost !== undefined) {
      throw new RefusedError('impossible', 'virtio-net: with vhost the kernel moves the frames', {
        hint: `ip link set ${this.#options.tap} ${isPluggedIn ? 'up' : 'down'}`,
      });
    }
    if (this.#isUnplugged === !isPluggedIn) return;
    this.#isUnplugged = !isPluggedIn;
    if (!isPluggedIn) {
      this.#pause();
      this.#setLink(false);
      // The data thread's frames come back to a device that has nowhere to send them.
      this.#transport?.reclaimQueues();
    } else if (this.#fd !== undefined) {
      this.#frames?.discardWaiting(this.#fd);
      this.#setLink(true);
      this.#listen();
    }
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  start(): void {
    this.#frames = new NetFrames(this, this.#log, this.#wires.clock);
    const { tap } = this.#options;
    if (tap === undefined) {
      // Once a life, and a guest can have many.
      this.#log.rationed('warn', () => 'no tap=NAME: the link stays down');
      return;
    }
    try {
      this.#fd = (this.#wires.openTap ?? openTap)(tap, this.hasHeader);
      this.#config.setUint16(Config.status, LINK_UP, true);
      if (this.#options.vhost) this.#openVhost();
    } catch (error) {
      // Compat: as with C the VM starts without a link.
      this.#log.rationed('warn', () => `${(error as Error).message}: the link stays down`);
    }
  }

  #openVhost(): void {
    const vhost = new VhostDevice(VHOST_PATH);
    try {
      // What the kernel cannot do is not offered.
      for (const bit of vhostFeatures) {
        if ((vhost.features & featureMask(bit)) === 0n) this.features &= ~featureMask(bit);
      }
      this.#vhost = vhost;
    } catch (error) {
      this.#log.warn(`${(error as Error).message}: frames go through this process`);
    }
    vhost.close();
  }

  get queueOwner(): QueueOwner | undefined {
    if (this.#vhost === undefined || this.fd === undefined) return undefined;
    return {
      queueCount: 2,
      needsAllQueues: true,
      takeOver: (wires) => this.#lend(this.#vhost as VhostDevice, wires),
      giveBack: () => this.#takeBack(),
    };
  }

  #lend(vhost: VhostDevice, wires: readonly QueueWires[]): boolean {
    const transport = this.#transport as VirtioTransport;
    const accepted = featureMask(...vhostFeatures.filter((bit) => transport.hasFeature(bit)));
    this.#lent = wires;
    try {
      if (this.hasHeader) this.#negotiateOffloads(this.fd as number);
      vhost.start(transport.ram, accepted | (this.hasHeader ? 0n : VHOST_MAKES_HEADER & vhost.features), wires);
      for (let i = 0; i < wires.length; i++) this.#setVhostBackend(vhost, i, this.fd as number);
      return true;
    } catch (error) {
      this.#log.rationed('warn', () => `${(error as Error).message}: frames go through this process`);
      this.#takeBack();
      return false;
    }
  }

  #setVhostBackend(vhost: VhostDevice, index: number, fd: number): void {
    vhost.setNetBackend(index, fd);
  }

  /** The kernel answers in the call. */
  #takeBack(): undefined {
    const wires = this.#lent;
    const vhost = this.#vhost;
    this.#lent = [];
    if (vhost === undefined || wires.length === 0) return;
    for (let i = 0; i < wires.length; i++) {
      try {
        this.#setVhostBackend(vhost, i, -1);
      } catch {
        // It had none yet.
      }
    }
    vhost.stop(wires);
  }

  /** A device with much to do gets a thread of its own. */
  startDataThread(): QueueOwner | undefined | Promise<QueueOwner> {
    const transport = this.#transport as VirtioTransport;
    const { tap } = this.#options;
    if (tap === undefined || this.#vhost !== undefined) return undefined;
    if (!DataThreads.isPossible(transport, this.#wires.workerUrl)) return undefined;
    if (this.#threads === undefined) {
      const service: NetService = { kind: 'net', tap, hasHeader: this.hasHeader };
      this.#threads = new DataThreads(
        {
          threads: 1,
          cpus: [],
          queueCount: 2,
          service,
          what: `tap ${tap}`,
          log: this.#log,
          counters: this.#counters,
          onFailed: () => {
            // First, since what comes back would be waited for.
            this.#tapGone();
            transport.reclaimQueues();
          },
          workerUrl: this.#wires.workerUrl,
        },
        transport,
      );
    }
    const threads = this.#threads;
    const owner = this.#threadOwner(threads);
    return threads.isUp ? owner : threads.start().then(() => owner);
  }

  #threadOwner(threads: DataThreads): QueueOwner {
    const hasBack = () => {
      this.#lent = [];
      this.#listen();
    };
    return {
      queueCount: 2,
      usesAsyncio: true,
      takeOver: (wires) => this.#lendToThread(threads, wires),
      giveBack: () => {
        const wait = threads.giveBack();
        if (wait !== undefined) return wait.then(hasBack);
        hasBack();
        return undefined;
      },
      suspend: () => threads.suspend(),
      resume: () => threads.resume(),
    };
  }

  #lendToThread(threads: DataThreads, wires: readonly QueueWires[]): boolean {
    if (this.fd === undefined) return false;
    this.#pause();
    this.#frames?.putBackBuffers((this.#transport as VirtioTransport).queue(RECEIVE));
    threads.set(NetWord.TapFd, this.fd);
    threads.set(NetWord.HeaderBytes, this.headerBytes);
    threads.set(NetWord.Merges, +this.merges);
    threads.set(NetWord.Segmented, +this.isSegmented);
    threads.set(NetWord.ReportsRead, +this.reportsRead);
    if (!threads.takeOver(wires)) {
      this.#listen();
      return false;
    }
    this.#lent = wires;
    return true;
  }

  async stop(): Promise<void> {
    await this.#threads?.stop();
    this.#threads = undefined;
    this.#retry.cancel();
    this.#pause();
    if (this.#fd !== undefined) closeFd(this.#fd);
    this.#fd = undefined;
    this.#frames?.dispose();
    this.#frames = undefined;
  }

  suspend(): void {
    this.#pause();
  }

  resume(): void {
    this.#listen();
  }

  /** Buffers were taken for the header of the driver that left. */
  driverLeft(): void {
    this.#pause();
    const queue = this.#transport?.queue(RECEIVE);
    if (queue !== undefined) this.#frames?.putBackBuffers(queue);
  }

  reset(): void {
    this.#setMac();
    this.#pause();
    const queue = this.#transport?.queue(RECEIVE);
    if (queue !== undefined) this.#frames?.dropBuffers(queue);
  }

  readConfig(offset: number, size: AccessSize): number {
    return readBytes(this.#config, offset, size);
  }

  /** Legacy drivers may set their address (§5.1.4); writes to other fields are taken and lost, as with C. */
  writeConfig(offset: number, size: AccessSize, value: number): boolean {
    if (offset >= Config.status) return true;
    if (offset + size > Config.status) return false;
    if (this.#transport?.isVersion1 !== true) {
      for (let i = 0; i < size; i++) this.#config.setUint8(offset + i, (value >>> (8 * i)) & 0xff);
    }
    return true;
  }

  /** §5.1.6.1: ten bytes for legacy drivers that do not merge buffers. */
  get headerBytes(): number {
    const transport = this.#transport;
    return transport?.isVersion1 === true || transport?.hasFeature(NetFeature.MergeableBuffers) === true
      ? HEADER_BYTES
      : SHORT_HEADER_BYTES;
  }

  get merges(): boolean {
    return this.#transport?.hasFeature(NetFeature.MergeableBuffers) === true;
  }

  get isSegmented(): boolean {
    const transport = this.#transport;
    return transport?.hasFeature(NetFeature.GuestTso4) === true || transport?.hasFeature(NetFeature.GuestTso6) === true;
  }

  get reportsRead(): boolean {
    return this.#transport?.isVersion1 !== true;
  }

  driverOk(): void {
    if (this.fd === undefined || this.#lent.length > 0) return;
    if (this.hasHeader) this.#negotiateOffloads(this.fd);
    // What came while no driver was there is out of date.
    this.#frames?.discardWaiting(this.fd);
    this.#listen();
  }

  #negotiateOffloads(fd: number): void {
    const has = (bit: number) => this.#transport?.hasFeature(bit) === true;
    const offloads =
      (has(NetFeature.GuestCsum) ? TunOffload.Csum : 0) |
      (has(NetFeature.GuestTso4) ? TunOffload.Tso4 : 0) |
      (has(NetFeature.GuestTso6) ? TunOffload.Tso6 : 0) |
      (has(NetFeature.GuestEcn) ? TunOffload.TsoEcn : 0);
    if (!setHeaderSize(fd, this.headerBytes) || !setOffload(fd, offloads)) {
      this.#log.rationed('warn', () => `tap ${this.#options.tap}: offloads are refused`);
    }
  }

  // Waiting for frames.

  #listen(): void {
    if (this.fd === undefined || this.#lent.length > 0 || this.#unwatch !== undefined) return;
    if (this.#transport?.isDriverOk !== true) return;
    try {
      this.#unwatch = watchFd(this.fd, () => this.#receive());
    } catch (error) {
      const why = (error as Error).message;
      this.#log.rationed('warn', () => `tap ${this.#options.tap}: frames come only when the driver asks: ${why}`);
    }
  }

  #pause(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
  }

  notify(queue: Virtqueue): void {
    if (queue.index === TRANSMIT) {
      const before = this.#frames?.moved ?? 0;
      if (this.#frames?.transmit(queue) === false) this.#transport?.notifyLater(queue);
      this.#worked(before);
    } else if (this.#unwatch === undefined) {
      // Buffers are back (Firecracker's CVE-2020-16843: frames that waited for them must not be forgotten).
      this.#listen();
      this.#receive();
    } else {
      // As with C: the driver need not tell of every buffer while frames can still be taken.
      queue.suppressNotify();
    }
  }

  #receive(): void {
    const frames = this.#frames;
    const queue = this.#transport?.queue(RECEIVE);
    // Nobody to receive, a driver that went back to its set-up or broke its ring: frames that wait must cost nothing.
    if (frames === undefined || this.#transport?.isDriverOk !== true || queue?.isReady !== true) {
      this.#pause();
      return;
    }
    const before = frames.moved;
    if (!frames.receive(queue)) this.#pause();
    this.#worked(before);
  }

  #worked(movedBefore: number): void {
    this.#transport?.worked(((this.#frames?.moved ?? 0) - movedBefore) | 0);
  }

  // Trouble with the host.

  failed(what: 'send' | 'receive', errno: number): void {
    this.#log.guest(() => tapFailure(this.#options.tap as string, what, errno));
    if (isTapGone(errno)) this.#tapGone();
  }

  #tapGone(): void {
    this.#pause();
    if (this.#fd !== undefined) closeFd(this.#fd);
    this.#fd = undefined;
    this.#setLink(false);
    this.#retry.arm(this.#wires.clock.nowNs() + RETRY_NS);
  }

  #reopen(): void {
    try {
      this.#fd = (this.#wires.openTap ?? openTap)(this.#options.tap as string, this.hasHeader);
    } catch {
      this.#retry.arm(this.#wires.clock.nowNs() + RETRY_NS);
      return;
    }
    this.#log.notice(`tap ${this.#options.tap} is back`);
    if (this.hasHeader) this.#negotiateOffloads(this.#fd);
    if (this.#isUnplugged) return;
    this.#setLink(true);
    this.#listen();
  }

  #setLink(isUp: boolean): void {
    this.#config.setUint16(Config.status, isUp ? LINK_UP : 0, true);
    this.#transport?.configChanged();
  }
}

/** The cable of a network device. @throws RefusedError */
export function setCableOf(fn: PciFunction | undefined, isPluggedIn: boolean): void {
  if (!(fn instanceof VirtioPci && fn.device instanceof VirtioNet)) {
    throw new RefusedError('impossible', 'only virtio-net has a link');
  }
  fn.device.setCable(isPluggedIn);
}

export const virtioNet = definePciDriver({
  ...netInfo,
  create: (options, env) => {
    const mac = options.mac ?? defaultMac(env.bdf, options.macSeed);
    // What the kernel moves it does not count for us.
    const counters = options.vhost ? {} : { counters: env.counters('net') };
    return new VirtioPci(new VirtioNet(options, { clock: env.clock, log: env.log, mac, ...counters }), env, {
      mode: options.transport,
      identity: { legacyDeviceId: 0x1000, type: DeviceType.Net, classCode: 0x020000, hasWindowsId: true },
    });
  },
});
