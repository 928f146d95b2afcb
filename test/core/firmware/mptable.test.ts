import fc from 'fast-check';
import { expect, test } from 'vitest';
import { buildMpTable, type MpInput } from '../../../devicemodel/core/firmware/mptable.ts';

/** Entry sizes by type (MP 1.4 §4.3). */
const ENTRY_BYTES = [20, 8, 8, 8, 8];

const machine = (change: Partial<MpInput> = {}): MpInput => {
  return { lapicIds: [0], lapicPassthrough: false, routes: [], sciGsi: 9, ...change };
};

/** Walk the table as a guest does. */
function read(input: MpInput) {
  const [pointer, table] = buildMpTable(input).map((t) => t.bytes) as [Uint8Array, Uint8Array];
  const view = new DataView(table.buffer);
  const entries: Uint8Array[] = [];
  for (let at = 44, i = 0; i < view.getUint16(34, true); i++) {
    const size = ENTRY_BYTES[view.getUint8(at)] as number;
    entries.push(table.subarray(at, at + size));
    at += size;
  }
  return { pointer, table, entries, ofType: (type: number) => entries.filter((e) => e[0] === type) };
}

const sum = (bytes: Uint8Array) => bytes.reduce((a, b) => a + b, 0) & 0xff;

test('pointer and table add up to zero, and the entries fill the table', () => {
  const inputs = fc.record({
    lapicIds: fc.uniqueArray(fc.nat(254), { minLength: 1, maxLength: 16 }),
    lapicPassthrough: fc.boolean(),
    routes: fc.array(
      fc.record({
        device: fc.nat(31),
        pin: fc.integer({ min: 1, max: 4 }),
        gsi: fc.integer({ min: 16, max: 119 }),
      }),
    ),
    sciGsi: fc.constant(9),
  });
  fc.assert(
    fc.property(inputs, (input) => {
      const { pointer, table, entries } = read(input);
      expect([sum(pointer), sum(table)]).toEqual([0, 0]);
      expect(new DataView(table.buffer).getUint16(4, true)).toBe(table.length);
      expect(entries.reduce((bytes, e) => bytes + e.length, 44)).toBe(table.length);
    }),
  );
});

test('the first processor boots, all are enabled, ids are the given ones', () => {
  const processors = read(machine({ lapicIds: [4, 0, 7] })).ofType(0);
  expect(processors.map((p) => [p[1], p[3]])).toEqual([
    [4, 3],
    [0, 1],
    [7, 1],
  ]);
});

test('a PCI pin names device and pin in one byte and goes to its GSI', () => {
  const interrupts = read(machine({ routes: [{ device: 5, pin: 2, gsi: 17 }] })).ofType(3);
  // MP 1.4 §4.3.4: device in bits 6:2, INTA# = 0.
  expect(interrupts.at(-1)).toEqual(Uint8Array.of(3, 0, 0, 0, 0, (5 << 2) | 1, 0, 17));
});

test('with the local APIC passed through there is no IOAPIC to route to', () => {
  const table = read(machine({ lapicPassthrough: true, routes: [{ device: 3, pin: 1, gsi: 16 }] }));
  expect(table.ofType(2)).toEqual([]);
  expect(table.ofType(3)).toEqual([]);
  expect(table.ofType(4)).toHaveLength(2); // LINT0 and LINT1
});
