/**
 * The DSDT: PCI host bridges with their windows and interrupt routing, the ISA bridge with what sits behind it, HPET,
 * TPM, and the processors with their power states. Spec: ACPI 6.4 chapters 6 to 8 and 9.
 *
 * Functions that bring AML of their own hand it in by {@link PciFunctionAml}; `isaBridge` makes that of the LPC bridge.
 */
import type { Bdf, Gpa, Gsi, Port } from '../address.ts';
import { BugError } from '../errors.ts';
import { Layout } from '../layout.ts';
import {
  type Aml,
  and,
  arg,
  call,
  createDWordField,
  createWordField,
  decrement,
  device,
  eisaId,
  equal,
  field,
  findSetRightBit,
  ifElse,
  less,
  local,
  method,
  name,
  type Operand,
  operationRegion,
  or,
  pkg,
  RegionSpace,
  ret,
  scope,
  shiftLeft,
  store,
  terms,
  text,
  uuid,
} from './aml.ts';
import {
  AddressSpace,
  dwordMemory,
  type GenericAddress,
  io,
  irq,
  irqNoFlags,
  memory32Fixed,
  qwordMemory,
  register,
  resourceTemplate,
  wordBusNumber,
  wordIo,
} from './aml-resources.ts';
import type { CpuStates, CState, PState } from './cpu-states.ts';

/** One INTx pin of a slot that some function uses. */
export interface IntxRoute {
  readonly device: number;
  /** 1 = INTA# … 4 = INTD#. */
  readonly pin: number;
  /** Input of the IOAPIC. */
  readonly gsi: Gsi;
  /** PIRQ link of the ISA bridge, 1 = A … 8 = H. */
  readonly link: number;
}

/** AML that a PCI function adds to the scope of its bus. */
export interface PciFunctionAml {
  readonly bdf: Bdf;
  aml(): Aml;
}

export interface PciBusInput {
  readonly bus: number;
  /** I/O ports given to BARs of this bus. */
  readonly ioWindow: { readonly base: Port; readonly end: Port };
  /** In slot, then pin order. */
  readonly routes: readonly IntxRoute[];
  /** In any order; written by device and function. */
  readonly functions: readonly PciFunctionAml[];
}

export interface DsdtInput {
  /** In vCPU order. */
  readonly cpus: readonly (CpuStates & { readonly lapicId: number })[];
  readonly isRtvm: boolean;
  /** Bus 0 first. */
  readonly buses: readonly PciBusInput[];
  /** Whether there is an ISA bridge, whose links the PIC-mode routing names. */
  readonly hasIsaBridge: boolean;
  /** A TPM 2.0 with command response buffer. */
  readonly tpm?: {
    readonly base: Gpa;
    readonly sizeBytes: number;
    readonly logAddress?: Gpa;
    readonly logLength?: number;
  };
}

/** `_ADR` of a PCI function: device in the high word (ACPI 6.4 §6.1.1). */
export function pciAddress(bdf: Bdf): number {
  return bdf.device * 0x1_0000 + bdf.function;
}

const letter = (index: number) => String.fromCharCode(0x41 + index);
const PIRQ_LINKS = 8;

// ---- PCI host bridges -----------------------------------------------------------------------------------------

const CONFIG_PORTS = { base: 0xcf8, size: 8 };

function hostBridgeResources(bus: PciBusInput): Aml {
  const { pciMem32, pciMem64, pciIo } = Layout;
  const list: Aml[] = [wordBusNumber(bus.bus, 1)];
  if (bus.bus === 0) {
    const afterConfig = CONFIG_PORTS.base + CONFIG_PORTS.size;
    // Bus 0 decodes the configuration ports and everything around them that is below the BARs.
    list.push(io(CONFIG_PORTS.base, CONFIG_PORTS.size));
    list.push(wordIo(0, CONFIG_PORTS.base));
    list.push(wordIo(afterConfig, pciIo.base - afterConfig));
  }
  list.push(wordIo(bus.ioWindow.base, bus.ioWindow.end - bus.ioWindow.base));
  list.push(dwordMemory(pciMem32.base, pciMem32.end - pciMem32.base));
  list.push(qwordMemory(pciMem64.base, pciMem64.end - pciMem64.base));
  return resourceTemplate(list);
}

