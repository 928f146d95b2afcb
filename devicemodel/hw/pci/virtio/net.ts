/** virtio-net (Virtio 1.2 §5.1) on a tap: one receive and one transmit queue. */
import { createHash } from 'node:crypto';
import type { AccessSize, Bdf } from '../../../core/address.ts';
import type { Clock, Timer } from '../../../core/clock.ts';
import { addressOf, describeErrno, Errno, lastErrno, libc, native, watchFd } from '../../../core/host/libc.ts';
import { type Mapping, map } from '../../../core/host/mapping.ts';
import type { Log } from '../../../core/log.ts';
import { definePciDriver } from '../driver.ts';
import {
  DeviceType,
  Feature,
  featureMask,
  type QueueOwner,
  readBytes,
  type VirtioDevice,
  type VirtioTransport,
} from './device.ts';
import { NetOptions, parseNetText } from './net-options.ts';
import { openTap, setHeaderSize, setOffload, TunOffload } from './tap.ts';
import { VirtioPci } from './transport.ts';
import { type QueueWires, Vhost, VhostDevice } from './vhost.ts';
import { type Chain, ChainFifo, setIovec, type Virtqueue } from './virtqueue.ts';

const QUEUE_SIZE = 1024;
const RECEIVE = 0;
const TRANSMIT = 1;

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
/** §5.1.6, struct virtio_net_hdr: u16 num_buffers is its last field, and absent in the oldest form. */
const HEADER_BYTES = 12;
const SHORT_HEADER_BYTES = 10;
const NUM_BUFFERS = 10;
/** Shortest Ethernet frame without its checksum; the C device model pads to it. */
const MIN_FRAME = 60;
const PLAIN_FRAME = 1514;
/** Longest thing a tap hands out: a segmented frame and its headers. */
const MAX_FRAME = 65_550;
/** Frames handled before other work has its turn. */
const FRAME_BUDGET = 256;
/** Pieces of one frame. */
const MAX_IOVECS = 1024;
const RETRY_NS = 1e9;

/** 00:16:3E, then three bytes of a digest of slot, function and seed: stable from run to run. */
export function defaultMac(bdf: Bdf, seed: string | undefined): number[] {
  const MAX_DIGESTED = 79;
  const text = `${bdf.device}-${bdf.function}${seed === undefined ? '' : `-${seed}`}`;
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
}

export class VirtioNet implements VirtioDevice {
  readonly name = 'virtio-net';
  features: bigint;
  readonly isPolled: boolean;
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = Config.size;
  readonly #options: NetOptions;
  readonly #wires: NetWires;
  readonly #log: Log;
  readonly #config = new DataView(new ArrayBuffer(Config.size));
  readonly #hasHeader: boolean;
  readonly #iov = new DataView(new ArrayBuffer((MAX_IOVECS + 2) * 16));
  readonly #iovBytes = new Uint8Array(this.#iov.buffer);
  /** What does not fit the guest's buffers at once, and frames of engines whose RAM has no address. */
  #spill: Mapping | undefined;
  #spillAddress = 0;
  readonly #retry: Timer;
  #transport: VirtioTransport | undefined;
  #fd: number | undefined;
  #unwatch: (() => void) | undefined;
  /** Buffers taken from the receive queue ahead of the frames that go into them, oldest first. */
  readonly #buffers = new ChainFifo(MAX_IOVECS / 2);
  #bufferBytes = 0;
  #vhost: VhostDevice | undefined;
  #lent: readonly QueueWires[] = [];

