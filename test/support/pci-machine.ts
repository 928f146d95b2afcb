/**
 * A machine that is only a PCI host: real buses, a hypervisor that writes down what it is asked, wires that remember.
 *
 *   const machine = new PciMachine();
 *   machine.plug('0:5.0', ivshmem, { name: 'hv:/shm0', size: 2, regionId: 0 });
 *   machine.power();                                   // configure, createVdevs
 *   machine.cfgRead('0:5.0', 0x10);                    // as the guest would
 */
import type { AccessSize, Bdf, Gsi } from '../../devicemodel/core/address.ts';
import { allOnes } from '../../devicemodel/core/address.ts';
import type {
  HostFunctionAbility,
  Hsm,
  IrqLineOp,
  MmioMapping,
  PassthroughAbility,
  PcidevAssignment,
  PtdevIntx,
  RamMapping,
} from '../../devicemodel/core/hsm/hsm.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { MmioBus, PioBus } from '../../devicemodel/core/io-bus.ts';
import { GuestMemory } from '../../devicemodel/core/memory.ts';
import { PowerState } from '../../devicemodel/core/power.ts';
import { newWaits } from '../../devicemodel/core/waits.ts';
import type { SharedMemory } from '../../devicemodel/hw/pci/driver.ts';
import { PciHost } from '../../devicemodel/hw/pci/host.ts';
import { ManagedFunctions } from '../../devicemodel/hw/pci/passthru/managed.ts';
import { IoapicPins, intxRouter, PirqRouter } from '../../devicemodel/hw/platform/ioapic.ts';
import { SCI_GSI } from '../../devicemodel/hw/platform/pm.ts';
import type { AnyPciDriver } from '../../devicemodel/hw/registry.ts';
import { FakeCharBackend } from './fake-char-backend.ts';
import { FakeClock } from './fake-clock.ts';
import { FakeMsi, FakePower } from './fake-line.ts';
import { memoryLog } from './memory-log.ts';

export type HsmCallRecord =
  | { readonly name: 'SET_IRQLINE'; readonly gsi: Gsi; readonly op: IrqLineOp }
  | { readonly name: 'CREATE_VDEV' | 'DESTROY_VDEV'; readonly vdev: HvVdev }
  | { readonly name: 'SET_MEMSEG' | 'UNSET_MEMSEG'; readonly mapping: RamMapping }
  | { readonly name: 'ASSIGN_PCIDEV' | 'DEASSIGN_PCIDEV'; readonly assignment: PcidevAssignment }
  | { readonly name: 'SET_PTDEV_INTR' | 'RESET_PTDEV_INTR'; readonly intx: PtdevIntx }
  | { readonly name: 'SET_MMIO' | 'UNSET_MMIO'; readonly mmio: MmioMapping };

/** The calls PCI makes, and nothing else. */
export class PciHsm {
  readonly calls: HsmCallRecord[] = [];
  readonly ownRootPorts: true | undefined = true;
  readonly givesHostFunctions = true;
  /** Throws at the call of this name; cleared by hand. */
  failing: HsmCallRecord['name'] | undefined;
  unmapRam: ((mapping: RamMapping) => void) | undefined;
  readonly passthrough: Omit<
    PassthroughAbility,
    'assignMmiodev' | 'deassignMmiodev' | 'assignPioRegion' | 'deassignPioRegion'
  > = {
    assignPcidev: (assignment) => this.#record({ name: 'ASSIGN_PCIDEV', assignment }),
    deassignPcidev: (assignment) => this.#record({ name: 'DEASSIGN_PCIDEV', assignment }),
    setPtdevIntx: (intx) => this.#record({ name: 'SET_PTDEV_INTR', intx }),
    resetPtdevIntx: (intx) => this.#record({ name: 'RESET_PTDEV_INTR', intx }),
    mapMmio: (mmio) => this.#record({ name: 'SET_MMIO', mmio }),
    unmapMmio: (mmio) => this.#record({ name: 'UNSET_MMIO', mmio }),
  };
  readonly hostFunctions: HostFunctionAbility = this.passthrough;

  setIrqLine(gsi: Gsi, op: IrqLineOp): void {
    this.#record({ name: 'SET_IRQLINE', gsi, op });
  }
  createVdev(vdev: HvVdev): void {
    this.#record({ name: 'CREATE_VDEV', vdev });
  }
  destroyVdev(vdev: HvVdev): void {
    this.#record({ name: 'DESTROY_VDEV', vdev });
  }
  mapRam(mapping: RamMapping): void {
    this.#record({ name: 'SET_MEMSEG', mapping });
  }
  /** Let RAM be taken away again, as some engines can. */
  allowUnmap(): void {
    this.unmapRam = (mapping) => this.#record({ name: 'UNSET_MEMSEG', mapping });
  }
  get names(): string[] {
    return this.calls.map((c) => c.name);
  }

  #record(call: HsmCallRecord): void {
    this.calls.push(call);
    if (this.failing === call.name) throw new Error(`${call.name}: made to fail by the test`);
  }
}