/**
 * `_PRT` (ACPI 6.4 §6.2.13): with the APIC the pin's GSI, with the PIC a link device. Which of the two the guest uses
 * it has said by `_PIC`.
 */
function interruptRouting(bus: PciBusInput, hasIsaBridge: boolean): Aml[] {
  if (bus.routes.length === 0) return [];
  const everyFunction = (route: IntxRoute) => route.device * 0x1_0000 + 0xffff;
  const byLink = (route: IntxRoute) => {
    if (!(route.link >= 1 && route.link <= PIRQ_LINKS)) throw new BugError(`there is no PIRQ link ${route.link}`);
    return pkg([everyFunction(route), route.pin - 1, `ISA.LNK${letter(route.link - 1)}`, 0]);
  };
  const byGsi = (route: IntxRoute) => pkg([everyFunction(route), route.pin - 1, 0, route.gsi]);
  return [
    name('PPRT', pkg(hasIsaBridge ? bus.routes.map(byLink) : [])),
    name('APRT', pkg(bus.routes.map(byGsi))),
    method('_PRT', 0, [ifElse('PICM', [ret('APRT')], [ret('PPRT')])]),
  ];
}

function hostBridge(bus: PciBusInput, hasIsaBridge: boolean): Aml {
  const functions = [...bus.functions].sort((a, b) => pciAddress(a.bdf) - pciAddress(b.bdf));
  return device(`PCI${bus.bus.toString(16).toUpperCase()}`, [
    name('_HID', eisaId('PNP0A03')),
    method('_BBN', 0, [ret(bus.bus)]),
    name('_CRS', hostBridgeResources(bus)),
    ...interruptRouting(bus, hasIsaBridge),
    ...functions.map((f) => f.aml()),
  ]);
}

// ---- ISA bridge -----------------------------------------------------------------------------------------------

export interface ComPort {
  /** 1 = COM1. */
  readonly index: number;
  readonly port: Port;
  readonly irq: number;
}

export interface IsaBridgeInput {
  readonly bdf: Bdf;
  readonly isRtvm: boolean;
  /** The serial ports that exist. */
  readonly com: readonly ComPort[];
}

/** A device that is only an id and resources. */
function plainDevice(object: string, id: string, resources: readonly Aml[], ...more: Aml[]): Aml {
  return device(object, [name('_HID', eisaId(id)), ...more, name('_CRS', resourceTemplate(resources))]);
}

/** PIRQ routing registers of the ISA bridge: bit 7 disables, bits 3:0 are the IRQ (PIIX3 §2.3.5). */
const Pirq = { Disabled: 0x80, IrqMask: 0x0f } as const;
/** IRQs a link may use: all but the timer, keyboard, cascade, RTC and FPU. */
const LINK_IRQS = [3, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15];

/** PIRV(reg): whether a routing register names an IRQ it may use. */
function linkIsValid(): Aml {
  return method('PIRV', 1, [
    ifElse(and(arg(0), Pirq.Disabled), [ret(0)]),
    and(arg(0), Pirq.IrqMask, local(0)),
    ifElse(less(local(0), 3), [ret(0)]),
    ifElse(equal(local(0), 8), [ret(0)]),
    ifElse(equal(local(0), 13), [ret(0)]),
    ret(1),
  ]);
}

