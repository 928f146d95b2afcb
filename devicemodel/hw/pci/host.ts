/**
 * The PCI host: places functions, writes their headers, routes their interrupts and hands their vdevs to the hypervisor.
 * Configuration accesses arrive in config-access.ts; bar-decoder.ts follows what the guest does to BARs. Spec: PCI Local
 * Bus 3.0 chapters 3 and 6.
 */
import type { BarIndex } from '../../chips/pci-config-space.ts';
import { Cfg, Command, ConfigSpace } from '../../chips/pci-config-space.ts';
import { type AccessSize, type Bdf, bdfToNumber, formatBdf, formatSlot, type Gpa } from '../../core/address.ts';
import type { CharBackend } from '../../core/char-backend.ts';
import type { PciSlotConfig } from '../../core/config.ts';
import { CounterBook } from '../../core/counters.ts';
import type { Device, PciConfigAccess } from '../../core/device.ts';
import { Disposer } from '../../core/disposer.ts';
import { attributed, BugError, ConfigError } from '../../core/errors.ts';
import type { DeviceTable, PciFunctionAml } from '../../core/firmware/contribution.ts';
import type { HvVdev } from '../../core/hsm/vdev.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import { Layout } from '../../core/layout.ts';
import { BarAllocator, type BusWindows } from './bar-allocator.ts';
import { BarDecoder, BarRegion } from './bar-decoder.ts';
import { checkBus, numberBuses, PciBuses, type SecondaryBus } from './buses.ts';
import { ConfigAccess, EcamRegion, PassthroughConfig } from './config-access.ts';
import type { PciDriver, PciEnv } from './driver.ts';
import type { PassthroughReport, PciFunction, PciIdentity } from './function.ts';
import { HandedOver } from './handed-over.ts';
import { type InterruptRoute, IntxLine, type IntxRouter, type SlotPin, SlotPins } from './intx.ts';
import { byAddress, configOf, functionOf, newSlot, type Slot } from './slot.ts';

/** Interrupt Line of a function without a pin: "unknown or no connection" (PCI 3.0 §6.2.4). */
const NO_INTERRUPT_LINE = 0xff;

export interface PciHostOptions
  extends Omit<PciEnv, 'bdf' | 'intx' | 'secondaryBus' | 'pirqLinks' | 'charBackend' | 'counters'> {
  /** @param user who opens it, for messages and to find it again after a full reset */
  charBackend(user: string, text: Parameters<PciEnv['charBackend']>[0]): CharBackend;
  /** Of all lives of the VM; default: of this one. */
  readonly counterBook?: CounterBook;
  readonly pio: IoBus;
  readonly mmio: IoBus;
  /** Reservations of ISA irqs are made before {@link PciHost.configure}. */
  readonly router: IntxRouter;
}

/** One function, for `--dry-run`, ACPI and the log. */
export interface PciFunctionReport {
  readonly bdf: Bdf;
  readonly driver: string;
  readonly identity: PciIdentity;
  readonly bars: readonly {
    readonly index: BarIndex;
    readonly kind: string;
    readonly address: number;
    readonly sizeBytes: number;
  }[];
  /** Legacy interrupt: pin 1..4 and its IOAPIC input. */
  readonly intx: { readonly pin: number; readonly gsi: number } | undefined;
  /** What the hypervisor is asked to emulate. */
  readonly vdev: HvVdev | undefined;
  /** Number of the bus below it. */
  readonly secondaryBus: number | undefined;
  /** What it is on the host. */
  readonly passthrough: PassthroughReport | undefined;
}

export class PciHost implements Device, PciConfigAccess {
  readonly #options: PciHostOptions;
  readonly #allocator: BarAllocator;
  /** By {@link bdfToNumber}. */
  readonly #slots = new Map<number, Slot>();
  readonly #access = new ConfigAccess();
  readonly #decoder: BarDecoder;
  readonly #pins = new SlotPins();
  #buses = new PciBuses();
  #windows: BusWindows | undefined;
  readonly #handedOver: HandedOver;
  readonly #started = new Disposer();
  /** In the order of initialisation. */
  #order: Slot[] = [];
  #isRouted = false;
  #ecam: Registration | undefined;
  #isConfigured = false;
  #hasWideIoBars = false;

  constructor(options: PciHostOptions) {
    this.#options = options;
    this.#allocator = new BarAllocator({ hasOvmf: options.machine.hasOvmf });
    this.#decoder = new BarDecoder(options);
    this.#handedOver = new HandedOver(options.hsm, options.log);
  }

