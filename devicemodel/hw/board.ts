/**
 * The PC that ACRN gives a User VM: platform devices at their fixed places, and the PCI host with what the configuration
 * names. The order of everything is visible here.
 */
import type { Ns16550 } from '../chips/ns16550.ts';
import { formatBdf, type Port } from '../core/address.ts';
import type { Board, BoardFactory, BoardParts } from '../core/board.ts';
import { isFirmware, splitRam } from '../core/boot/loader.ts';
import type { PciSlotConfig, PlatformDeviceConfig } from '../core/config.ts';
import type { CounterBook } from '../core/counters.ts';
import type { Device } from '../core/device.ts';
import { Disposer } from '../core/disposer.ts';
import { BugError, ConfigError } from '../core/errors.ts';
import { buildAcpi } from '../core/firmware/acpi-tables.ts';
import type { TableContributor } from '../core/firmware/contribution.ts';
import { readCpuStates } from '../core/firmware/cpu-states.ts';
import type { E820Range } from '../core/firmware/e820.ts';
import { buildMpTable } from '../core/firmware/mptable.ts';
import { openSharedMemory } from '../core/host/shared-memory.ts';
import type { Registration } from '../core/io-bus.ts';
import { KeptOverLives } from '../core/kept-over-lives.ts';
import { Layout } from '../core/layout.ts';
import { alignUp, MiB } from '../core/units.ts';
import type { Display } from './display/display.ts';
import { acpiInput, isaAml, tableContributors } from './firmware-tables.ts';
import { InputHub } from './input/input-hub.ts';
import { plugInPs2 } from './input/ps2.ts';
import { InterruptWiring } from './interrupts.ts';
import type { HostTree } from './pci/driver.ts';
import type { PciFunction } from './pci/function.ts';
import { PciHost } from './pci/host.ts';
import type { PciBusInput } from './pci/host-aml.ts';
import { attachComPort, comResources } from './pci/lpc.ts';
import type { ManagedFunctions } from './pci/passthru/managed.ts';
import { CmosIo, CmosMemory } from './platform/cmos-io.ts';
import { DebugExit } from './platform/debug-exit.ts';
import { Hpet } from './platform/hpet.ts';
import { I8042, I8042Irq } from './platform/i8042.ts';
import { IoapicPins, intxRouter, PirqRouter } from './platform/ioapic.ts';
import { MmioWindow } from './platform/mmio-window.ts';
import { PIT_GSI, Pit } from './platform/pit.ts';
import type { PlatformDevice } from './platform/platform-device.ts';
import { AcpiPm, SCI_GSI } from './platform/pm.ts';
import { QuietPorts } from './platform/quiet-ports.ts';
import { ResetRegister } from './platform/reset.ts';
import { RTC_IRQ, Rtc } from './platform/rtc.ts';
import { type AnyPlatformDriver, loadPciDriver, platformDrivers } from './registry.ts';
import type { CharBackendPool } from './uart/backends/pool.ts';

/** What the board needs beside the parts of one life. */
export interface PcOptions {
  readonly consoles: CharBackendPool;
  /** Local APIC ids of `count` vCPUs, for the tables. @throws ConfigError if the affinity names too few. */
  readonly lapicIds: (count: number) => readonly number[];
  /** Processors of the machine that the VM may have, a bit each. */
  readonly cpuAffinity?: bigint;
  /** Whose functions are passed through; default: this host's. */
  readonly hostTree?: HostTree;
  /** Its front ends outlive a life; absent where nobody looks. */
  readonly display?: Display;
  /** Holds functions of the host over the lives of the VM; absent in a plan. */
  readonly managed?: ManagedFunctions;
  /** What devices keep over the lives of the VM; closed by whoever made it. Default: it ends with the board. */
  readonly kept?: KeptOverLives;
  /** What devices count, over the lives of the VM. Default: it ends with the board. */
  readonly counters?: CounterBook;
}

/** Of the key in CMOS, as much as virtio-rpmb signs with. */
const RPMB_MAC_KEY_BYTES = 32;
const THIS_HOST: HostTree = { root: '', isPlan: false };

export function pcBoard(options: PcOptions): BoardFactory {
  return async (parts) => {
    const pc = new Pc(parts, options);
    await pc.plugIn();
    return pc;
  };
}