/** One interrupt link device (ACPI 6.4 §6.2.12, `PNP0C0F`). */
function link(number: number): Aml {
  const which = letter(number - 1);
  const routing = `PIR${which}`;
  const current = `CB${number.toString(16).toUpperCase().padStart(2, '0')}`;
  const currentMask = `CIR${which}`;
  const wantedMask = `SIR${which}`;
  const shared = { level: true, activeLow: true, shared: true };
  // The IRQ mask is the second byte of an IRQ descriptor.
  const maskAt = 1;
  return device(`LNK${which}`, [
    name('_HID', eisaId('PNP0C0F')),
    name('_UID', number),
    method('_STA', 0, [ifElse(call('PIRV', routing), [ret(0x0b)], [ret(0x09)])]),
    name('_PRS', resourceTemplate([irq(shared, LINK_IRQS)])),
    name(current, resourceTemplate([irq(shared, [])])),
    createWordField(current, maskAt, currentMask),
    method('_CRS', 0, [
      and(routing, Pirq.Disabled | Pirq.IrqMask, local(0)),
      ifElse(call('PIRV', local(0)), [shiftLeft(1, local(0), currentMask)], [store(0, currentMask)]),
      ret(current),
    ]),
    method('_DIS', 0, [store(Pirq.Disabled, routing)]),
    method('_SRS', 1, [
      createWordField(arg(0), maskAt, wantedMask),
      findSetRightBit(wantedMask, local(0)),
      // FindSetRightBit counts from one.
      store(decrement(local(0)), routing),
    ]),
  ]);
}

/** The LPC bridge and the legacy devices behind it, for `PciBusInput.functions` of bus 0. */
export function isaBridge(input: IsaBridgeInput): PciFunctionAml {
  const pirqFields = (first: number) =>
    Array.from({ length: 4 }, (_, i) => ({ name: `PIR${letter(first + i)}`, bits: 8 }));
  const keyboardPorts = [io(0x60, 1), io(0x64, 1)];
  const body = () => [
    name('_ADR', pciAddress(input.bdf)),
    operationRegion('LPCR', RegionSpace.PciConfig, 0, 0x100),
    field('LPCR', {}, [{ offset: 0x60 }, ...pirqFields(0), { offset: 0x68 }, ...pirqFields(4)]),
    plainDevice('KBD', 'PNP0303', [...keyboardPorts, irqNoFlags(1)]),
    plainDevice('MOU', 'PNP0F13', [...keyboardPorts, irqNoFlags(12)]),
    plainDevice('RTC', 'PNP0B00', [io(0x70, 2), irqNoFlags(8)]),
    ...input.com.map((com) =>
      plainDevice(`COM${com.index}`, 'PNP0501', [io(com.port, 8), irqNoFlags(com.irq)], name('_UID', com.index)),
    ),
    // Motherboard resources: nothing else may be put here.
    plainDevice('SIO', 'PNP0C02', [
      io(0x72, 6), // extended RTC
      io(0x61, 1), // NMI status and control
      io(0x4d0, 2), // ELCR
      memory32Fixed(Layout.ecam.base, Layout.ecam.size),
      io(0x84, 1), // POST
      io(0xb2, 1), // SMI command
      io(0x400, 8), // PM1 blocks
    ]),
    linkIsValid(),
    ...Array.from({ length: PIRQ_LINKS }, (_, i) => link(i + 1)),
    ...(input.isRtvm ? [] : [plainDevice('PIC', 'PNP0000', [io(0x20, 2), io(0xa0, 2), irqNoFlags(2)])]),
    plainDevice('TIMR', 'PNP0100', [io(0x40, 4), irqNoFlags(0)]),
  ];
  return { bdf: input.bdf, aml: () => device('ISA', body()) };
}

// ---- processors -----------------------------------------------------------------------------------------------

const cpuName = (index: number) => `PR${index.toString().padStart(2, '0')}`;

function registerBuffer(at: GenericAddress): Aml {
  return resourceTemplate([register(at)]);
}

/** `_PSS` (ACPI 6.4 §8.4.6.2). */
function performanceStates(states: readonly PState[]): Aml {
  const one = (s: PState) =>
    pkg([s.coreFrequencyMhz, s.powerMw, s.transitionLatencyUs, s.busMasterLatencyUs, s.control, s.status]);
  return method('_PSS', 0, [ret(pkg(states.map(one)))]);
}