  /** Where BARs are placed; passthrough reserves host ranges here before `configure`. */
  get allocator(): BarAllocator {
    return this.#allocator;
  }

  // Building, in this order: add…, configure, createVdevs, start.

  /**
   * Plug a function in. Touches nothing yet.
   * @throws ConfigError if the place is taken or does not exist.
   */
  add(slot: PciSlotConfig, driver: PciDriver): void {
    const plugged = newSlot(slot, driver);
    const key = bdfToNumber(slot.bdf);
    const other = this.#slots.get(key);
    if (other !== undefined) {
      throw new ConfigError(`PCI slot ${formatBdf(slot.bdf)}: ${driver.name} cannot go where ${other.driver.name} is`);
    }
    const twin = driver.isSingle === true ? [...this.#slots.values()].find((s) => s.driver === driver) : undefined;
    if (twin !== undefined) {
      const places = `${formatBdf(twin.bdf)} and ${formatBdf(slot.bdf)}`;
      throw new ConfigError(`only one ${driver.name} can be in a machine, there are two: ${places}`);
    }
    this.#slots.set(key, plugged);
  }

  /**
   * Make the functions, place BARs, write headers, route interrupts, register on the buses. No hypervisor call and
   * nothing on the host is touched, so that a dry run can stop here.
   * @throws ConfigError from a driver, or if a window is full.
   */
  configure(): void {
    if (this.#isConfigured) throw new BugError('PCI host configured twice');
    this.#isConfigured = true;
    // Passthrough functions come first on each bus: their I/O BARs must be where they are on the host.
    const rank = (s: Slot) =>
      (s.bdf.bus << 9) | (s.driver.claimsHostPorts === true ? 0 : 1 << 8) | (bdfToNumber(s.bdf) & 0xff);
    this.#order = [...this.#slots.values()].sort((a, b) => rank(a) - rank(b));
    this.#numberBuses();
    for (const slot of this.#order) this.#make(slot);
    this.#hasWideIoBars = this.#order.some(
      ({ function: fn }) => fn?.backing === 'device-model' && fn.needsWideIoBars === true,
    );
    for (const [i, slot] of this.#order.entries()) {
      this.#place(slot);
      if (this.#order[i + 1]?.bdf.bus !== slot.bdf.bus) this.#finishBus();
    }
    if (this.#order.length === 0) this.#finishBus();
    this.#markMultifunction();
    this.#route();
    for (const slot of this.#order) {
      configOf(slot).seal();
      this.#decoder.update(slot);
      configOf(slot).onControlWritten = () => {
        this.#decoder.update(slot);
        slot.line?.update();
      };
    }
    const range = { base: Layout.ecam.base, size: Layout.ecam.size, name: 'PCI ECAM' };
    this.#ecam = this.#options.mmio.register(range, new EcamRegion(this.#access));
  }

  /**
   * The hypervisor's part: CREATE_VDEV, ASSIGN_PCIDEV and memory of devices in device order, then every INTx pin to its
   * idle level and physical pins to theirs. ACRN takes devices only between CREATE_VM (or RESET_VM) and START_VM. Call it
   * again after `destroyVdevs`.
   * @param arePinsIdle {@link idlePins} was called since.
   * @throws HsmError; what this call did is undone, last first.
   */
  createVdevs(arePinsIdle = false): void {
    try {
      for (const slot of this.#order) this.#handedOver.attach(slot);
      for (const slot of this.#byAddress()) {
        if (slot.line !== undefined && !arePinsIdle) this.#drive(slot.line.slotPin);
        this.#handedOver.connectInterrupt(slot);
      }
    } catch (error) {
      this.destroyVdevs(false);
      throw error;
    }
  }

  /** Every INTx pin to its level after `reset`: in any state of the VM, unlike the rest of `createVdevs`. */
  idlePins(): void {
    for (const { line } of this.#byAddress()) {
      if (line !== undefined) this.#drive(line.slotPin);
    }
  }

  /** DESTROY_VDEV and DEASSIGN_PCIDEV, as `HandedOver.release`. */
  destroyVdevs(isOrderly = true): void {
    this.#handedOver.release(isOrderly);
  }

  /** Give up device memory of the guest, at the end of a VM: a guest that runs on would lose it. Safe twice. */
  detach(): void {
    for (const slot of this.#order) {
      if (slot.function?.backing === 'device-model') slot.function.detach?.();
    }
  }

  // Life cycle.

  async start(): Promise<void> {
    for (const slot of this.#order) {
      const fn = functionOf(slot);
      if (fn.backing === 'hypervisor') continue;
      this.#started.defer(() => fn.stop?.());
      try {
        await fn.start?.();
      } catch (error) {
        throw attributed(`${slot.driver.name} at ${formatBdf(slot.bdf)}`, error);
      }
    }
  }

  /** What functions lent to others comes back. @returns when it is there; undefined: it is. */
  settle(isFlushed: boolean): Promise<void> | undefined {
    const waits = this.#order.flatMap((slot) => {
      const wait = slot.function?.backing === 'device-model' ? slot.function.settle?.(isFlushed) : undefined;
      return wait === undefined ? [] : [wait];
    });
    return waits.length === 0 ? undefined : Promise.all(waits).then(() => {});
  }

  /** Power-on state of every function: header, BARs, PIRQ links, devices. The hypervisor is not called. */
  reset(): void {
    this.#options.router.reset();
    for (const slot of this.#order) {
      slot.line?.reset();
      configOf(slot).reset();
      const fn = functionOf(slot);
      if (fn.backing !== 'hypervisor') fn.reset();
    }
  }

  /** Devices of the host to their power-on state, while neither guest nor hypervisor has them. @throws HostError */
  async resetHostFunctions(): Promise<void> {
    for (const slot of this.#order) {
      if (slot.function?.backing === 'passthrough') await slot.function.resetHost?.();
    }
  }

  suspend(): void {
    for (const slot of this.#order) {
      if (slot.function?.backing === 'device-model') slot.function.suspend?.();
    }
  }

  resume(): void {
    for (const slot of this.#order) {
      if (slot.function?.backing === 'device-model') slot.function.resume?.();
    }
  }

  /** Stop what `start` started, last first. Safe twice. @throws AggregateError after every device was tried. */
  async stop(): Promise<void> {
    await this.#started.run();
  }

  /** Off the buses, for a host that is replaced. */
  dispose(): void {
    this.#ecam?.dispose();
    this.#ecam = undefined;
    for (const slot of this.#order) {
      if (slot.config !== undefined) slot.config.onControlWritten = undefined;
      this.#decoder.remove(slot);
    }
  }

  // What others need to know.

  /** Every function in order of its address. */
  report(): PciFunctionReport[] {
    return this.#byAddress().map((slot) => {
      const fn = functionOf(slot);
      return {
        bdf: slot.bdf,
        driver: slot.driver.name,
        identity: fn.identity,
        bars: slot.bars.map(({ placed: { spec, address } }) => ({
          index: spec.index,
          kind: spec.kind,
          address,
          sizeBytes: spec.sizeBytes,
        })),
        intx: slot.line === undefined ? undefined : { pin: slot.line.slotPin.pin, gsi: slot.line.gsi },
        vdev: fn.backing === 'hypervisor' ? fn.describe(slot) : undefined,
        secondaryBus: slot.bus?.number,
        passthrough: fn.backing === 'passthrough' ? fn.describeHost() : undefined,
      };
    });
  }

  /** Guest memory that is not RAM although it may be within. */
  get reservedMemory(): { readonly base: Gpa; readonly size: number } | undefined {
    for (const { function: fn } of this.#order) {
      if (fn?.backing === 'passthrough' && fn.reservedMemory !== undefined) return fn.reservedMemory;
    }
    return undefined;
  }

  hasSlot(bdf: Bdf): boolean {
    return this.#slots.has(bdfToNumber(bdf));
  }

  /** The function at an address, for control commands that name a slot. */
  functionAt(bdf: Bdf): PciFunction | undefined {
    const slot = this.#slots.get(bdfToNumber(bdf));
    // A number beyond its field would find another function.
    const isThere = slot?.bdf.bus === bdf.bus && slot.bdf.device === bdf.device && slot.bdf.function === bdf.function;
    return isThere ? slot.function : undefined;
  }

  /** For the ACPI _PRT: by bus, device and pin. */
  interruptRoutes(): InterruptRoute[] {
    return this.#pins.routes();
  }

  /** What bus 0 and the buses below it decode, for the ACPI _CRS. @throws BugError before `configure`. */
  windows(): BusWindows {
    if (this.#windows === undefined) throw new BugError('PCI host is not configured');
    return this.#windows;
  }

  /**
   * The highest bus number of the machine, for the ACPI _CRS. A bus that passthrough opened does not count. Compat: with
   * C the root bus ends at 0 then; the hypervisor answers for the port and what is below it all the same.
   */
  get lastBus(): number {
    return Math.max(0, ...this.#order.map(({ bus, driver }) => (driver.isBridge === true ? (bus?.number ?? 0) : 0)));
  }

  /** What functions add to the DSDT, by address; below a bridge, inside an object for the bridge. */
  aml(): PciFunctionAml[] {
    const seen = new Map<PciDriver, number>();
    const parts = this.#byAddress().flatMap((slot) => {
      const ordinal = seen.get(slot.driver) ?? 0;
      seen.set(slot.driver, ordinal + 1);
      const fn = functionOf(slot);
      return fn.backing !== 'hypervisor' && fn.aml !== undefined ? [fn.aml(slot, ordinal)] : [];
    });
    return [...parts.filter(({ bdf }) => bdf.bus === 0), ...this.#buses.amlOfBridges(parts)];
  }

  /** ACPI tables of functions, by address. */
  tables(): DeviceTable[] {
    return this.#byAddress().flatMap((slot) => {
      const fn = functionOf(slot);
      return fn.backing === 'hypervisor' ? [] : (fn.tables?.(slot) ?? []);
    });
  }

