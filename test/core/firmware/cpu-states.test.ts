import { describe, expect, test } from 'vitest';
import { readCpuStates } from '../../../devicemodel/core/firmware/cpu-states.ts';
import type { CpuStateQuery } from '../../../devicemodel/core/hsm/hsm.ts';

type Answer = (query: CpuStateQuery) => Uint8Array | undefined;
const source = (answers: Partial<Record<CpuStateQuery['type'], Answer>>) => ({
  getCpuState: (query: CpuStateQuery) => answers[query.type]?.(query),
});

/** struct acrn_pstate_data: six 64-bit fields, here counting up from `first`. */
function pState(first: number): Uint8Array {
  return new Uint8Array(new BigUint64Array(Array.from({ length: 6 }, (_, i) => BigInt(first + i))).buffer);
}

/** struct acrn_cstate_data: generic address, type, latency, power. */
function cState(type: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(32));
  view.setUint8(0, 1); // system I/O
  view.setUint8(1, 8);
  view.setBigUint64(4, 0x415n, true);
  view.setUint8(12, type);
  view.setUint32(16, 50, true);
  view.setBigUint64(24, 700n, true);
  return new Uint8Array(view.buffer);
}

test('a hypervisor that answers nothing offers nothing', () => {
  expect(readCpuStates(source({}), 0)).toEqual({ pStates: undefined, cStates: [] });
});

test('P-states count from 0, C-states from 1', () => {
  const states = readCpuStates(
    source({
      'px-count': () => Uint8Array.of(2),
      'px-data': ({ state }) => pState(100 * state),
      'cx-count': () => Uint8Array.of(2),
      'cx-data': ({ state }) => cState(state),
    }),
    0,
  );
  expect(states.pStates).toMatchObject([{ coreFrequencyMhz: 0 }, { coreFrequencyMhz: 100, powerMw: 101, status: 105 }]);
  expect(states.cStates).toMatchObject([
    { type: 1, latencyUs: 50, powerMw: 700, entry: { space: 1, bitWidth: 8, address: 0x415n } },
    { type: 2 },
  ]);
});

test('a P-state count of 0 means continuous states', () => {
  expect(readCpuStates(source({ 'px-count': () => Uint8Array.of(0) }), 0).pStates).toBe('continuous');
});

describe('a list that is not complete is not offered', () => {
  test.each([
    ['a missing state', () => undefined],
    ['a short answer', () => new Uint8Array(8)],
  ])('%s', (_, answer) => {
    const states = readCpuStates(
      source({
        'px-count': () => Uint8Array.of(2),
        'px-data': (query) => (query.state === 0 ? pState(1) : answer()),
        'cx-count': () => Uint8Array.of(1),
        'cx-data': answer,
      }),
      0,
    );
    expect(states).toEqual({ pStates: undefined, cStates: [] });
  });
});

test('the vCPU that is asked for is the one that is told', () => {
  const asked = new Set<number>();
  const answer = (query: CpuStateQuery) => {
    asked.add(query.vcpu);
    return undefined;
  };
  readCpuStates({ getCpuState: answer }, 3);
  expect([...asked]).toEqual([3]);
});
