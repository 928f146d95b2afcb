/** Processor objects of the DSDT and their power states. Spec: ACPI 6.4 chapter 8. */
import {
  type Aml,
  and,
  arg,
  createDWordField,
  device,
  equal,
  ifElse,
  method,
  name,
  type Operand,
  or,
  pkg,
  ret,
  scope,
  text,
  uuid,
} from './aml.ts';
import { AddressSpace, type GenericAddress, register, resourceTemplate } from './aml-resources.ts';
import type { CpuStates, CState, PState } from './cpu-states.ts';

/** One vCPU. */
export type Cpu = CpuStates & { readonly lapicId: number };

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

/** The processors, their power states, and the platform's word that it takes part in CPPC. */
export function processors(cpus: readonly Cpu[]): Aml[] {
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
export function operatingSystemCapabilities(): Aml {
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
