/**
 * A function of the host given to the guest: its registers, BARs and interrupts are the device's own, and the
 * hypervisor routes them. What is left to the device model is where the BARs go, legacy interrupts, an expansion ROM,
 * graphics memory, and to take the function and give it back in a state that others can use.
 */
import { type BarSpec, Cfg, type ConfigSpace } from '../../../chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Bdf, formatBdf } from '../../../core/address.ts';
import type { InterruptLine } from '../../../core/device.ts';
import { BugError, ConfigError } from '../../../core/errors.ts';
import type {
  HostFunctionAbility,
  MmioMapping,
  PassthroughAbility,
  PcidevAssignment,
  PtdevIntx,
} from '../../../core/hsm/hsm.ts';
import type { HvVdev } from '../../../core/hsm/vdev.ts';
import { definePciDriver, type PciEnv } from '../driver.ts';
import type { PassthroughPciFunction, PassthroughReport, PciFunction, PciIdentity, PciPlacement } from '../function.ts';
import { RootPort } from '../root-port.ts';
import { type FunctionFirmware, firmwareOf } from './firmware.ts';
import { GraphicsMemory, isIntelGraphicsAt } from './gvt-d.ts';
import { type HostFunction, hostFunctions } from './host-function.ts';
import type { HostWaits } from './host-write.ts';
import { IGD_LPC_SLOT } from './igd-lpc.ts';
import { type Inspection, inspect, unavailable } from './inspect.ts';
import { type PassthruOptions, passthruInfo } from './options.ts';
import { findPtmRoot } from './ptm.ts';
import { resetByPowerState, resetFunction } from './reset.ts';
import { ExpansionRom } from './rom.ts';

/** "Unknown or no connection": the hypervisor gives the guest this Interrupt Line. */
const NO_LINE = 0xff;
const CLASS_DISPLAY = 0x03;
const ACRN_HINT = 'leave it out, or run on ACRN';
const BAR_REGISTERS = 6;
/** What a forced end leaves to a device that is well: a reset of its bus takes a second. */
const FORCED_GRACE_MS = 2_000;
const ROM_REGISTER_END = Cfg.ExpansionRom + 4;

/** Steps of taking a function, in the order in which an orderly end undoes them. [passthru_deinit] */
const undoOrder = ['rom', 'stolen memory', 'OpRegion', 'device', 'root port'] as const;
type Step = (typeof undoOrder)[number];

class Passthrough implements PassthroughPciFunction {
  readonly backing = 'passthrough';
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  readonly configBytes = 4096;
  readonly aml: FunctionFirmware['aml'];
  readonly tables: FunctionFirmware['tables'];
  readonly #env: PciEnv;
  readonly #options: PassthruOptions;
  readonly #found: Inspection;
  readonly #fn: HostFunction;
  readonly #rom: ExpansionRom | undefined;
  readonly #graphics: GraphicsMemory | undefined;
  readonly #line: InterruptLine | undefined;
  #rootPort: RootPort | undefined;
  readonly #notes: string[];
  #config: ConfigSpace | undefined;
  #placement: PciPlacement | undefined;
  /** What the hypervisor was told and has to be told back, in the order it was. */
  #undo: { readonly step: Step; readonly run: () => void }[] = [];
  #disconnect: (() => void) | undefined;
  /** Where the hypervisor has it. */
  #virtualBdf: Bdf;
  /** Whether the function was touched, and has to be reset before others get it. */
  #isTaken = false;
  /** It does not come back from a reset. */
  #isHung = false;

