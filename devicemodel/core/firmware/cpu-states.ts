/**
 * P-states and C-states the hypervisor grants each vCPU (PM_GET_CPU_STATE), decoded for the processor objects of the
 * DSDT. The structs are `acrn_pstate_data` and `acrn_cstate_data` of acrn_common.h.
 */
import type { Hsm } from '../hsm/hsm.ts';
import type { GenericAddress } from './aml-resources.ts';

/** One entry of `_PSS` (ACPI 6.4 §8.4.6.2). Low 32 bits of what the hypervisor said. */
export interface PState {
  readonly coreFrequencyMhz: number;
  readonly powerMw: number;
  readonly transitionLatencyUs: number;
  readonly busMasterLatencyUs: number;
  readonly control: number;
  readonly status: number;
}

/** One entry of `_CST` (ACPI 6.4 §8.4.2.1). */
export interface CState {
  readonly entry: GenericAddress;
  /** 1 = C1, 2 = C2, 3 = C3. */
  readonly type: number;
  readonly latencyUs: number;
  readonly powerMw: number;
}

export interface CpuStates {
  /** Discrete P-states; `continuous`: hardware-controlled, described by `_CPC`; undefined: nothing is offered. */
  readonly pStates: readonly PState[] | 'continuous' | undefined;
  /** Empty: nothing is offered. */
  readonly cStates: readonly CState[];
}

const NO_STATES: CpuStates = { pStates: undefined, cStates: [] };

const PSTATE_BYTES = 48;
const CSTATE_BYTES = 32;

function decodePState(raw: Uint8Array): PState {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  const low = (field: number) => view.getUint32(field * 8, true);
  return {
    coreFrequencyMhz: low(0),
    powerMw: low(1),
    transitionLatencyUs: low(2),
    busMasterLatencyUs: low(3),
    control: low(4),
    status: low(5),
  };
}

function decodeCState(raw: Uint8Array): CState {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  return {
    entry: {
      space: view.getUint8(0),
      bitWidth: view.getUint8(1),
      bitOffset: view.getUint8(2),
      accessSize: view.getUint8(3),
      address: view.getBigUint64(4, true),
    },
    type: view.getUint8(12),
    latencyUs: view.getUint32(16, true),
    powerMw: view.getUint32(24, true),
  };
}

/** Each of `count` answers decoded, or undefined if one is missing or short: half a list misleads the guest. */
function readAll<T>(
  count: number,
  bytes: number,
  ask: (i: number) => Uint8Array | undefined,
  decode: (raw: Uint8Array) => T,
): T[] | undefined {
  const list: T[] = [];
  for (let i = 0; i < count; i++) {
    const raw = ask(i);
    if (raw === undefined || raw.length < bytes) return undefined;
    list.push(decode(raw));
  }
  return list;
}

/** Ask the hypervisor for the states of one vCPU. A hypervisor without an answer gives none. */
export function readCpuStates(hsm: Pick<Hsm, 'getCpuState'>, vcpu: number): CpuStates {
  const pCount = hsm.getCpuState({ vcpu, state: 0, type: 'px-count' })?.[0];
  // A count of 0 says that P-states are continuous; no answer says that there are none.
  const pStates =
    pCount === 0
      ? 'continuous'
      : readAll(pCount ?? 0, PSTATE_BYTES, (state) => hsm.getCpuState({ vcpu, state, type: 'px-data' }), decodePState);
  const cCount = hsm.getCpuState({ vcpu, state: 0, type: 'cx-count' })?.[0] ?? 0;
  // C-states count from 1: C0 is running.
  const cStates = readAll(
    cCount,
    CSTATE_BYTES,
    (i) => hsm.getCpuState({ vcpu, state: i + 1, type: 'cx-data' }),
    decodeCState,
  );
  if ((pStates === undefined || pStates.length === 0) && (cStates === undefined || cStates.length === 0))
    return NO_STATES;
  return { pStates: pStates?.length === 0 ? undefined : pStates, cStates: cStates ?? [] };
}
