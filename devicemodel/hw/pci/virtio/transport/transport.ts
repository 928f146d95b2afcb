/**
 * Virtio over PCI (Virtio 1.2 §4.1): status, features, queues and interrupts of one device, and the PCI function around
 * them. The legacy and the modern register window are in files of their own (window.ts is what they see).
 *
 * BARs, as the C device model has them: 0 legacy I/O window, 1 MSI-X, 2 I/O notification register of modern devices,
 * 4 modern memory window.
 */

import { Msix } from '../../../../chips/msix.ts';
import type { BarIndex, BarSpec, ConfigSpace } from '../../../../chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Gpa, type Port } from '../../../../core/address.ts';
import type { Timer } from '../../../../core/clock.ts';
import type { InterruptLine, MsiMessage } from '../../../../core/device.ts';
import { GuestRam } from '../../../../core/guest-buffers.ts';
import { Eventfd } from '../../../../core/host/eventfd.ts';
import { watchFd } from '../../../../core/host/libc.ts';
import type { IoeventfdSpec } from '../../../../core/hsm/hsm.ts';
import type { PciEnv } from '../../driver.ts';
import type { EmulatedPciFunction, PciIdentity, PciPlacement } from '../../function.ts';
import { Msi } from '../../msi.ts';
import type { SliceClock } from '../ring/serve-chains.ts';
import { Virtqueue, type VirtqueueHost } from '../ring/virtqueue.ts';
import { Feature, type QueueOwner, type VirtioDevice, type VirtioTransport } from './device.ts';
import { LEGACY_HEADER_BYTES, LegacyReg, LegacyWindow } from './legacy.ts';
import { MODERN_BAR_BYTES, ModernOffset, ModernWindow } from './modern.ts';
import type { TransportMode } from './options.ts';
import { Isr, NO_VECTOR, Status, VirtioBar } from './registers.ts';
import type { VirtioRegisters } from './window.ts';

const VIRTIO_VENDOR = 0x1af4;
/** Subsystem vendor for Windows guests: their drivers look for it. */
const ORACLE_VENDOR = 0x108e;
/** §4.1.2.1: device id of a modern function. */
const MODERN_DEVICE_BASE = 0x1040;

/** Polling starts this long after DRIVER_OK, so that firmware and start-up are through. */
const POLL_START_NS = 5e9;
/**
 * A device that serves this many requests within this time gets a data thread. One costs 30 ms of a CPU to start, as much
 * as 3000 kicks through the request page on a fast machine; on a slow one it halves the time of each frame long before
 * that. Firmware and a driver that only looks around never get there.
 */
const BUSY_REQUESTS = 300;
const BUSY_WINDOW_NS = 2e9;

export interface VirtioPciIdentity {
  /** Device id of the legacy and transitional forms. */
  readonly legacyDeviceId: number;
  /** Of function and subsystem, where it is not that of virtio devices. */
  readonly vendorId?: number;
  /** Virtio device type. */
  readonly type: number;
  readonly classCode: number;
  /** Where the C device model differs from "type" for legacy, or from 0x40 and up for modern. */
  readonly subsystemId?: number;
  /** Device id of the modern form, where it is not 0x1040 + type. */
  readonly modernDeviceId?: number;
  /** Of the modern form, where it is not 1. */
  readonly modernRevisionId?: number;
  /** `--windows` changes the subsystem vendor. */
  readonly hasWindowsId?: boolean;
}

export interface VirtioPciOptions {
  readonly mode: TransportMode;
  readonly identity: VirtioPciIdentity;
  /** Modern: also offer notification by an I/O port, which costs the guest less than memory. Default true. */
  readonly notifyByIo?: boolean;
  readonly aml?: EmulatedPciFunction['aml'];
}

/** One queue's kick descriptor while ioeventfds are on. */
interface Kick {
  readonly eventfd: Eventfd;
  readonly spec: IoeventfdSpec;
  readonly unwatch: () => void;
}