/** `_CST` (ACPI 6.4 §8.4.2.1). */
function idleStates(states: readonly CState[]): Aml {
  const one = (s: CState) => pkg([registerBuffer(s.entry), s.type, s.latencyUs, s.powerMw]);
  return method('_CST', 0, [ret(pkg([states.length, ...states.map(one)]))]);
}

/** Spaces `_CST` entries may be in: those ASL has a name for. */
const CST_SPACES: ReadonlySet<number> = new Set(Object.values(AddressSpace));

/** `_PCT` (ACPI 6.4 §8.4.6.1): control and status are model-specific registers. */
function performanceControl(): Aml {
  const fixed = registerBuffer({
    space: AddressSpace.FixedHardware,
    bitWidth: 0,
    bitOffset: 0,
    accessSize: 0,
    address: 0,
  });
  return method('_PCT', 0, [ret(pkg([fixed, fixed]))]);
}

/** Intel SDM volume 4: the registers behind hardware-controlled performance states. */
const Msr = {
  PlatformInfo: 0xce,
  Mperf: 0xe7,
  Aperf: 0xe8,
  PmEnable: 0x770,
  HwpCapabilities: 0x771,
  HwpRequest: 0x774,
  HwpStatus: 0x777,
} as const;

/** `_CPC` revision 3 (ACPI 6.4 §8.4.7.1), entries in the order of table 8.18. */
function continuousPerformance(): Aml {
  const msr = (address: number, bitOffset: number, bitWidth = 8) =>
    registerBuffer({ space: AddressSpace.FixedHardware, bitWidth, bitOffset, accessSize: 4, address });
  const none = registerBuffer({
    space: AddressSpace.SystemMemory,
    bitWidth: 0,
    bitOffset: 0,
    accessSize: 0,
    address: 0,
  });
  const entries: Operand[] = [
    msr(Msr.HwpCapabilities, 0), // highest performance
    msr(Msr.PlatformInfo, 8), // nominal performance
    msr(Msr.HwpCapabilities, 16), // lowest nonlinear performance
    msr(Msr.HwpCapabilities, 24), // lowest performance
    msr(Msr.HwpCapabilities, 8), // guaranteed performance
    msr(Msr.HwpRequest, 16), // desired performance
    msr(Msr.HwpRequest, 0), // minimum performance
    msr(Msr.HwpRequest, 8), // maximum performance
    none, // performance reduction tolerance
    none, // time window
    none, // counter wraparound time
    msr(Msr.Mperf, 0, 64), // reference performance counter
    msr(Msr.Aperf, 0, 64), // delivered performance counter
    msr(Msr.HwpStatus, 1, 2), // performance limited
    msr(Msr.PmEnable, 0, 1), // CPPC enable
    1, // autonomous selection supported
    msr(Msr.HwpRequest, 32, 10), // autonomous activity window
    msr(Msr.HwpRequest, 24), // energy performance preference
    0, // reference performance
    0, // lowest frequency
    0, // nominal frequency
  ];
  const revision = 3;
  return method('_CPC', 0, [ret(pkg([entries.length + 2, revision, ...entries]))]);
}

/** A method that hands on what another processor has. `_PPC` of the first is a name, the others are methods. */
function sameAs(first: number, object: string): Aml {
  return method(object, 0, [ret(`^^${cpuName(first)}.${object}`)]);
}