class Pc implements Board {
  readonly pciConfig: PciHost;
  readonly #parts: BoardParts;
  readonly #options: PcOptions;
  readonly #pm: AcpiPm;
  readonly #rtc: Rtc;
  readonly #cmosMemory: CmosMemory;
  readonly #cmosIo: CmosIo;
  readonly #platform: PlatformDevice[];
  /** What tells the guest's tables of itself, beside PCI functions; their order is the order in the tables. */
  readonly #contributors: () => readonly TableContributor[];
  /** Put on the board by options, in their order. */
  readonly #optional: PlatformDevice[] = [];
  readonly #serial: Ns16550[] = [];
  readonly #wiring: InterruptWiring;
  readonly #pirq = new PirqRouter();
  readonly #deviceMemory = new MmioWindow();
  #hasRun = false;
  readonly #pins = new IoapicPins();

  constructor(parts: BoardParts, options: PcOptions) {
    const { hsm, clock, power, events, config, log } = parts;
    this.#parts = parts;
    this.#options = options;
    const wiring = new InterruptWiring(hsm, log.child('irq'));
    this.#cmosMemory = options.kept?.keep('cmos-io', () => new CmosMemory()) ?? new CmosMemory();
    this.#cmosIo = new CmosIo(this.#cmosMemory);
    this.#wiring = wiring;

    const pm = new AcpiPm({
      sci: wiring.level(SCI_GSI),
      power,
      onSoftOff: () => events.emit('event', { type: 'poweroff' }),
      onWake: () => events.emit('wake'),
    });
    this.#pm = pm;
    const ram = splitRam(config.memoryBytes);
    this.#rtc = new Rtc({
      clock,
      irq: wiring.level(RTC_IRQ),
      lowMemoryBytes: ram.lowRamBytes,
      highMemoryBytes: ram.highRamBytes,
      onTimeChanged: (change) =>
        events.emit('event', { type: 'rtc-change', lastTimeS: change.lastS, deltaS: change.deltaS }),
      onAlarm: () => pm.rtcAlarm(),
    });
    const i8042 = new I8042({ keyboardIrq: wiring.edge(I8042Irq.keyboard), auxIrq: wiring.edge(I8042Irq.aux), power });
    const pit = new Pit({ clock, irq: wiring.edge(PIT_GSI) });
    const hpet = new Hpet({
      clock,
      ioapic: {
        pulse: (gsi) => wiring.drive(gsi, 'rising-pulse'),
        set: (gsi, asserted) => wiring.drive(gsi, asserted ? 'high' : 'low'),
      },
      msi: wiring,
      log: log.child('hpet'),
    });
    const input = options.display?.input ?? new InputHub();
    for (const plug of plugInPs2(i8042, input)) parts.undo.add(plug);
    this.#platform = [i8042, this.#rtc, this.#cmosIo, pit, hpet, pm, new ResetRegister(power), new QuietPorts()];
    if (config.debugExit) this.#platform.push(new DebugExit(power));
    const devices = { i8042, rtc: this.#rtc, cmosIo: this.#cmosIo, pirq: this.#pirq, pit, pm, hpet };
    this.#contributors = () =>
      tableContributors({ ...devices, optional: this.#optional }, { com: config.com, isRtvm: config.rtvm });

    this.pciConfig = new PciHost({
      hsm,
      clock,
      power,
      waits: parts.waits,
      log,
      memory: parts.memory,
      pio: parts.pio,
      mmio: parts.mmio,
      router: intxRouter(this.#pins, this.#pirq),
      msi: wiring,
      isaDevices: () => isaAml(this.#contributors()),
      ...(options.hostTree === undefined ? {} : { hostTree: options.hostTree }),
      ...(parts.end === undefined ? {} : { end: parts.end }),
      ...(options.managed === undefined ? {} : { managed: options.managed }),
      ...(options.counters === undefined ? {} : { counterBook: options.counters }),
      charBackend: (user, text) => options.consoles.open(user, text),
      input,
      ...(options.display === undefined ? {} : { display: options.display }),
      sharedMemory: {
        openSharedMemory: (name, sizeBytes) => {
          const { address, ...shared } = openSharedMemory(name, sizeBytes);
          return { ...shared, hostAddress: address };
        },
      },
      rpmbKey: () => this.#cmosMemory.rpmbKey.subarray(0, RPMB_MAC_KEY_BYTES),
      machine: {
        vmName: config.name,
        windows: config.windows,
        virtioMsi: config.virtioMsi,
        virtioPollNs: config.virtioPollNs,
        hasOvmf: config.boot?.kind === 'ovmf',
        isRtvm: config.rtvm,
        vcpuCount: parts.vcpuCount,
        ...(parts.vmid === undefined ? {} : { vmid: parts.vmid }),
      },
    });
  }

  /** Put everything in its place; neither the host nor the hypervisor is asked for anything yet. */
  async plugIn(): Promise<void> {
    const { config, pio, mmio, undo } = this.#parts;
    await this.#addOptionalDevices();
    for (const device of this.#platform) {
      for (const registration of device.attach(pio, mmio)) undo.add(registration);
    }
    this.#storeRpmbKey();
    this.#pirq.use(SCI_GSI);
    // The keyboard's and the clock's irqs are not ones a link may have; the mouse's is.
    this.#pirq.reserve(I8042Irq.aux);
    await this.#addPciFunctions();
    for (const device of this.#optional) {
      for (const registration of device.attach(pio, mmio)) {
        undo.add(registration);
        this.#keepBarsOff(registration);
      }
    }
    // Serial ports hang off the LPC bridge: without one they do not exist. After all others, whose ports COM5 cannot have.
    if (config.pci.some((slot) => slot.driver === 'lpc')) this.#attachSerialPorts();
    this.pciConfig.configure();
    undo.defer(() => this.pciConfig.dispose());
  }

  /** Before each start: firmware takes it away as it reads it. */
  #storeRpmbKey(): void {
    if (this.#parts.config.boot?.kind === 'ovmf') this.#cmosIo.storeRpmbKey();
  }

  async #addPciFunctions(): Promise<void> {
    const { config, log } = this.#parts;
    const companions: PciSlotConfig[] = [];
    for (const slot of config.pci) {
      const driver = await loadPciDriver(slot.driver);
      this.pciConfig.add(slot, driver);
      const { hostTree = THIS_HOST } = this.#options;
      companions.push(...(driver.companions?.(slot.options, hostTree) ?? []));
    }
    for (const slot of companions) {
      const isTaken = this.pciConfig.hasSlot(slot.bdf);
      if (isTaken) log.warn(`${slot.driver} is left out: there is another device at ${formatBdf(slot.bdf)}`);
      else this.pciConfig.add(slot, await loadPciDriver(slot.driver));
    }
  }

  async #addOptionalDevices(): Promise<void> {
    const { config, hsm, log, memory, power, undo, vcpuCount } = this.#parts;
    const { kept = new KeptOverLives() } = this.#options;
    if (this.#options.kept === undefined) undo.defer(() => kept.close());
    const env = {
      keep: kept.keep,
      hsm,
      power,
      machine: { memory, vcpuCount, ...splitRam(config.memoryBytes), firmwareConsole: firmwareConsole(config) },
      hostRoot: this.#options.hostTree?.root ?? '',
      window: this.#deviceMemory,
      reserveIrq: (irq: number) => this.#reserveIrq(irq),
      vcpus: () => this.#vcpus(),
      reservedBelow: () => this.pciConfig.reservedMemory?.base,
    };
    const made = new Map<PlatformDeviceConfig, PlatformDevice>();
    // Addresses are given out driver by driver, as in C.
    for (const driver of platformDrivers as readonly AnyPlatformDriver[]) {
      for (const wanted of config.platform.filter((p) => p.driver === driver.name)) {
        const device = await driver.create(wanted.options, { ...env, log: log.child(driver.name) });
        made.set(wanted, device);
      }
    }
    this.#optional.push(...config.platform.flatMap((wanted) => made.get(wanted) ?? []));
  }

  /** As with C they are given back in the order they were taken; after a failed start the last one first. */
  async #stopOptionalDevices(): Promise<void> {
    const stops = new Disposer();
    const lastFirst = this.#optional.toReversed();
    for (const device of this.#hasRun ? lastFirst : this.#optional) stops.defer(() => device.stop?.());
    await stops.run();
  }

  #reserveIrq(irq: number): void {
    this.#pirq.reserve(irq);
    this.#pins.reserve(irq);
  }

  async start(): Promise<void> {
    const { undo } = this.#parts;
    for (const device of [...this.#platform, ...this.#serial]) {
      undo.defer(() => device.stop?.());
      await device.start?.();
    }
    undo.defer(() => this.#stopOptionalDevices());
    for (const device of this.#optional) await device.start?.();
    undo.defer(() => this.pciConfig.detach());
    undo.defer(() => this.pciConfig.stop());
    await this.pciConfig.start();
    undo.defer(() => this.pciConfig.destroyVdevs(this.#hasRun));
    this.pciConfig.createVdevs();
  }

  writeTables(): void {
    const { memory, hsm, vcpuCount, config } = this.#parts;
    const lapicIds = this.#options.lapicIds(vcpuCount);
    const routes = this.pciConfig.interruptRoutes();
    const acpi = buildAcpi(
      acpiInput({
        cpus: lapicIds.map((lapicId, vcpu) => ({ lapicId, ...readCpuStates(hsm, vcpu) })),
        isRtvm: config.rtvm,
        contributors: this.#contributors(),
        hasIsaBridge: config.pci.some((slot) => slot.driver === 'lpc'),
        buses: [
          {
            bus: 0,
            lastBus: this.pciConfig.lastBus,
            ...this.#firmwareWindows(),
            routes,
            functions: this.pciConfig.aml(),
          },
        ],
        functionTables: this.pciConfig.tables(),
      }),
    );
    const mp = buildMpTable({ lapicIds, lapicPassthrough: config.lapicPt, routes, sciGsi: SCI_GSI });
    for (const table of [...mp, ...acpi]) memory.write(table.gpa, table.bytes);
    for (const device of this.#optional) device.tablesWritten?.(acpi);
  }

  /** A BIOS places BARs anew, wherever its own machine has room, and the guest's kernel moves those that are outside. */
  #firmwareWindows(): Pick<PciBusInput, 'ioWindow' | 'firmwareWindow'> {
    if (this.#parts.config.boot?.kind !== 'bios') return { ioWindow: this.pciConfig.windows().io };
    const base = alignUp(this.#deviceMemory.end, MiB);
    return { ioWindow: Layout.pciIo, firmwareWindow: { base, end: Layout.pciMem32Firmware.end } };
  }

  guestStarted(): void {
    this.#hasRun = true;
  }

  get reservedMemory(): { readonly gpuReserved?: E820Range; readonly softwareSram?: E820Range } {
    const gpu = this.pciConfig.reservedMemory;
    const sram = this.#optional.find((device) => device.reservedMemory !== undefined)?.reservedMemory;
    return {
      ...(gpu === undefined ? {} : { gpuReserved: gpu }),
      ...(sram === undefined ? {} : { softwareSram: sram }),
    };
  }

  /** Of each vCPU in order: the processors of the affinity, lowest first. */
  #vcpus(): Array<{ lapicId: number; pcpu: number }> {
    const { cpuAffinity = 0n } = this.#options;
    const pcpus = [...cpuAffinity.toString(2)].reverse().flatMap((bit, pcpu) => (bit === '1' ? [pcpu] : []));
    const lapicIds = this.#options.lapicIds(this.#parts.vcpuCount);
    return lapicIds.map((lapicId, i) => ({ lapicId, pcpu: pcpus[i] ?? 0 }));
  }

  flush(): void {
    this.#options.consoles.flush();
  }

  settle(isFlushed: boolean): Promise<void> | undefined {
    return this.pciConfig.settle(isFlushed);
  }

  async reset(): Promise<void> {
    this.pciConfig.destroyVdevs();
    await this.pciConfig.resetHostFunctions();
    for (const device of this.#devices) device.reset();
    this.#storeRpmbKey();
    this.pciConfig.idlePins();
  }

  restore(): void {
    this.pciConfig.createVdevs(true);
  }

  suspend(): void {
    for (const device of this.#devices) device.suspend?.();
  }

  resume(): void {
    // Firmware is entered at its reset vector again and asks CMOS why.
    if (isFirmware(this.#parts.config.boot)) this.#rtc.markS3Resume();
    for (const device of this.#devices) device.resume?.();
  }

  pressPowerButton(isUnheardToo = false): boolean {
    const isHeard = this.#pm.isPowerButtonEnabled;
    if (isHeard || isUnheardToo) this.#pm.pressPowerButton();
    return isHeard;
  }

  get #devices(): readonly Device[] {
    return [...this.#platform, ...this.#serial, ...this.#optional, this.pciConfig];
  }

  /**
   * @param argument `SLOT,PATH[,option…]`: a slot of bus 0 (or `BUS:SLOT:FUNCTION`), and what follows `virtio-blk,` on the
   * command line.
   */
  async rescanBlockDevice(argument: string): Promise<boolean> {
    const { log } = this.#parts;
    const [, first, device, fnNumber, text] = /^\s*(\d+)(?::(\d+):(\d+))?,(.+)$/s.exec(argument) ?? [];
    if (first === undefined || text === undefined) {
      log.warn(`blkrescan ${argument}: expected SLOT,PATH or BUS:SLOT:FUNCTION,PATH`);
      return false;
    }
    const fn = this.pciConfig.functionAt(
      device === undefined
        ? { bus: 0, device: Number(first), function: 0 }
        : { bus: Number(first), device: Number(device), function: Number(fnNumber) },
    );
    try {
      if (fn === undefined) throw new ConfigError('there is no device in that slot');
      const { rescanBlock } = await import('./pci/virtio/block/block.ts');
      await rescanBlock(fn, text);
      return true;
    } catch (error) {
      if (error instanceof BugError) throw error;
      log.warn(`blkrescan ${argument}: ${(error as Error).message}`);
      return false;
    }
  }

  async changeMedium(slot: string, port: number, medium: string | undefined): Promise<void> {
    const fn = this.#functionIn(slot);
    if (fn !== undefined && medium !== undefined && this.#isBlock(fn)) {
      if (port !== 0)
        throw new ConfigError(`a virtio-blk has no port ${port}`, { hint: `give the slot alone: ${slot}` });
      const { rescanBlock } = await import('./pci/virtio/block/block.ts');
      await rescanBlock(fn, medium);
      return;
    }
    const { changeMedium } = await import('./pci/ahci/ahci.ts');
    await changeMedium(fn, port, medium);
  }

  async resizeDisk(slot: string, sizeBytes: number | undefined): Promise<number> {
    const { resizeBlock } = await import('./pci/virtio/block/block.ts');
    return resizeBlock(this.#functionIn(slot), sizeBytes);
  }

  async setLink(slot: string, isUp: boolean): Promise<void> {
    const { setCableOf } = await import('./pci/virtio/net/net.ts');
    setCableOf(this.#functionIn(slot), isUp);
  }

  #isBlock(fn: PciFunction): boolean {
    const { pci } = this.#parts.config;
    return pci.some(({ bdf, driver }) => driver === 'virtio-blk' && this.pciConfig.functionAt(bdf) === fn);
  }

  /** @param slot `SLOT` of bus 0, or `BUS:SLOT:FUNCTION`. */
  #functionIn(slot: string): PciFunction | undefined {
    const [bus, device, fnNumber] = slot.includes(':') ? slot.split(':').map(Number) : [0, Number(slot), 0];
    return this.pciConfig.functionAt({
      bus: bus as number,
      device: device as number,
      function: fnNumber as number,
    });
  }

  #attachSerialPorts(): void {
    const { config, pio, undo } = this.#parts;
    for (const com of config.com) {
      const { name, irq } = comResources(com);
      this.#pirq.reserve(irq);
      const { uart, registration } = attachComPort(com, {
        pio,
        irq: this.#wiring.edge(irq),
        backend: this.#options.consoles.open(name, com.backend),
      });
      undo.add(registration);
      this.#keepBarsOff(registration);
      this.#serial.push(uart);
    }
  }

  /** No BAR is placed where it would not be decoded. */
  #keepBarsOff({ range: { base, size } }: Registration): void {
    if (base >= Layout.pciIo.base && base < Layout.pciIo.end) this.pciConfig.allocator.reserveForBoard(base, size);
  }
}

/** Where firmware without a screen of its own talks to people. */
function firmwareConsole({ boot, com, pci }: BoardParts['config']): Port | undefined {
  const com1 = com.find(({ index }) => index === 1);
  if (boot?.kind !== 'bios' || com1 === undefined || !pci.some((slot) => slot.driver === 'lpc')) return undefined;
  return comResources(com1).port;
}