/** A queue that is served outside of this thread. */
interface LentQueue {
  readonly queue: Virtqueue;
  readonly kick: Eventfd;
  readonly call: Eventfd;
  readonly spec: IoeventfdSpec | undefined;
  /** The message the call descriptor sends; undefined: it is watched here. */
  irqfd: MsiMessage | undefined;
  unwatch: (() => void) | undefined;
}

export class VirtioPci implements EmulatedPciFunction, VirtioTransport, VirtioRegisters, VirtqueueHost {
  readonly backing = 'device-model';
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  readonly aml: EmulatedPciFunction['aml'];
  readonly device: VirtioDevice;
  readonly ram: GuestRam;
  readonly queues: readonly Virtqueue[];
  readonly mode: TransportMode;
  readonly env: PciEnv;
  readonly hasNotifyIo: boolean;
  readonly #intx: InterruptLine;
  readonly #msi: Msi;
  readonly #msix: Msix | undefined;
  readonly #legacy: LegacyWindow | undefined;
  readonly #modern: ModernWindow | undefined;
  readonly #pollTimer: Timer | undefined;
  readonly #againTimer: Timer;
  /** Bit n: queue n is to be looked at again. */
  #again: boolean[];
  #placement: PciPlacement | undefined;
  readonly #kicks: Kick[] = [];
  readonly #lent: LentQueue[] = [];
  /** Who has the queues: the device's own owner, or a data thread it got for being busy. */
  #owner: QueueOwner | undefined;
  /** The driver's time with the device, by number: what began in another must not end in this. */
  #session = 0;
  #mayGetThread = false;
  #worked = 0;
  #workedSinceNs = 0;

  // Registers.
  #status = 0;
  /** DEVICE_NEEDS_RESET is set. In a status of its own: the bit means nothing to legacy drivers, who may write it. */
  #needsReset = false;
  #isr = 0;
  #acceptedLow = 0;
  #acceptedHigh = 0;
  #polling = false;
  queueSelect = 0;
  configVector = NO_VECTOR;
  configGeneration = 0;
  deviceFeatureSelect = 0;
  driverFeatureSelect = 0;