function processors(cpus: DsdtInput['cpus']): Aml[] {
  const hasPss = (cpu: CpuStates) => Array.isArray(cpu.pStates) && cpu.pStates.length > 0;
  // Compat: C describes processor 0 and points the others at it even if processor 0 has nothing to point at.
  const firstPss = cpus.findIndex(hasPss);
  const firstCpc = cpus.findIndex((cpu) => cpu.pStates === 'continuous');
  const devices = cpus.map((_, i) => device(cpuName(i), [name('_HID', text('ACPI0007')), name('_UID', i)]));
  const states = cpus.map((cpu, i) => {
    const body: Aml[] = [];
    if (Array.isArray(cpu.pStates) && cpu.pStates.length > 0) body.push(performanceStates(cpu.pStates));
    if (cpu.cStates.length > 0 && cpu.cStates.every((s) => CST_SPACES.has(s.entry.space))) {
      body.push(idleStates(cpu.cStates));
    }
    if (hasPss(cpu)) {
      if (i === firstPss) body.push(name('_PPC', 0), performanceControl());
      else body.push(sameAs(firstPss, '_PPC'), sameAs(firstPss, '_PCT'));
    }
    if (cpu.pStates === 'continuous') {
      body.push(i === firstCpc ? continuousPerformance() : sameAs(firstCpc, '_CPC'));
    }
    return scope(`_SB.${cpuName(i)}`, body);
  });
  return [scope('_SB', devices), ...states];
}

/** Platform-wide capabilities (ACPI 6.4 §6.2.11.2). */
const OSC_UUID = '0811b06e-4a27-44f9-8d60-3cbbc22e7b48';
/** Capability DWORD 2, bit 6: CPPC version 2. */
const OSC_CPPC2 = 0x40;
/** Status DWORD: what was wrong with the request. */
const OscStatus = { Failure: 0x02, UnrecognizedUuid: 0x06, UnrecognizedRevision: 0x0a } as const;

/** `_SB._OSC`: says yes to CPPC. Only with continuous P-states. */
function operatingSystemCapabilities(): Aml {
  const fail = (status: number) => [and('STS0', 0xffff_ff00, 'STS0'), or('STS0', status, 'STS0')];
  return scope('_SB', [
    method('_OSC', 4, [
      createDWordField(arg(3), 0, 'STS0'),
      createDWordField(arg(3), 4, 'CAP0'),
      ifElse(
        equal(arg(0), uuid(OSC_UUID)),
        [
          ifElse(
            equal(arg(1), 1),
            [ifElse(and('CAP0', OSC_CPPC2), [and('CAP0', OSC_CPPC2, 'CAP0')], fail(OscStatus.Failure))],
            fail(OscStatus.UnrecognizedRevision),
          ),
        ],
        fail(OscStatus.UnrecognizedUuid),
      ),
      ret(arg(3)),
    ]),
  ]);
}

// ---- the whole ------------------------------------------------------------------------------------------------

/** `_Sx` packages: SLP_TYP values to write to the PM1 control register (ACPI 6.4 §7.4.2). */
function sleepStates(): Aml[] {
  return [name('_S3', pkg([3, 0])), name('_S5', pkg([5, 0]))];
}

function tpmDevice(tpm: NonNullable<DsdtInput['tpm']>): Aml {
  return scope('_SB', [
    device('TPM', [
      name('_HID', text('MSFT0101')),
      name('_CRS', resourceTemplate([memory32Fixed(tpm.base, tpm.sizeBytes)])),
      method('_STA', 0, [ret(0x0f)]),
    ]),
  ]);
}

/** The definition block's term list: what follows the table header. */
export function dsdtBody(input: DsdtInput): Aml {
  const isContinuous = input.cpus[0]?.pStates === 'continuous';
  return terms([
    ...sleepStates(),
    // Interrupt model: 0 = PIC, 1 = APIC; the guest tells it by _PIC (ACPI 6.4 §5.8.1).
    name('PICM', 0),
    method('_PIC', 1, [store(arg(0), 'PICM')]),
    scope(
      '_SB',
      input.buses.map((bus) => hostBridge(bus, input.hasIsaBridge)),
    ),
    scope('_SB.PCI0', [
      device('HPET', [
        name('_HID', eisaId('PNP0103')),
        name('_UID', 0),
        name('_CRS', resourceTemplate([memory32Fixed(Layout.hpet.base, Layout.hpet.size)])),
      ]),
    ]),
    ...(input.tpm === undefined ? [] : [tpmDevice(input.tpm)]),
    ...(isContinuous ? [operatingSystemCapabilities()] : []),
    ...processors(input.cpus),
  ]);
}
