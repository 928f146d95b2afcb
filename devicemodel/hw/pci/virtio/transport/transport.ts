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
import type { Hsm, IoeventfdSpec } from '../../../../core/hsm/hsm.ts';
import type { IoPatience } from '../../../../core/io-patience.ts';
import type { Log } from '../../../../core/log.ts';
import type { AccessGate } from '../../../../core/request-holds.ts';
import type { ThreadPulses } from '../../../../core/thread-pulses.ts';
import { powerOfTwoAtLeast } from '../../../../core/units.ts';
import type { PciEnv } from '../../driver.ts';
import type { EmulatedPciFunction, PciIdentity, PciPlacement } from '../../function.ts';
import { Msi } from '../../msi.ts';
import type { SliceClock } from '../ring/serve-chains.ts';
import { Virtqueue, type VirtqueueHost } from '../ring/virtqueue.ts';
import { Feature, type VirtioDevice, type VirtioTransport } from './device.ts';
import { HandOver } from './hand-over.ts';
import { pciIdentity, type VirtioPciIdentity } from './identity.ts';
import { LEGACY_BAR, MODERN_BAR_BYTES, type ModernLayout, NOTIFY_MULTIPLIER, standardLayout } from './layout.ts';
import { LEGACY_HEADER_BYTES, LegacyReg, LegacyWindow } from './legacy.ts';
import { ModernWindow } from './modern.ts';
import type { TransportMode } from './options.ts';
import { Polling } from './polling.ts';
import { type LendingHost, QueueLending } from './queue-lending.ts';
import { Isr, NO_VECTOR, Status } from './registers.ts';
import { Returning } from './returning.ts';
import type { VirtioRegisters } from './window.ts';

export interface VirtioPciOptions {
  readonly mode: TransportMode;
  readonly identity: VirtioPciIdentity;
  /** Modern: also offer notification by an I/O port, which costs the guest less than memory. Default true. */
  readonly notifyByIo?: boolean;
  /** Where everything is. Default: as most devices have it. */
  readonly layout?: ModernLayout;
  readonly aml?: EmulatedPciFunction['aml'];
}

export class VirtioPci implements EmulatedPciFunction, VirtioTransport, VirtioRegisters, VirtqueueHost, LendingHost {
  readonly backing = 'device-model';
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  readonly aml: EmulatedPciFunction['aml'];
  readonly device: VirtioDevice;
  readonly ram: GuestRam;
  readonly queues: readonly Virtqueue[];
  readonly mode: TransportMode;
  readonly env: PciEnv;
  readonly gate: AccessGate;
  readonly hasNotifyIo: boolean;
  readonly layout: ModernLayout;
  readonly #intx: InterruptLine;
  readonly #msi: Msi;
  readonly #msix: Msix | undefined;
  readonly #legacy: LegacyWindow | undefined;
  readonly #modern: ModernWindow | undefined;
  readonly #polling: Polling | undefined;
  readonly #againTimer: Timer;
  /** Bit n: queue n is to be looked at again. */
  #again: boolean[];
  #placement: PciPlacement | undefined;
  #isKickDecoded = true;
  readonly #lending: QueueLending;
  readonly #handOver: HandOver;
  readonly #returning: Returning;

  // Registers.
  #status = 0;
  /** DEVICE_NEEDS_RESET is set. In a status of its own: the bit means nothing to legacy drivers, who may write it. */
  #needsReset = false;
  #isr = 0;
  #acceptedLow = 0;
  #acceptedHigh = 0;
  queueSelect = 0;
  configVector = NO_VECTOR;
  configGeneration = 0;
  deviceFeatureSelect = 0;
  driverFeatureSelect = 0;