  constructor(options: NetOptions, wires: NetWires) {
    this.#options = options;
    this.#wires = wires;
    this.#log = wires.log;
    this.isPolled = !options.vhost;
    // Compat: the legacy form offers no offloads, as C; the newer ones do.
    this.#hasHeader = options.offload || options.transport !== 'legacy';
    this.features =
      featureMask(NetFeature.Mac, NetFeature.MergeableBuffers, NetFeature.Status, Feature.IndirectDesc) |
      (options.transport === 'modern' ? 0n : featureMask(Feature.NotifyOnEmpty)) |
      (this.#hasHeader ? offloadFeatures : 0n) |
      (options.transport === 'legacy' ? 0n : featureMask(Feature.EventIdx, Feature.Version1));
    this.#setMac();
    this.#retry = wires.clock.createTimer(() => this.#reopen());
  }

  /** Compat: in C the address a driver wrote stays until the machine is reset; QEMU and the drivers take a reset as here. */
  #setMac(): void {
    for (let i = 0; i < Config.status; i++) this.#config.setUint8(Config.mac + i, this.#wires.mac[i] as number);
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  start(): void {
    const { tap } = this.#options;
    if (tap === undefined) {
      this.#log.warn('no tap=NAME: the link stays down');
      return;
    }
    this.#spill = map(MAX_FRAME + HEADER_BYTES, 'network frame');
    this.#spillAddress = Number(addressOf(this.#spill.bytes));
    try {
      this.#fd = (this.#wires.openTap ?? openTap)(tap, this.#hasHeader);
      this.#config.setUint16(Config.status, LINK_UP, true);
      if (this.#options.vhost) this.#openVhost();
    } catch (error) {
      // Compat: as with C the VM starts without a link.
      this.#log.warn(`${(error as Error).message}: the link stays down`);
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
    if (this.#vhost === undefined || this.#fd === undefined) return undefined;
    return {
      queueCount: 2,
      takeOver: (wires) => this.#lend(this.#vhost as VhostDevice, wires),
      giveBack: () => this.#takeBack(),
    };
  }

  #lend(vhost: VhostDevice, wires: readonly QueueWires[]): boolean {
    const transport = this.#transport as VirtioTransport;
    const accepted = featureMask(...vhostFeatures.filter((bit) => transport.hasFeature(bit)));
    this.#lent = wires;
    try {
      if (this.#hasHeader) this.#negotiateOffloads(this.#fd as number);
      vhost.start(transport.ram, accepted | (this.#hasHeader ? 0n : VHOST_MAKES_HEADER & vhost.features), wires);
      for (let i = 0; i < wires.length; i++) this.#setVhostBackend(vhost, i, this.#fd as number);
      return true;
    } catch (error) {
      this.#log.rationed('warn', () => `${(error as Error).message}: frames go through this process`);
      this.#takeBack();
      return false;
    }
  }

  #setVhostBackend(vhost: VhostDevice, index: number, fd: number): void {
    vhost.ioctl(Vhost.NetSetBackend, Int32Array.of(index, fd), 'VHOST_NET_SET_BACKEND');
  }

  #takeBack(): void {
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

  stop(): void {
    this.#retry.cancel();
    this.#pause();
    if (this.#fd !== undefined) libc.close(this.#fd);
    this.#fd = undefined;
    this.#spill?.dispose();
    this.#spill = undefined;
  }

  suspend(): void {
    this.#pause();
  }

  resume(): void {
    this.#listen();
  }

  reset(): void {
    this.#setMac();
    this.#pause();
    const queue = this.#transport?.queue(RECEIVE);
    if (queue !== undefined) this.#dropBuffers(queue);
  }

  /** The rings they came from are gone. */
  #dropBuffers(queue: Virtqueue): void {
    while (this.#buffers.length > 0) queue.push(this.#buffers.shift(), 0);
    this.#bufferBytes = 0;
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
  get #headerBytes(): number {
    const transport = this.#transport;
    return transport?.isVersion1 === true || transport?.hasFeature(NetFeature.MergeableBuffers) === true
      ? HEADER_BYTES
      : SHORT_HEADER_BYTES;
  }

  driverOk(): void {
    if (this.#fd === undefined || this.#lent.length > 0) return;
    if (this.#hasHeader) this.#negotiateOffloads(this.#fd);
    // What came while no driver was there is out of date.
    for (let i = 0; i < FRAME_BUDGET * 4 && readInto(this.#fd, this.#spillAddress, MAX_FRAME) >= 0; i++);
    this.#listen();
  }

  #negotiateOffloads(fd: number): void {
    const has = (bit: number) => this.#transport?.hasFeature(bit) === true;
    const offloads =
      (has(NetFeature.GuestCsum) ? TunOffload.Csum : 0) |
      (has(NetFeature.GuestTso4) ? TunOffload.Tso4 : 0) |
      (has(NetFeature.GuestTso6) ? TunOffload.Tso6 : 0) |
      (has(NetFeature.GuestEcn) ? TunOffload.TsoEcn : 0);
    if (!setHeaderSize(fd, this.#headerBytes) || !setOffload(fd, offloads)) {
      this.#log.rationed('warn', () => `tap ${this.#options.tap}: offloads are refused`);
    }
  }

  // Waiting for frames.

  #listen(): void {
    if (this.#fd === undefined || this.#lent.length > 0 || this.#unwatch !== undefined) return;
    if (this.#transport?.isDriverOk !== true) return;
    this.#unwatch = watchFd(this.#fd, () => this.#receive());
  }

  #pause(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
  }

  notify(queue: Virtqueue): void {
    if (queue.index === TRANSMIT) {
      this.#transmit(queue);
    } else if (this.#unwatch === undefined) {
      // Buffers are back (Firecracker's CVE-2020-16843: frames that waited for them must not be forgotten).
      this.#listen();
      this.#receive();
    } else {
      // As with C: the driver need not tell of every buffer while frames can still be taken.
      queue.suppressNotify();
    }
  }

  // Guest to host.

  #transmit(queue: Virtqueue): void {
    let budget = FRAME_BUDGET;
    do {
      queue.suppressNotify();
      for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) {
        this.#send(chain);
        // Compat: C reports what it read, Virtio 1.x wants what was written: nothing.
        queue.push(chain, this.#transport?.isVersion1 === true ? 0 : chain.readableBytes);
        if (--budget === 0) break;
      }
      queue.publish();
      if (budget === 0) {
        this.#transport?.notifyLater(queue);
        return;
      }
    } while (queue.allowNotify());
  }

  #send(chain: Chain): void {
    const header = this.#headerBytes;
    const skip = this.#hasHeader ? 0 : header;
    const frame = chain.readableBytes - header;
    if (this.#fd === undefined || frame <= 0 || frame > MAX_FRAME) return;
    const spill = this.#spill as Mapping;
    let result: number;
    if (chain.ram.hasHostAddresses) {
      let pieces = chain.toIovecs(skip, chain.readableBytes - skip, false, this.#iov, 0, MAX_IOVECS);
      if (frame < MIN_FRAME) {
        spill.bytes.fill(0, 0, MIN_FRAME);
        setIovec(this.#iov, pieces++, this.#spillAddress, MIN_FRAME - frame);
      }
      result = writev(this.#fd, this.#iovBytes, pieces);
    } else {
      const count = chain.copyOut(skip, spill.bytes, 0, chain.readableBytes - skip);
      const padded = Math.max(count, MIN_FRAME + header - skip);
      spill.bytes.fill(0, count, padded);
      setIovec(this.#iov, 0, this.#spillAddress, padded);
      result = writev(this.#fd, this.#iovBytes, 1);
    }
    if (result < 0) this.#failed('send', lastErrno());
  }

  // Host to guest.

  /** Take buffers until a frame of the usual size fits, or there are no more. @returns whether any is there. */
  #takeBuffers(queue: Virtqueue, wanted: number): boolean {
    while (this.#bufferBytes < wanted && !this.#buffers.isFull) {
      const chain = queue.pop();
      if (chain === undefined) break;
      if (chain.writableBytes <= this.#headerBytes) {
        // Not even a header fits: of no use, and not ours to keep.
        queue.push(chain, 0);
        continue;
      }
      this.#buffers.push(chain);
      this.#bufferBytes += chain.writableBytes;
    }
    return this.#buffers.length > 0;
  }

  #receive(): void {
    const transport = this.#transport;
    const fd = this.#fd;
    const queue = transport?.queue(RECEIVE);
    // Nobody to receive, a driver that went back to its set-up or broke its ring: frames that wait must cost nothing.
    if (fd === undefined || transport?.isDriverOk !== true || queue?.isReady !== true) {
      this.#pause();
      return;
    }
    const merges = transport.hasFeature(NetFeature.MergeableBuffers);
    const isSegmented = transport.hasFeature(NetFeature.GuestTso4) || transport.hasFeature(NetFeature.GuestTso6);
    const wanted = (isSegmented ? MAX_FRAME : PLAIN_FRAME) + this.#headerBytes;
    if (this.#buffers.length > 0 && this.#buffers.at(0).generation !== queue.generation) this.#dropBuffers(queue);
    queue.suppressNotify();
    for (let budget = FRAME_BUDGET; budget > 0; budget--) {
      if (!this.#takeBuffers(queue, merges ? wanted : 1) && !(queue.allowNotify() && this.#takeBuffers(queue, 1))) {
        // Frames wait in the tap until the driver kicks.
        this.#pause();
        break;
      }
      if (!this.#receiveFrame(queue, fd, merges)) break;
    }
    queue.publish();
  }

  /** @returns false when no frame is waiting, or it found too little room. */
  #receiveFrame(queue: Virtqueue, fd: number, merges: boolean): boolean {
    const header = this.#headerBytes;
    const skip = this.#hasHeader ? 0 : header;
    const first = this.#buffers.at(0);
    const direct = first.ram.hasHostAddresses;
    let pieces = 0;
    let room = 0;
    if (direct) {
      const usable = merges ? this.#buffers.length : 1;
      for (let i = 0; i < usable; i++) {
        const chain = this.#buffers.at(i);
        const from = i === 0 ? skip : 0;
        pieces += chain.toIovecs(from, chain.writableBytes - from, true, this.#iov, pieces, MAX_IOVECS - 1);
        room += chain.iovBytes;
        // No entry left: what follows goes through the spill.
        if (chain.iovBytes < chain.writableBytes - from) break;
      }
    }
    setIovec(this.#iov, pieces++, this.#spillAddress, MAX_FRAME + HEADER_BYTES);
    const got = readv(fd, this.#iovBytes, pieces);
    if (got < 0) {
      const errno = lastErrno();
      if (errno === Errno.EINTR) return true;
      if (errno !== Errno.EAGAIN) this.#failed('receive', errno);
      return false;
    }
    const total = got + skip;
    // More than the buffers at hand: the rest is in the spill, and goes into further ones if the driver merges.
    if (got > room && !this.#copySpill(queue, total, room, skip, got - room, merges)) {
      this.#log.guest(() => `a frame of ${total - header} bytes does not fit the driver's buffers`);
      return true;
    }
    this.#complete(queue, total, skip);
    return true;
  }

  /** @returns false when the frame has to be dropped. */
  #copySpill(queue: Virtqueue, total: number, room: number, skip: number, count: number, merges: boolean): boolean {
    if (merges) this.#takeBuffers(queue, total);
    const usable = merges ? this.#bufferBytes : this.#buffers.at(0).writableBytes;
    if (usable < total) return false;
    const spill = (this.#spill as Mapping).bytes;
    let at = room + skip;
    let done = 0;
    for (let i = 0; i < this.#buffers.length && done < count; i++) {
      const chain = this.#buffers.at(i);
      if (at >= chain.writableBytes) {
        at -= chain.writableBytes;
        continue;
      }
      done += chain.copyIn(at, spill, done, count - done);
      at = 0;
    }
    return true;
  }

  /** The frame and its header take `total` bytes of the buffers at hand. */
  #complete(queue: Virtqueue, total: number, skip: number): void {
    const first = this.#buffers.at(0);
    if (skip > 0) first.fillIn(0, skip, 0);
    let used = 0;
    let left = total;
    while (left > 0) {
      left -= this.#buffers.at(used).writableBytes;
      used++;
    }
    if (this.#headerBytes === HEADER_BYTES) {
      first.writeU8(NUM_BUFFERS, used & 0xff);
      first.writeU8(NUM_BUFFERS + 1, used >>> 8);
    }
    left = total;
    for (let i = 0; i < used; i++) {
      const chain = this.#buffers.shift();
      const bytes = Math.min(left, chain.writableBytes);
      this.#bufferBytes -= chain.writableBytes;
      left -= bytes;
      queue.push(chain, bytes);
    }
  }

  // Trouble with the host.

  #failed(what: string, errno: number): void {
    this.#log.guest(() => `tap ${this.#options.tap}: ${what}: ${describeErrno(errno)}`);
    // EIO: the interface is down, it comes back by itself. The others: it is gone.
    if (errno !== Errno.EBADF && errno !== EBADFD && errno !== Errno.ENODEV && errno !== Errno.ENXIO) return;
    this.#pause();
    if (this.#fd !== undefined) libc.close(this.#fd);
    this.#fd = undefined;
    this.#setLink(false);
    this.#retry.arm(this.#wires.clock.nowNs() + RETRY_NS);
  }

  #reopen(): void {
    try {
      this.#fd = (this.#wires.openTap ?? openTap)(this.#options.tap as string, this.#hasHeader);
    } catch {
      this.#retry.arm(this.#wires.clock.nowNs() + RETRY_NS);
      return;
    }
    this.#log.notice(`tap ${this.#options.tap} is back`);
    if (this.#hasHeader) this.#negotiateOffloads(this.#fd);
    this.#setLink(true);
    this.#listen();
  }

  #setLink(isUp: boolean): void {
    this.#config.setUint16(Config.status, isUp ? LINK_UP : 0, true);
    this.#transport?.configChanged();
  }
}

/** "File descriptor in bad state": what tun says once the interface was deleted. */
const EBADFD = 77;

let readvFn: ReturnType<typeof native> | undefined;
let writevFn: ReturnType<typeof native> | undefined;
let readFn: ReturnType<typeof native> | undefined;

function readv(fd: number, iov: Uint8Array, count: number): number {
  readvFn ??= native('int64_t readv(int, const void *, int)');
  return readvFn(fd, iov, count);
}
function writev(fd: number, iov: Uint8Array, count: number): number {
  writevFn ??= native('int64_t writev(int, const void *, int)');
  return writevFn(fd, iov, count);
}
function readInto(fd: number, address: number, size: number): number {
  readFn ??= native('int64_t read(int, uintptr_t, size_t)');
  return readFn(fd, address, size);
}

export const virtioNet = definePciDriver({
  name: 'virtio-net',
  summary: 'network interface on a tap or macvtap',
  options: NetOptions,
  parseText: parseNetText,
  create: (options, env) => {
    const mac = options.mac ?? defaultMac(env.bdf, options.macSeed);
    return new VirtioPci(new VirtioNet(options, { clock: env.clock, log: env.log, mac }), env, {
      mode: options.transport,
      identity: { legacyDeviceId: 0x1000, type: DeviceType.Net, classCode: 0x020000, hasWindowsId: true },
    });
  },
});