  // Configuration accesses.

  readConfig(bdf: Bdf, offset: number, size: AccessSize): number {
    return this.#access.readConfig(bdf, offset, size);
  }

  writeConfig(bdf: Bdf, offset: number, size: AccessSize, value: number): void {
    this.#access.writeConfig(bdf, offset, size, value);
  }

  // Placing.

  /** @throws ConfigError for a slot on a bus that is not there. */
  #numberBuses(): void {
    const members = this.#order.map(({ bdf, driver }) => ({ bdf, isBridge: driver.isBridge === true }));
    this.#buses = numberBuses(members);
    for (const member of members) {
      try {
        checkBus(member, this.#buses.bridges);
      } catch (error) {
        throw new ConfigError(`PCI slot ${formatBdf(member.bdf)}: ${(error as Error).message}`, { cause: error });
      }
    }
  }

  /** The bus below a function; a bridge had its number before anything was placed. */
  #secondaryBusOf(slot: Slot): SecondaryBus {
    slot.bus ??= this.#buses.busBelow(slot.bdf) ?? this.#buses.open(slot.bdf);
    const bus = slot.bus;
    return {
      ...bus,
      release: () => {
        if (slot.bus === bus) slot.bus = undefined;
        bus.release();
      },
    };
  }

  /** Buses are placed one after the other: what they have of each window is one range. */
  #finishBus(): void {
    const last = this.#allocator.finishBus();
    const first = this.#windows ?? last;
    const join = (name: keyof BusWindows) => ({ base: first[name].base, end: last[name].end });
    this.#windows = { io: join('io'), mem32: join('mem32'), mem64: join('mem64') };
  }

  /** Make the function, and keep free what it needs at the host's own addresses. */
  #make(slot: Slot): void {
    const fn = this.#create(slot, whereOf(slot));
    slot.function = fn;
    if (fn.backing !== 'passthrough') return;
    for (const { fixedAddress, sizeBytes } of fn.bars) {
      if (fixedAddress !== undefined) this.#allocator.reserve('io', fixedAddress, sizeBytes);
    }
    const memory = fn.reservedMemory;
    if (memory !== undefined) this.#allocator.reserve('memory', memory.base, memory.size);
  }

  #place(slot: Slot): void {
    const where = whereOf(slot);
    const fn = functionOf(slot);
    const config = new ConfigSpace({
      sizeBytes: fn.configBytes ?? 256,
      headerType: fn.identity.headerType === 1 ? 1 : 0,
      wideIoBars: this.#hasWideIoBars,
    });
    slot.config = config;
    const isHosts = fn.backing === 'passthrough';
    const target = isHosts ? new PassthroughConfig(fn, config) : config;
    this.#access.add(slot.bdf, target, fn.backing === 'device-model' ? fn.gate : undefined);
    config.setIdentity(fn.identity);
    config.set16(Cfg.Command, Command.IoSpace | Command.MemorySpace | Command.BusMaster);
    for (const spec of fn.bars) {
      const placed = isHosts ? this.#allocator.allocateForHost(spec, where) : this.#allocator.allocate(spec, where);
      config.defineBar(placed.spec, placed.address);
      slot.bars.push({
        owner: slot,
        placed,
        region: new BarRegion(fn, spec.index, placed.spec.sizeBytes),
        registration: undefined,
        blockedAt: undefined,
      });
    }
    if (isHosts && fn.romBytes !== undefined) {
      slot.romAddress = this.#allocator.allocate({ index: 0, kind: 'mem32', sizeBytes: fn.romBytes }, where).address;
    }
    if (fn.backing !== 'hypervisor') fn.configure?.(config, slot);
    config.set8(Cfg.InterruptPin, slot.line?.slotPin.pin ?? 0);
  }

  #create(slot: Slot, where: string): PciFunction {
    const { mmio: _mmio, router, counterBook = new CounterBook(), ...shared } = this.#options;
    const env: PciEnv = {
      ...shared,
      bdf: slot.bdf,
      log: shared.log.child(`pci.${formatBdf(slot.bdf)}.${slot.driver.name}`),
      intx: () => this.#lineOf(slot),
      secondaryBus: () => this.#secondaryBusOf(slot),
      charBackend: (text, part) => {
        const user = `${slot.driver.name} at ${formatBdf(slot.bdf)}`;
        return shared.charBackend(part === undefined ? user : `${user} ${part}`, text);
      },
      counters: (kind, part) =>
        counterBook.of(kind, part === undefined ? formatBdf(slot.bdf) : `${formatBdf(slot.bdf)}@${part}`),
      pirqLinks: router,
    };
    try {
      slot.driver.checkHypervisor?.(this.#options.hsm);
      return slot.driver.create(slot.options as never, env);
    } catch (error) {
      if (!(error instanceof ConfigError) || error.message.startsWith('-s ')) throw error;
      const hint = error.hint === undefined ? {} : { hint: error.hint };
      throw new ConfigError(`${where}: ${error.message}`, { cause: error, ...hint });
    }
  }

  /** Multi-function devices use the least loaded pin of their slot, INTA# first. */
  #lineOf(slot: Slot): IntxLine {
    if (slot.line !== undefined) return slot.line;
    if (this.#isRouted) throw new BugError(`pci ${formatBdf(slot.bdf)}: INTx asked for after routing`);
    const isPermitted = () => slot.config?.isIntxPermitted ?? false;
    slot.line = new IntxLine(this.#pins.take(this.#buses.rootPlace(slot.bdf)), isPermitted, (pin) => this.#drive(pin));
    return slot.line;
  }

  #byAddress(): Slot[] {
    return [...this.#order].sort(byAddress);
  }

  #markMultifunction(): void {
    const functions = new Map<number, number>();
    const deviceOf = (slot: Slot) => bdfToNumber(slot.bdf) >>> 3;
    for (const slot of this.#order) functions.set(deviceOf(slot), (functions.get(deviceOf(slot)) ?? 0) + 1);
    for (const slot of this.#order) configOf(slot).setMultifunction((functions.get(deviceOf(slot)) as number) > 1);
  }

  #route(): void {
    const { router } = this.#options;
    for (const slot of this.#byAddress()) {
      const pin = slot.line?.slotPin;
      if (pin !== undefined) {
        pin.gsi ??= router.allocateGsi();
        pin.link ??= router.allocateLink();
      }
      const irq = pin?.link === undefined ? NO_INTERRUPT_LINE : router.readLink(pin.link) & 0xf;
      configOf(slot).set8(Cfg.InterruptLine, irq);
    }
    this.#isRouted = true;
    for (const slot of this.#order) {
      if (slot.function?.backing === 'device-model') slot.function.interruptsRouted?.();
    }
  }

  /** Active low: an asserted pin pulls its IOAPIC input down. */
  #drive(pin: SlotPin): void {
    if (pin.gsi === undefined) return;
    try {
      this.#options.hsm.setIrqLine(pin.gsi, pin.asserting > 0 ? 'low' : 'high');
    } catch (error) {
      // An interrupt that cannot be delivered does not end the VM.
      this.#options.log.guest(() => `INTx on line ${pin.gsi}: ${messageOf(error)}`);
    }
  }
}

/** For messages: the option that asked for it. */
function whereOf({ bdf, driver }: Slot): string {
  return `-s ${formatSlot(bdf)},${driver.name}`;
}

function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