export function bdf(text: string): Bdf {
  const [bus, device, fn] = text.split(/[:.]/).map((part) => Number.parseInt(part, 16));
  return { bus: bus as number, device: device as number, function: fn as number };
}

export class PciMachine {
  readonly pio = new PioBus();
  readonly mmio = new MmioBus();
  readonly hsm = new PciHsm();
  readonly clock = new FakeClock();
  readonly msi = new FakeMsi();
  readonly power_ = new FakePower();
  readonly pirq = new PirqRouter();
  readonly backends: FakeCharBackend[] = [];
  /** What the back ends were asked for. */
  readonly backendUsers: string[] = [];
  readonly shared = new Map<string, SharedMemory & { disposed: number; mends: number; listeners: number }>();
  readonly lines: string[];
  readonly managed: ManagedFunctions;
  /** As a VM that ends would say it. */
  readonly end = new PowerState();
  readonly waits = newWaits(() => {});
  readonly host: PciHost;
  readonly memory: GuestMemory;

  constructor(
    options: {
      readonly hasOvmf?: boolean;
      readonly virtioMsi?: boolean;
      readonly windows?: boolean;
      readonly ramBytes?: number;
      readonly hostRoot?: string;
    } = {},
  ) {
    const { log, lines } = memoryLog();
    this.lines = lines;
    this.managed = new ManagedFunctions(log);
    const { pirq } = this;
    const pins = new IoapicPins();
    pirq.use(SCI_GSI);
    const ram = new Uint8Array(options.ramBytes ?? 0x10_0000);
    this.memory = new GuestMemory([{ base: 0, bytes: ram, hostAddress: undefined }]);
    this.host = new PciHost({
      pio: this.pio,
      mmio: this.mmio,
      router: intxRouter(pins, pirq),
      hsm: this.hsm as unknown as Hsm,
      memory: this.memory,
      clock: this.clock,
      log,
      msi: this.msi,
      power: this.power_,
      waits: this.waits,
      managed: this.managed,
      end: this.end,
      charBackend: (user, text) => {
        this.backendUsers.push(user);
        const backend = new FakeCharBackend(typeof text === 'string' ? text : text.kind);
        this.backends.push(backend);
        return backend;
      },
      sharedMemory: { openSharedMemory: (name, sizeBytes) => this.#openShared(name, sizeBytes) },
      ...(options.hostRoot === undefined ? {} : { hostTree: { root: options.hostRoot, isPlan: false } }),
      machine: {
        vmName: 'test',
        windows: options.windows ?? false,
        virtioMsi: options.virtioMsi ?? false,
        virtioPollNs: undefined,
        hasOvmf: options.hasOvmf ?? false,
        isRtvm: false,
      },
    });
  }

  plug(where: string, driver: AnyPciDriver, options: unknown = {}): this {
    this.host.add({ bdf: bdf(where), driver: driver.name, options, text: '' }, driver);
    return this;
  }

  /** Up to the point where the guest would start. */
  power(): this {
    this.host.configure();
    this.host.createVdevs();
    return this;
  }

  cfgRead(where: string, offset: number, size: AccessSize = 4): number {
    return this.host.readConfig(bdf(where), offset, size);
  }
  cfgWrite(where: string, offset: number, value: number, size: AccessSize = 4): void {
    this.host.writeConfig(bdf(where), offset, size, value);
  }
  inb(port: number): number {
    return this.pio.read(port, 1) ?? 0xff;
  }
  outb(port: number, value: number): void {
    this.pio.write(port, 1, value);
  }
  mmioRead(address: number, size: AccessSize = 4): number {
    return this.mmio.read(address, size) ?? allOnes(size);
  }
  mmioWrite(address: number, value: number, size: AccessSize = 4): void {
    this.mmio.write(address, size, value);
  }
  /** The 256 bytes a guest sees. */
  cfgDump(where: string): string {
    const dwords = Array.from({ length: 64 }, (_, i) => this.cfgRead(where, i * 4));
    return Buffer.from(new Uint32Array(dwords).buffer).toString('hex');
  }
  /** What the interrupt lines were told since the last call. */
  takeIrqs(): string[] {
    const irqs = this.hsm.calls.flatMap((c) => (c.name === 'SET_IRQLINE' ? [`${c.gsi} ${c.op}`] : []));
    this.hsm.calls.length = 0;
    return irqs;
  }

  #openShared(name: string, sizeBytes: number): SharedMemory {
    const memory = {
      bytes: new Uint8Array(sizeBytes),
      hostAddress: 0x7f00_0000_0000n,
      mends: 0,
      listeners: 0,
      mend(): void {
        this.mends++;
      },
      onCut(): () => void {
        this.listeners++;
        return () => void this.listeners--;
      },
      disposed: 0,
      dispose(): void {
        this.disposed++;
      },
    };
    this.shared.set(name, memory);
    return memory;
  }
}