  constructor(options: PassthruOptions, env: PciEnv, found: Inspection) {
    const { fn } = found;
    this.#env = env;
    this.#options = options;
    this.#found = found;
    this.#fn = fn;
    this.#notes = [...options.notes];
    this.#virtualBdf = env.bdf;
    this.bars = found.guestBars;
    this.identity = {
      vendorId: fn.vendorId,
      deviceId: fn.deviceId,
      revisionId: fn.revisionId,
      classCode: fn.classCode,
      subsystemVendorId: fn.subsystemVendorId,
      subsystemId: fn.subsystemId,
    };
    this.#rom = this.#readRom();
    this.#graphics = found.isGraphics ? GraphicsMemory.of(fn, found.config, env.log) : undefined;
    this.#line = found.usesIntx ? env.intx() : undefined;
    this.#rootPort = options.enablePtm ? this.#findRootPort() : undefined;
    const firmware = firmwareOf(env, this.identity, options.dsdtFile);
    this.aml = firmware.aml;
    this.tables = firmware.tables;
    for (const note of this.#notes) env.log.warn(note);
  }

  get romBytes(): number | undefined {
    return this.#rom?.sizeBytes;
  }

  get reservedMemory() {
    return this.#graphics?.range;
  }

  configure(config: ConfigSpace, placement: PciPlacement): void {
    this.#config = config;
    this.#placement = placement;
    this.#rom?.place(placement.romAddress ?? 0);
  }

  // Life cycle.

  async start(): Promise<void> {
    const { managed, end } = this.#env;
    end?.ending.throwIfAborted();
    if (this.#options.managed) {
      if (managed === undefined) throw new BugError('a plan is to be started');
      await managed.take(this.#fn, { stop: end?.ending, driver: this.#env.hsm.hostFunctionDriver });
    }
    // Not before: until then its driver uses it.
    this.#isTaken = true;
    if (this.#options.irq !== undefined) {
      this.#env.log.warn(`interrupt line ${this.#options.irq} may be shared with other devices of the host`);
    }
    // What another guest or driver left in it is gone.
    if (!this.#options.noReset) await this.#writeReset({ stop: end?.ending });
    await this.#resetByPowerState();
  }

  async resetHost(): Promise<void> {
    await this.#writeReset({ stop: this.#env.end?.ending });
    await this.#resetByPowerState();
  }

  async stop(): Promise<void> {
    if (!this.#isTaken) return;
    this.#isTaken = false;
    // One that hangs will not be any better for a second reset.
    if (!this.#isHung) await this.#writeReset({ stop: this.#env.end?.forcing, graceMs: FORCED_GRACE_MS });
  }

  reset(): void {
    this.#rom?.reset();
  }

  // The hypervisor.

  attach(): void {
    const { hsm } = this.#env;
    const ability = this.#functions;
    if (this.#rom !== undefined) this.#took('rom', this.#rom.attach(hsm));
    if (this.#graphics !== undefined) {
      this.#map('stolen memory', this.#graphics.stolen);
      if (this.#graphics.opRegion !== undefined) this.#map('OpRegion', this.#graphics.opRegion);
    }
    this.#virtualBdf = this.#plugRootPort() ?? this.#env.bdf;
    const { virtualBdf, physicalBdf } = this.#bdfs;
    ability.assignPcidev(this.#assignment());
    const none = { virtualBdf, physicalBdf, interruptLine: 0, interruptPin: 0, bars: [] };
    this.#took('device', () => ability.deassignPcidev(none));
  }

  connectInterrupt(): void {
    if (this.#line === undefined) return;
    const ability = this.#functions;
    const intx: PtdevIntx = {
      ...this.#bdfs,
      virtualPin: this.#line.gsi,
      physicalPin: this.#found.physicalPin,
      isPicPin: false,
    };
    ability.setPtdevIntx(intx);
    this.#disconnect = () => ability.resetPtdevIntx(intx);
  }

  disconnectInterrupt(): void {
    const disconnect = this.#disconnect;
    this.#disconnect = undefined;
    if (disconnect !== undefined) this.#giveBack('interrupt', disconnect);
  }

  detach(isOrderly: boolean): void {
    const steps = this.#undo.splice(0).reverse();
    if (isOrderly) steps.sort((a, b) => undoOrder.indexOf(a.step) - undoOrder.indexOf(b.step));
    for (const { step, run } of steps) this.#giveBack(step, run);
  }

  #giveBack(what: string, run: () => void): void {
    try {
      run();
    } catch (error) {
      this.#env.log.warn(`${this.#fn.name}: ${what} is not given back: ${(error as Error).message}`);
    }
  }

  #took(step: Step, run: () => void): void {
    this.#undo.push({ step, run });
  }

  #map(step: Step, mapping: MmioMapping): void {
    const ability = this.#memory;
    try {
      // RAM may be there.
      ability.unmapMmio(mapping);
    } catch (error) {
      this.#env.log.info(`${step}: ${(error as Error).message}`);
    }
    ability.mapMmio(mapping);
    this.#took(step, () => ability.unmapMmio(mapping));
  }

  /** @returns where the function goes behind its root port, or undefined if it has none. */
  #plugRootPort(): Bdf | undefined {
    const port = this.#rootPort;
    if (port === undefined || this.#placement === undefined) return undefined;
    const { hsm, log } = this.#env;
    try {
      port.create(hsm, this.#placement);
    } catch (error) {
      log.warn(`no PTM for ${this.#fn.name}: ${(error as Error).message}`);
      // There is no bus below it, and the guest's tables name none.
      port.bus.release();
      this.#rootPort = undefined;
      return undefined;
    }
    this.#took('root port', () => port.destroy(hsm));
    return port.endpointBdf;
  }

  #assignment(): PcidevAssignment {
    const config = this.#config;
    return {
      ...this.#bdfs,
      interruptLine: NO_LINE,
      interruptPin: config?.get8(Cfg.InterruptPin) ?? 0,
      bars: Array.from({ length: BAR_REGISTERS }, (_, i) => config?.get32(Cfg.Bar0 + 4 * i) ?? 0),
      quirk: this.#hasOwnRegisters,
    };
  }

  get #bdfs() {
    return { virtualBdf: this.#virtualBdf, physicalBdf: this.#fn.address };
  }

  get #functions(): HostFunctionAbility {
    const { hostFunctions } = this.#env.hsm;
    if (hostFunctions === undefined) throw new BugError('a hypervisor that gives no functions was let through');
    return hostFunctions;
  }

  /** Of the host, by its physical address. */
  get #memory(): PassthroughAbility {
    const ability = this.#env.hsm.passthrough;
    if (ability === undefined) throw new BugError('a hypervisor that gives no memory of the host was let through');
    return ability;
  }

  /** The hypervisor then leaves configuration accesses to the device model. */
  get #hasOwnRegisters(): boolean {
    return this.#rom !== undefined || this.#graphics !== undefined;
  }

  // Configuration space.

  readConfig(offset: number, size: AccessSize): number {
    if (offset >= Cfg.ExpansionRom && offset < ROM_REGISTER_END) {
      return this.#rom?.read(offset - Cfg.ExpansionRom, size) ?? 0;
    }
    const value = this.#graphics?.readRegister(offset, size);
    if (value !== undefined) return value;
    const own = this.#fn.readConfig(offset, size);
    // A virtual function has no ids of its own (SR-IOV 1.1 §3.4.1.1).
    if (offset >= Cfg.Command || own !== allOnes(size) || !this.#fn.isVirtualFunction) return own;
    const { vendorId, deviceId } = this.identity;
    const ids = ((deviceId << 16) | vendorId) >>> (8 * offset);
    return size === 4 ? ids >>> 0 : ids & (size === 2 ? 0xffff : 0xff);
  }

  writeConfig(offset: number, size: AccessSize, value: number): void {
    if (offset >= Cfg.ExpansionRom && offset < ROM_REGISTER_END) {
      this.#rom?.write(offset - Cfg.ExpansionRom, size, value);
    } else if (this.#graphics?.hasRegister(offset) !== true && !this.#fn.writeConfig(offset, size, value)) {
      this.#env.log.guest(() => `${this.#fn.name}: a write to register ${offset.toString(16)} did not reach it`);
    }
  }

  // For people.

  describeHost(): PassthroughReport {
    const { fn, hostBars, hasMsi, hasMsix, physicalPin } = this.#found;
    const port = this.#rootPort;
    const reserved = this.#graphics?.range;
    return {
      physical: this.#options.physical,
      driver: fn.driver,
      iommuGroup: fn.iommuGroup,
      bars: hostBars.map(({ index, kind, address, sizeBytes }) => ({ index, kind, address, sizeBytes })),
      interrupts: [...(hasMsix ? ['MSI-X'] : []), ...(hasMsi ? ['MSI'] : [])],
      physicalPin: this.#line === undefined ? undefined : physicalPin,
      hasReset: fn.hasReset,
      rootPort: port === undefined || this.#placement === undefined ? undefined : this.#describePort(port),
      reservedMemory: reserved === undefined ? undefined : { base: reserved.base, sizeBytes: reserved.size },
      hasAml: this.aml !== undefined,
      notes: this.#notes,
    };
  }

  #describePort(port: RootPort): { readonly endpoint: string; readonly vdev: HvVdev } {
    return { endpoint: formatBdf(port.endpointBdf), vdev: port.describe(this.#placement as PciPlacement) };
  }

  // Building.

  #readRom(): ExpansionRom | undefined {
    const path = this.#options.romFile;
    if (path === undefined) return undefined;
    if (this.identity.classCode >>> 16 !== CLASS_DISPLAY) {
      this.#notes.push(`romfile= is for display controllers, ${this.#fn.name} is none: it has no ROM`);
      return undefined;
    }
    return ExpansionRom.read(path, this.#env.log);
  }

  #findRootPort(): RootPort | undefined {
    const finding = findPtmRoot(this.#fn, hostFunctions(this.#env.hostTree?.root ?? ''));
    if (finding.kind === 'refused') this.#notes.push(`enable_ptm: no virtual root port: ${finding.why}`);
    if (finding.kind !== 'root-port') return undefined;
    const { port, maxPayload, ptmCapOffset } = finding.root;
    return new RootPort({ physicalBdf: port, maxPayload, bus: this.#env.secondaryBus(), ptmCapOffset });
  }

  async #resetByPowerState(): Promise<void> {
    if (this.#options.d3hotReset && !(await resetByPowerState(this.#fn))) {
      this.#env.log.warn(`d3hot_reset: ${this.#fn.name} has no power management capability`);
    }
  }

  async #writeReset(waits: HostWaits): Promise<void> {
    try {
      // VFIO resets a function that can be when it is opened and closed.
      const isOnceMore = this.#env.hsm.hostFunctionDriver === 'vfio-pci';
      await resetFunction(this.#fn, this.#env.log, waits, isOnceMore);
    } catch (error) {
      this.#isHung = true;
      this.#env.managed?.markHung(this.#fn);
      throw error;
    }
  }
}

/** Stands for a function that the host that is looked at cannot pass through: a plan goes on without it. */
class AbsentFunction implements PassthroughPciFunction {
  readonly backing = 'passthrough';
  readonly identity = { vendorId: 0, deviceId: 0, classCode: 0 };
  readonly bars = [];
  readonly #options: PassthruOptions;
  readonly #why: string;

  constructor(options: PassthruOptions, why: string) {
    this.#options = options;
    this.#why = why;
  }

  describeHost(): PassthroughReport {
    return {
      physical: this.#options.physical,
      bars: [],
      interrupts: [],
      hasReset: false,
      isAbsent: true,
      notes: [this.#why, ...this.#options.notes],
    };
  }
  readConfig(_offset: number, size: AccessSize): number {
    return allOnes(size);
  }
  writeConfig(): void {}
  attach(): void {
    throw unavailable(`there is no PCI function ${this.#options.physical}`);
  }
  detach(): void {}
  reset(): void {}
}

export const passthru = definePciDriver({
  ...passthruInfo,
  companions: (options, { root }) => (isIntelGraphicsAt(root, options.physical) ? [IGD_LPC_SLOT] : []),
  create: (options, env): PciFunction => {
    const host = env.hostTree ?? { root: '', isPlan: false };
    try {
      const found = inspect(options, host);
      if (found.isGraphics && env.machine.isRtvm) {
        throw unavailable('a real-time VM cannot have the graphics of the processor');
      }
      if (found.isGraphics && !host.isPlan && env.hsm.passthrough === undefined) {
        throw unavailable('only ACRN can give a guest the graphics of the processor, with their memory', ACRN_HINT);
      }
      return new Passthrough(options, env, found);
    } catch (error) {
      // A plan shows the rest of the machine.
      if (!host.isPlan || !(error instanceof ConfigError)) throw error;
      return new AbsentFunction(options, error.message);
    }
  },
});