  constructor(device: VirtioDevice, env: PciEnv, options: VirtioPciOptions) {
    this.device = device;
    this.env = env;
    this.mode = options.mode;
    this.hasNotifyIo = options.mode !== 'legacy' && (options.notifyByIo ?? true);
    this.ram = new GuestRam(env.memory.chunks);
    this.queues = device.queueSizes.map((size, index) => new Virtqueue(index, size, this.ram, this));
    this.#again = device.queueSizes.map(() => false);
    this.identity = pciIdentity(options, env.machine.windows);
    this.aml = options.aml;

    this.#msi = new Msi({ vectors: 1 }, env.msi);
    // One vector per queue and one for the configuration; `--virtio_msi` leaves MSI alone.
    this.#msix = env.machine.virtioMsi ? undefined : new Msix(device.queueSizes.length + 1, VirtioBar.Msix, env.msi);
    this.#legacy = options.mode === 'modern' ? undefined : new LegacyWindow(this);
    this.#modern = options.mode === 'legacy' ? undefined : new ModernWindow(this);
    this.bars = this.#barSpecs();

    this.#intx = env.intx();
    this.#againTimer = env.clock.createTimer(() => this.#runAgain());
    this.#pollTimer =
      env.machine.virtioPollNs !== undefined && device.isPolled !== false
        ? env.clock.createTimer(() => this.#poll())
        : undefined;
    if (this.#msix !== undefined) {
      this.#msix.onVectorChanged = (vector) => {
        for (const lent of this.#lent) if (lent.queue.vector === vector) this.#wireCall(lent);
      };
    }
    device.attach(this);
  }

  #barSpecs(): BarSpec[] {
    const bars: BarSpec[] = [];
    if (this.#msix !== undefined) {
      bars.push({ index: VirtioBar.Msix, kind: 'mem32', sizeBytes: powerOfTwoAtLeast(this.#msix.barBytes) });
    }
    if (this.#legacy !== undefined) {
      const sizeBytes = powerOfTwoAtLeast(LEGACY_HEADER_BYTES.withMsix + this.device.configSizeBytes);
      bars.push({ index: VirtioBar.Legacy, kind: 'io', sizeBytes });
    }
    if (this.#modern !== undefined) {
      if (this.hasNotifyIo) bars.push({ index: VirtioBar.NotifyIo, kind: 'io', sizeBytes: 4 });
      bars.push({ index: VirtioBar.Modern, kind: 'mem64', sizeBytes: MODERN_BAR_BYTES });
    }
    return bars;
  }

  configure(config: ConfigSpace, placement: PciPlacement): void {
    this.#placement = placement;
    this.#msix?.attach(config);
    this.#msi.attach(config);
    this.#modern?.addCapabilities(config);
  }

  // Life cycle.

  async start(): Promise<void> {
    await this.device.start?.();
  }

  reset(): void {
    this.#resetDevice();
    this.#msix?.reset();
  }

  suspend(): void {
    this.#owner?.suspend?.();
    this.device.suspend?.();
  }

  resume(): void {
    this.device.resume?.();
    this.#owner?.resume?.();
  }

  async stop(): Promise<void> {
    this.#resetDevice();
    await this.device.stop?.();
  }

  // BARs.

  readBar(index: BarIndex, offset: number, size: AccessSize): number {
    if (index === VirtioBar.Legacy && this.#legacy !== undefined) return this.#legacy.read(offset, size);
    if (index === VirtioBar.Msix && this.#msix !== undefined) return this.#msix.read(offset, size);
    if (index === VirtioBar.Modern && this.#modern !== undefined) return this.#modern.read(offset, size);
    if (index === VirtioBar.NotifyIo && this.hasNotifyIo) return 0;
    return allOnes(size);
  }

  writeBar(index: BarIndex, offset: number, size: AccessSize, value: number): void {
    if (index === VirtioBar.Legacy) this.#legacy?.write(offset, size, value);
    else if (index === VirtioBar.Msix) this.#msix?.write(offset, size, value);
    else if (index === VirtioBar.Modern) this.#modern?.write(offset, size, value);
    else if (index === VirtioBar.NotifyIo && this.hasNotifyIo) this.notify(value);
  }

  barMoved(index: BarIndex, _address: Gpa | Port | undefined): void {
    // Kicks are registered by address.
    if (index !== this.#kickBar) return;
    if (this.#kicks.length > 0) {
      this.#stopKicks();
      this.#startKicks();
    }
    const owner = this.#owner;
    if (owner !== undefined) {
      this.#stopOwner();
      this.#startOwner(owner);
    }
  }

  // Features.

  get offeredLow(): number {
    return Number(BigInt.asUintN(32, this.device.features));
  }

  get offeredHigh(): number {
    return Number(BigInt.asUintN(32, this.device.features >> 32n));
  }

  get acceptedLow(): number {
    return this.#acceptedLow;
  }

  get acceptedHigh(): number {
    return this.#acceptedHigh;
  }

  hasFeature(bit: number): boolean {
    return bit < 32 ? ((this.#acceptedLow >>> bit) & 1) === 1 : ((this.#acceptedHigh >>> (bit - 32)) & 1) === 1;
  }

  get isVersion1(): boolean {
    return this.hasFeature(Feature.Version1);
  }

  /** The driver writes the features it takes; what was not offered is dropped. */
  acceptFeatures(half: 'low' | 'high', value: number): void {
    // §2.2.1: not after the driver is through with the negotiation.
    // Compat: the C device model goes on to take them from legacy drivers.
    if ((this.#status & (Status.DriverOk | Status.FeaturesOk)) !== 0) {
      this.env.log.guest(() => `${this.device.name}: features written after the negotiation`);
      return;
    }
    if (half === 'low') this.#acceptedLow = (value & this.offeredLow) >>> 0;
    else this.#acceptedHigh = (value & this.offeredHigh) >>> 0;
    this.#applyFeatures();
  }

  #applyFeatures(): void {
    const features = {
      packed: this.hasFeature(Feature.RingPacked) && this.isVersion1,
      indirect: this.hasFeature(Feature.IndirectDesc) || this.#offersIndirectAnyway,
      eventIdx: this.hasFeature(Feature.EventIdx),
      notifyOnEmpty: this.hasFeature(Feature.NotifyOnEmpty) && !this.isVersion1,
    };
    for (const queue of this.queues) queue.setFeatures(features);
    this.device.featuresAccepted?.();
  }

  /** Compat: from legacy drivers the C device model takes indirect descriptors wherever it offered them. */
  get #offersIndirectAnyway(): boolean {
    return !this.isVersion1 && ((this.offeredLow >>> Feature.IndirectDesc) & 1) === 1;
  }

  // Status.

  get status(): number {
    return this.#needsReset ? this.#status | Status.NeedsReset : this.#status;
  }

  get isDriverOk(): boolean {
    return (this.#status & Status.DriverOk) !== 0 && !this.#needsReset;
  }

  /** The driver writes device_status; 0 resets (§2.1, §2.4). */
  writeStatus(value: number, isModern: boolean): void {
    if (value === 0) {
      this.#resetDevice();
      return;
    }
    const before = this.#status;
    // NEEDS_RESET is the device's own bit. Compat: from legacy drivers, which do not know it, C keeps all eight.
    let next = isModern ? value & ~Status.NeedsReset : value;
    if (isModern && (next & Status.FeaturesOk) !== 0 && (before & Status.FeaturesOk) === 0 && !this.isVersion1) {
      // §6.1: VERSION_1 must be accepted; §3.1.1 step 5: the driver reads FEATURES_OK back to learn of it.
      next &= ~Status.FeaturesOk;
    }
    this.#status = next;
    if ((next & Status.DriverOk) !== 0 && (before & Status.DriverOk) === 0) this.#driverOk();
    else if ((next & Status.DriverOk) === 0 && (before & Status.DriverOk) !== 0) {
      this.#stopOwner();
      this.#stopKicks();
    }
  }

  #driverOk(): void {
    // A driver may go on without having written features at all.
    this.#applyFeatures();
    if (this.#pollTimer !== undefined) {
      this.#pollTimer.arm(this.env.clock.nowNs() + POLL_START_NS);
    }
    this.#session++;
    if (this.device.queueOwner !== undefined) this.#startOwner(this.device.queueOwner);
    // Who asked for polling gets it: the driver is then never to kick.
    this.#mayGetThread = this.#owner === undefined && this.#pollTimer === undefined;
    this.#worked = 0;
    this.#workedSinceNs = this.env.clock.nowNs();
    if (this.#lent.length === 0 && this.device.wantsIoeventfd === true) this.#startKicks();
    this.device.driverOk?.();
  }

  #resetDevice(): void {
    // CVE-2021-36144: nothing that runs later may see the queues of before.
    this.#pollTimer?.cancel();
    this.#polling = false;
    this.#againTimer.cancel();
    this.#again.fill(false);
    this.#mayGetThread = false;
    this.#session++;
    this.#stopOwner();
    this.#stopKicks();
    for (const queue of this.queues) queue.reset();
    this.#legacy?.reset();
    this.#modern?.reset();
    this.#acceptedLow = 0;
    this.#acceptedHigh = 0;
    this.queueSelect = 0;
    this.configVector = NO_VECTOR;
    this.configGeneration = 0;
    this.deviceFeatureSelect = 0;
    this.driverFeatureSelect = 0;
    if (this.#isr !== 0) this.#intx.set(false);
    this.#isr = 0;
    this.#status = 0;
    this.#needsReset = false;
    this.device.reset();
  }

  needsReset(reason: string): void {
    this.env.log.guest(() => `${this.device.name}: ${reason}: the device needs a reset`);
    if (this.#needsReset) return;
    const wasRunning = this.isDriverOk;
    this.#needsReset = true;
    // §2.1.2: tell a driver that is up by a configuration interrupt.
    if (wasRunning) this.#configInterrupt();
  }

  // Queues.

  get clock(): SliceClock {
    return this.env.clock;
  }

  queue(index: number): Virtqueue {
    return this.queues[index] as Virtqueue;
  }

  /** The selected queue, or undefined when there is none of that number. */
  get selectedQueue(): Virtqueue | undefined {
    return this.queues[this.queueSelect];
  }

  /** The driver kicks a queue. @param index as the driver wrote it. */
  notify(index: number): void {
    const queue = this.queues[index];
    if (queue === undefined) {
      this.env.log.guest(() => `${this.device.name}: notification for queue ${index} of ${this.queues.length}`);
      return;
    }
    this.#service(queue);
  }

  #service(queue: Virtqueue): void {
    if (!queue.isReady || this.#needsReset) return;
    // §2.1.2: nothing is consumed before DRIVER_OK. Legacy drivers are known to kick before it (§3.1.2), and the C
    // device model serves them.
    if ((this.#status & Status.DriverOk) === 0 && this.isVersion1) return;
    const lent = this.#lent[queue.index];
    if (lent !== undefined) lent.kick.signal();
    else this.device.notify(queue);
  }

  notifyLater(queue: Virtqueue): void {
    this.#again[queue.index] = true;
    this.#againTimer.arm(this.env.clock.nowNs());
  }

  #runAgain(): void {
    for (let i = 0; i < this.queues.length; i++) {
      if (this.#again[i] === true) {
        this.#again[i] = false;
        this.#service(this.queues[i] as Virtqueue);
      }
    }
  }

  /** `--virtio_poll`: look at every queue that is set up, and keep the driver from kicking. */
  #poll(): void {
    const intervalNs = this.env.machine.virtioPollNs;
    if (!this.isDriverOk || intervalNs === undefined) return;
    this.#polling = true;
    for (const queue of this.queues) {
      if (!queue.isReady) continue;
      queue.isPolled = true;
      queue.suppressNotify();
      this.#service(queue);
      // The device may have been reset or broken by what it found.
      if (!this.#polling || !this.isDriverOk) return;
    }
    this.#pollTimer?.arm(this.env.clock.nowNs() + intervalNs);
  }

  broken(queue: Virtqueue, reason: string): void {
    this.needsReset(`queue ${queue.index}: ${reason}`);
  }

  // Interrupts.

  get isMsixEnabled(): boolean {
    return this.#msix?.isEnabled ?? false;
  }

  /** A vector the driver names: one that exists, or none (§4.1.5.1.2). */
  checkedVector(vector: number): number {
    return this.#msix !== undefined && vector < this.#msix.vectors ? vector : NO_VECTOR;
  }

  interrupt(queue: Virtqueue): void {
    if (this.isMsixEnabled) this.#msix?.signal(queue.vector);
    else this.#raise(Isr.Queue);
  }

  configChanged(): void {
    // §4.1.4.3.1. Drivers read the configuration in halves before DRIVER_OK, too.
    this.configGeneration = (this.configGeneration + 1) & 0xff;
    if (this.isDriverOk) this.#configInterrupt();
  }

  #configInterrupt(): void {
    if (this.isMsixEnabled) this.#msix?.signal(this.configVector);
    else this.#raise(Isr.Config);
  }

  #raise(bit: number): void {
    this.#isr |= bit;
    // Both, as the C device model does: the line stays quiet while MSI is on.
    this.#msi.signal(0);
    this.#intx.set(true);
  }

  /** §4.1.4.5: reading acknowledges. */
  readIsr(): number {
    const value = this.#isr;
    this.#isr = 0;
    if (value !== 0) this.#intx.set(false);
    return value;
  }

  // Kicks by ioeventfd.

  get #kickBar(): BarIndex {
    return this.isVersion1 ? (this.hasNotifyIo ? VirtioBar.NotifyIo : VirtioBar.Modern) : VirtioBar.Legacy;
  }

  #kickSpec(index: number, fd: number, asyncio: boolean): IoeventfdSpec | undefined {
    const address = this.#placement?.barAddress(this.#kickBar);
    if (address === undefined) return undefined;
    const common = { fd, sizeBytes: 2, ...(asyncio ? { asyncio } : {}) } as const;
    if (!this.isVersion1) {
      return { ...common, address: address + LegacyReg.QueueNotify, space: 'pio', dataMatch: BigInt(index) };
    }
    return this.hasNotifyIo
      ? { ...common, address, space: 'pio', dataMatch: BigInt(index) }
      : { ...common, address: address + ModernOffset.notify + index * ModernOffset.notifyMultiplier, space: 'mmio' };
  }

  /** Ask the hypervisor to turn kicks of a queue into `eventfd`. @returns undefined when it does not. */
  #assignKick(queue: Virtqueue, eventfd: Eventfd, asyncio: boolean): IoeventfdSpec | undefined {
    const spec = this.#kickSpec(queue.index, eventfd.fd, asyncio);
    if (spec === undefined) return undefined;
    try {
      this.env.hsm.ioeventfd(spec, true);
      return spec;
    } catch (error) {
      // The request page serves the kick just as well, only slower.
      this.env.log.rationed(
        'warn',
        () => `${this.device.name}: queue ${queue.index}: no ioeventfd: ${(error as Error).message}`,
      );
      return undefined;
    }
  }

  #removeKick(spec: IoeventfdSpec): void {
    try {
      this.env.hsm.ioeventfd(spec, false);
    } catch (error) {
      this.env.log.rationed('warn', () => `${this.device.name}: ioeventfd not removed: ${(error as Error).message}`);
    }
  }

  #startKicks(): void {
    for (const queue of this.queues) {
      const eventfd = new Eventfd();
      // Asyncio is used where the hypervisor has it and ignored elsewhere.
      const spec = this.#assignKick(queue, eventfd, true);
      if (spec === undefined) {
        eventfd.dispose();
        continue;
      }
      const unwatch = watchFd(eventfd.fd, () => {
        if (eventfd.take() > 0) this.#service(queue);
      });
      this.#kicks.push({ eventfd, spec, unwatch });
    }
  }

  #stopKicks(): void {
    for (const kick of this.#kicks.splice(0)) {
      kick.unwatch();
      this.#removeKick(kick.spec);
      kick.eventfd.dispose();
    }
  }

  // Queues that are served outside of this thread.

  /** Give the queues to an owner. @returns false when the device has to serve them itself. */
  #startOwner(owner: QueueOwner): boolean {
    this.#owner = owner;
    for (const queue of this.queues.slice(0, owner.queueCount)) {
      if (!queue.isReady) {
        this.env.log.guest(() => `${this.device.name}: queue ${queue.index} is not set up`);
        this.#stopOwner();
        return false;
      }
      const kick = new Eventfd();
      const call = new Eventfd();
      const spec = this.#assignKick(queue, kick, owner.usesAsyncio === true);
      const lent: LentQueue = { queue, kick, call, spec, irqfd: undefined, unwatch: undefined };
      this.#lent.push(lent);
      this.#wireCall(lent);
    }
    this.device.settle?.();
    const wires = this.#lent.map(({ queue, kick, call }) => ({ queue, kickFd: kick.fd, callFd: call.fd }));
    if (owner.takeOver(wires)) {
      // Kicks from before, and those that still come through the request page, are passed on.
      for (const { kick } of this.#lent) kick.signal();
      return true;
    }
    this.#stopOwner();
    return false;
  }

  worked(requests: number): void {
    if (!this.#mayGetThread) return;
    this.#worked += requests;
    if (this.#worked < BUSY_REQUESTS) return;
    const nowNs = this.env.clock.nowNs();
    const isBusy = nowNs - this.#workedSinceNs < BUSY_WINDOW_NS;
    this.#worked = 0;
    this.#workedSinceNs = nowNs;
    // Without MSI-X every interrupt needs the device thread, for the ISR.
    if (isBusy && this.isMsixEnabled) void this.#getThread();
  }

  /** The thread comes up while the device goes on; then the queues are given over between two requests. */
  async #getThread(): Promise<void> {
    this.#mayGetThread = false;
    const session = this.#session;
    try {
      const owner = await this.device.startDataThread?.();
      if (owner === undefined || session !== this.#session || !this.isDriverOk) return;
      if (this.#startOwner(owner)) this.env.log.debug(`${this.device.name}: busy, served by a data thread`);
    } catch (error) {
      this.env.log.rationed('warn', () => `${(error as Error).message}: ${this.device.name} goes on without it`);
    }
  }

  reclaimQueues(): void {
    this.#stopOwner();
    this.#mayGetThread = this.#pollTimer === undefined;
    for (const queue of this.queues) this.#service(queue);
  }

  /** An interrupt goes from the owner straight to the guest by irqfd, or through here where that is not possible now. */
  #wireCall(lent: LentQueue): void {
    const message = this.isMsixEnabled ? this.#msix?.message(lent.queue.vector) : undefined;
    if (
      message?.address === lent.irqfd?.address &&
      message?.data === lent.irqfd?.data &&
      (message !== undefined || lent.unwatch !== undefined)
    ) {
      return;
    }
    this.#unwireCall(lent);
    if (message !== undefined) {
      try {
        this.env.hsm.irqfd(lent.call.fd, message, true);
        lent.irqfd = message;
        return;
      } catch (error) {
        this.env.log.rationed(
          'warn',
          () => `${this.device.name}: queue ${lent.queue.index}: no irqfd: ${(error as Error).message}`,
        );
      }
    }
    lent.unwatch = watchFd(lent.call.fd, () => {
      if (lent.call.take() > 0) this.interrupt(lent.queue);
    });
  }

  #unwireCall(lent: LentQueue): void {
    lent.unwatch?.();
    lent.unwatch = undefined;
    if (lent.irqfd === undefined) return;
    try {
      this.env.hsm.irqfd(lent.call.fd, lent.irqfd, false);
    } catch (error) {
      this.env.log.rationed('warn', () => `${this.device.name}: irqfd not removed: ${(error as Error).message}`);
    }
    lent.irqfd = undefined;
  }

  #stopOwner(): void {
    const owner = this.#owner;
    this.#owner = undefined;
    if (owner === undefined) return;
    owner.giveBack();
    for (const lent of this.#lent.splice(0)) {
      if (lent.spec !== undefined) this.#removeKick(lent.spec);
      this.#unwireCall(lent);
      // What was signalled and not delivered yet.
      if (lent.call.take() > 0) this.interrupt(lent.queue);
      lent.kick.dispose();
      lent.call.dispose();
    }
  }
}

function powerOfTwoAtLeast(value: number): number {
  return 2 ** Math.ceil(Math.log2(value));
}

function pciIdentity(options: VirtioPciOptions, windows: boolean): PciIdentity {
  const { identity, mode } = options;
  const { vendorId = VIRTIO_VENDOR } = identity;
  const subsystemVendorId = windows && identity.hasWindowsId === true ? ORACLE_VENDOR : vendorId;
  const common = { vendorId, classCode: identity.classCode, subsystemVendorId };
  if (mode === 'modern') {
    return {
      ...common,
      deviceId: identity.modernDeviceId ?? MODERN_DEVICE_BASE + identity.type,
      // §4.1.2.1: revision 1 or higher, subsystem id 0x40 or higher tell a modern function from a transitional one.
      revisionId: identity.modernRevisionId ?? 1,
      subsystemId: identity.subsystemId ?? 0x40,
    };
  }
  return {
    ...common,
    deviceId: identity.legacyDeviceId,
    revisionId: 0,
    subsystemId: identity.subsystemId ?? identity.type,
  };
}