  constructor(device: VirtioDevice, env: PciEnv, options: VirtioPciOptions) {
    this.device = device;
    this.env = env;
    this.gate = env.waits.holds.gate();
    this.mode = options.mode;
    this.layout = options.layout ?? standardLayout;
    this.hasNotifyIo = options.mode !== 'legacy' && (options.notifyByIo ?? true);
    this.ram = new GuestRam(env.memory.chunks);
    this.queues = device.queueSizes.map((size, index) => new Virtqueue(index, size, this.ram, this));
    this.#again = device.queueSizes.map(() => false);
    this.identity = pciIdentity(options.identity, options.mode, env.machine.windows);
    this.aml = options.aml;

    this.#msi = new Msi({ vectors: 1 }, env.msi);
    // One vector per queue and one for the configuration; `--virtio_msi` leaves MSI alone.
    const { msix } = this.layout.bars;
    this.#msix = env.machine.virtioMsi ? undefined : new Msix(device.queueSizes.length + 1, msix, env.msi);
    this.#legacy = options.mode === 'modern' ? undefined : new LegacyWindow(this);
    this.#modern = options.mode === 'legacy' ? undefined : new ModernWindow(this);
    this.bars = this.#barSpecs();

    this.#intx = env.intx();
    this.#againTimer = env.clock.createTimer(() => this.#runAgain());
    const { virtioPollNs } = env.machine;
    this.#polling =
      virtioPollNs !== undefined && device.isPolled !== false ? new Polling(this, env.clock, virtioPollNs) : undefined;
    this.#lending = new QueueLending(this);
    this.#handOver = new HandOver(this, this.#lending, env.clock);
    this.#returning = new Returning(this, this.#lending);
    if (this.#msix !== undefined) this.#msix.onVectorChanged = (vector) => this.#lending.vectorChanged(vector);
    device.attach(this);
  }

  #barSpecs(): BarSpec[] {
    const bars: BarSpec[] = [];
    const { msix, notifyIo, modern } = this.layout.bars;
    if (this.#msix !== undefined) {
      bars.push({ index: msix, kind: 'mem32', sizeBytes: powerOfTwoAtLeast(this.#msix.barBytes) });
    }
    if (this.#legacy !== undefined) {
      const sizeBytes = powerOfTwoAtLeast(LEGACY_HEADER_BYTES.withMsix + this.device.configSizeBytes);
      bars.push({ index: LEGACY_BAR, kind: 'io', sizeBytes });
    }
    if (this.#modern !== undefined) {
      if (this.hasNotifyIo) bars.push({ index: notifyIo, kind: 'io', sizeBytes: 4 });
      bars.push({ index: modern, kind: 'mem64', sizeBytes: MODERN_BAR_BYTES });
    }
    return bars;
  }

  configure(config: ConfigSpace, placement: PciPlacement): void {
    this.#placement = placement;
    const { areStructuresFirst } = this.layout;
    if (areStructuresFirst) this.#modern?.addCapabilities(config);
    this.#msix?.attach(config);
    this.#msi.attach(config);
    this.#modern?.addNotifyIoCapability(config);
    if (!areStructuresFirst) this.#modern?.addCapabilities(config);
  }

  // Life cycle.

  async start(): Promise<void> {
    await this.device.start?.();
  }

  reset(): void {
    this.#resetDevice();
    this.#msix?.reset();
  }

  settle(isFlushed: boolean): Promise<void> | undefined {
    const back = this.#returning.settled();
    if (!isFlushed) return back;
    return back === undefined ? this.device.flush?.() : back.then(() => this.device.flush?.());
  }

  hold(work: Promise<unknown>): void {
    this.#returning.hold(work);
  }

  suspend(): void {
    this.device.suspend?.();
  }

  resume(): void {
    this.device.resume?.();
    this.#lending.resume();
  }

  /** @throws StorageHangError: what is lent is left as it is. */
  async stop(): Promise<void> {
    this.#stopServing();
    await this.#returning.back();
    this.#toPowerOn();
    await this.device.stop?.();
  }

  // BARs.

  readBar(index: BarIndex, offset: number, size: AccessSize): number {
    const { msix, notifyIo, modern } = this.layout.bars;
    if (index === LEGACY_BAR && this.#legacy !== undefined) return this.#legacy.read(offset, size);
    if (index === msix && this.#msix !== undefined) return this.#msix.read(offset, size);
    if (index === modern && this.#modern !== undefined) return this.#modern.read(offset, size);
    if (index === notifyIo && this.hasNotifyIo) return 0;
    return allOnes(size);
  }

  writeBar(index: BarIndex, offset: number, size: AccessSize, value: number): void {
    const { msix, notifyIo, modern } = this.layout.bars;
    if (index === LEGACY_BAR) this.#legacy?.write(offset, size, value);
    else if (index === msix) this.#msix?.write(offset, size, value);
    else if (index === modern) this.#modern?.write(offset, size, value);
    else if (index === notifyIo && this.hasNotifyIo) this.notify(value);
  }

  /** Kicks are registered by address. Whoever gets them sees nothing of the move. */
  barMoved(index: BarIndex, address: Gpa | Port | undefined): void {
    if (index !== this.#kickBar) return;
    this.#isKickDecoded = address !== undefined;
    this.#lending.moveKicks();
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
      this.#returning.whenBack(() => this.device.driverLeft?.());
    }
  }

  #driverOk(): void {
    // A driver may go on without having written features at all.
    this.#applyFeatures();
    // Legacy drivers may have kicked before.
    this.#returning.whenBack(() => this.#beginSession());
  }

  #beginSession(): void {
    this.#polling?.start();
    this.#handOver.newSession();
    const { queueOwner } = this.device;
    const isLent = queueOwner !== undefined && this.#lending.lend(queueOwner);
    // Who asked for polling gets it: the driver is then never to kick.
    if (!isLent && this.#polling === undefined) this.#handOver.allow();
    if (!isLent && this.device.wantsIoeventfd === true) this.#lending.listen();
    this.device.driverOk?.();
  }

  #resetDevice(): void {
    this.#stopServing();
    this.#returning.whenBack(() => this.#toPowerOn());
  }

  /** CVE-2021-36144: nothing that runs later may see the queues of before. */
  #stopServing(): void {
    this.#polling?.stop();
    this.#againTimer.cancel();
    this.#again.fill(false);
    this.#handOver.newSession();
  }

  #toPowerOn(): void {
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
    this.service(queue);
  }

  service(queue: Virtqueue): void {
    if (!queue.isReady || this.#needsReset) return;
    // §2.1.2: nothing is consumed before DRIVER_OK. Legacy drivers are known to kick before it (§3.1.2), and the C
    // device model serves them.
    if ((this.#status & Status.DriverOk) === 0 && this.isVersion1) return;
    if (!this.#lending.passOn(queue)) this.device.notify(queue);
  }

  notifyLater(queue: Virtqueue): void {
    this.#again[queue.index] = true;
    this.#againTimer.arm(this.env.clock.nowNs());
  }

  #runAgain(): void {
    for (let i = 0; i < this.queues.length; i++) {
      if (this.#again[i] === true) {
        this.#again[i] = false;
        this.service(this.queues[i] as Virtqueue);
      }
    }
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
    const { notifyIo, modern } = this.layout.bars;
    return this.isVersion1 ? (this.hasNotifyIo ? notifyIo : modern) : LEGACY_BAR;
  }

  kickSpec({ index }: Virtqueue, fd: number, asyncio: boolean): IoeventfdSpec | undefined {
    const address = this.#isKickDecoded ? this.#placement?.barAddress(this.#kickBar) : undefined;
    if (address === undefined) return undefined;
    const common = { fd, sizeBytes: 2, ...(asyncio ? { asyncio } : {}) } as const;
    if (!this.isVersion1) {
      return { ...common, address: address + LegacyReg.QueueNotify, space: 'pio', dataMatch: BigInt(index) };
    }
    if (this.hasNotifyIo) return { ...common, address, space: 'pio', dataMatch: BigInt(index) };
    const { offset } = this.layout.structures.notify;
    return { ...common, address: address + offset + index * NOTIFY_MULTIPLIER, space: 'mmio' };
  }

  messageOf(queue: Virtqueue): MsiMessage | undefined {
    return this.isMsixEnabled ? this.#msix?.message(queue.vector) : undefined;
  }

  get threads(): ThreadPulses {
    return this.env.waits.threads;
  }

  get patience(): IoPatience {
    return this.env.waits.patience;
  }
  get ending(): AbortSignal | undefined {
    return this.env.end?.ending;
  }
  giveUp(error: Error): void {
    this.env.waits.giveUp(error);
  }
  get name(): string {
    return this.device.name;
  }
  get log(): Log {
    return this.env.log;
  }
  get hsm(): Hsm {
    return this.env.hsm;
  }

  serviceAll(): void {
    for (const queue of this.queues) this.service(queue);
  }

  worked(requests: number): void {
    this.#handOver.worked(requests);
  }

  reclaimQueues(): void {
    const { session } = this.#handOver;
    const goOn = () => {
      if (session !== this.#handOver.session) return;
      if (this.#polling === undefined) this.#handOver.allow();
      this.serviceAll();
    };
    const wait = this.#lending.end();
    if (wait === undefined) goOn();
    else wait.then(goOn, (error: Error) => this.giveUp(error));
  }
}
