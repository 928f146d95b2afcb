import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { type AcpiInput, buildAcpi, type PlacedTable } from '../../../devicemodel/core/firmware/acpi-tables.ts';
import { arg, device, method, name, path, ret, scope, text } from '../../../devicemodel/core/firmware/aml.ts';
import type { Cpu } from '../../../devicemodel/core/firmware/processor-aml.ts';
import { nhltTable } from '../../../devicemodel/core/firmware/tables.ts';
import { Layout } from '../../../devicemodel/core/layout.ts';
import { tpmTables } from '../../../devicemodel/hw/platform/tpm-tables.ts';
import { type PcTables, pcAcpiInput } from '../../support/pc-tables.ts';

const cpu = (lapicId: number): Cpu => ({ lapicId, pStates: undefined, cStates: [] });
const isaBridge = { bus: 0, device: 1, function: 0 };

function machine(change: PcTables = {}): AcpiInput {
  return pcAcpiInput(change);
}

function find(tables: readonly PlacedTable[], signature: string): PlacedTable {
  const table = tables.find((t) => t.signature === signature);
  if (table === undefined) throw new Error(`no ${signature}`);
  return table;
}

const sum = (bytes: Uint8Array) => bytes.reduce((a, b) => a + b, 0) & 0xff;
const view = (table: PlacedTable) => new DataView(table.bytes.buffer, table.bytes.byteOffset, table.bytes.length);
/** Where AML appears in the DSDT, or -1. */
function position(input: AcpiInput, aml: readonly number[]): number {
  return Buffer.from(find(buildAcpi(input), 'DSDT').bytes).indexOf(Uint8Array.from(aml));
}

test('from the RSDP a guest finds every table, each adding up to zero', () => {
  const inputs = fc.record({
    cpus: fc.uniqueArray(fc.nat(254), { minLength: 1, maxLength: 16 }).map((ids) => ids.map(cpu)),
    isRtvm: fc.boolean(),
    devices: fc.subarray([tpmTables({ base: 0xf000_0000, sizeBytes: 0x5000 })]),
    // The RSDT has room for seven entries, four of which are always used.
    functionTables: fc.subarray(
      [
        nhltTable(new Uint8Array(300).fill(7)),
        { signature: 'RTCT', bytes: new Uint8Array(64) },
        { ...nhltTable(new Uint8Array(100)), signature: 'ODD1' },
        { ...nhltTable(new Uint8Array(101)), signature: 'ODD2' },
      ],
      { maxLength: 2 },
    ),
  });
  fc.assert(
    fc.property(inputs, (input) => {
      const tables = buildAcpi(machine(input));
      const at = new Map(tables.map((t) => [t.gpa, t]));
      const rsdp = find(tables, 'RSDP');
      expect([sum(rsdp.bytes.subarray(0, 20)), sum(rsdp.bytes)]).toEqual([0, 0]);
      const xsdt = at.get(Number(view(rsdp).getBigUint64(24, true))) as PlacedTable;
      const listed: number[] = [];
      for (let i = 36; i < xsdt.bytes.length; i += 8) listed.push(Number(view(xsdt).getBigUint64(i, true)));
      const rsdt = at.get(view(rsdp).getUint32(16, true)) as PlacedTable;
      expect(listed).toEqual(
        Array.from({ length: (rsdt.bytes.length - 36) / 4 }, (_, i) => view(rsdt).getUint32(36 + 4 * i, true)),
      );
      const fadt = find(tables, 'FACP');
      const reachable = [...listed, view(fadt).getUint32(36, true), view(fadt).getUint32(40, true)];
      const others = tables.filter((t) => !['RSDP', 'RSDT', 'XSDT'].includes(t.signature));
      expect(others.map((t) => t.gpa).sort()).toEqual(reachable.sort());
      for (const table of others.filter((t) => !['FACS', 'RTCT'].includes(t.signature))) {
        expect(sum(table.bytes), table.signature).toBe(0);
        expect(view(table).getUint32(4, true)).toBe(table.bytes.length);
      }
    }),
  );
});

test('tables do not overlap and end below 1 MiB', () => {
  const tables = [...buildAcpi(machine({ cpus: Array.from({ length: 16 }, (_, i) => cpu(i)) }))];
  tables.sort((a, b) => a.gpa - b.gpa);
  for (const [i, table] of tables.entries()) {
    expect(table.gpa + table.bytes.length).toBeLessThanOrEqual(tables[i + 1]?.gpa ?? 0x10_0000);
  }
});

test('the waking vector is the fourth word of the FACS', () => {
  const facs = find(buildAcpi(machine()), 'FACS');
  expect(Layout.acpiWakingVector).toBe(facs.gpa + 12); // ACPI 6.4 §5.2.10
});

test('an RTVM has no interrupt source overrides and no PIC', () => {
  const at = (isRtvm: boolean) => machine({ isRtvm, lpc: isaBridge });
  const madtBytes = (isRtvm: boolean) => find(buildAcpi(at(isRtvm)), 'APIC').bytes.length;
  expect(madtBytes(false) - madtBytes(true)).toBe(2 * 10); // §5.2.12.5: 10 bytes each
  const pic = path('PIC');
  expect(position(at(false), pic)).toBeGreaterThan(0);
  expect(position(at(true), pic)).toBe(-1);
});

describe('interrupt routing', () => {
  const routed = (hasIsaBridge: boolean) =>
    machine({
      ...(hasIsaBridge ? { lpc: isaBridge } : {}),
      routes: [{ device: 6, pin: 3, gsi: 18, link: 8 }],
    });

  test('names the link behind the ISA bridge', () => {
    expect(position(routed(true), path('ISA.LNKH'))).toBeGreaterThan(0);
  });

  test('without an ISA bridge there are no links to name', () => {
    expect(position(routed(false), path('ISA.LNKH'))).toBe(-1);
  });
});

test('AML of functions is written in slot order on their bus', () => {
  const fn = (slot: number, object: string) => ({
    bdf: { bus: 0, device: slot, function: 0 },
    aml: () =>
      device(object, [name('_ADR', slot * 0x1_0000), name('_DDN', text(object)), method('GETA', 1, [ret(arg(0))])]),
  });
  const input = machine({ functions: [fn(9, 'LAST'), fn(2, 'FRST')] });
  expect(position(input, path('FRST'))).toBeLessThan(position(input, path('LAST')));
  expect(position(input, path('FRST'))).toBeGreaterThan(position(input, path('PCI0')));
});

test('a DSDT that would reach 1 MiB is refused', () => {
  const huge = {
    bdf: { bus: 0, device: 2, function: 0 },
    aml: () => scope('_SB', [name('BIG', text('x'.repeat(60_000)))]),
  };
  expect(() => buildAcpi(machine({ functions: [huge] }))).toThrow(/DSDT takes \d+ bytes, there is room for/);
});

describe('power states', () => {
  const state = {
    coreFrequencyMhz: 1000,
    powerMw: 1,
    transitionLatencyUs: 1,
    busMasterLatencyUs: 1,
    control: 1,
    status: 1,
  };

  test('a processor points at the first one that has the same objects', () => {
    const withPss = { ...cpu(1), pStates: [state] };
    const input = machine({ cpus: [cpu(0), withPss, { ...withPss, lapicId: 2 }] });
    expect(position(input, path('^^PR01._PPC'))).toBeGreaterThan(0);
    expect(position(input, path('^^PR00._PPC'))).toBe(-1);
  });

  test('continuous states come with _CPC, and _OSC that admits to it', () => {
    const input = machine({ cpus: [{ ...cpu(0), pStates: 'continuous' }] });
    expect(position(input, path('_CPC'))).toBeGreaterThan(0);
    expect(position(input, path('_OSC'))).toBeGreaterThan(0);
    expect(position(input, path('_PSS'))).toBe(-1);
  });

  test('an idle state in an address space without a name hides all idle states', () => {
    const idle = (space: number) => ({
      entry: { space, bitWidth: 8, bitOffset: 0, accessSize: 1, address: 0x415 },
      type: 1,
      latencyUs: 1,
      powerMw: 1,
    });
    const at = (space: number) => machine({ cpus: [{ ...cpu(0), cStates: [idle(1), idle(space)] }] });
    expect(position(at(1), path('_CST'))).toBeGreaterThan(0);
    expect(position(at(0x55), path('_CST'))).toBe(-1);
  });
});

test('a table nobody has a place for is behind the DSDT, and found', () => {
  const odd = { signature: 'ODD1', bytes: new Uint8Array(40) };
  const tables = buildAcpi(machine({ functionTables: [odd] }));
  const dsdt = find(tables, 'DSDT');
  expect(find(tables, 'ODD1').gpa).toBeGreaterThanOrEqual(dsdt.gpa + dsdt.bytes.length);
});

test('two devices that bring the same table are refused', () => {
  const nhlt = nhltTable(new Uint8Array(300));
  expect(() => buildAcpi(machine({ functionTables: [nhlt, nhlt] }))).toThrow('ACPI: two tables NHLT');
});

test('a table of the host that is too long for its place is refused', () => {
  const nhlt = (bytes: number) => machine({ functionTables: [nhltTable(new Uint8Array(bytes))] });
  expect(find(buildAcpi(nhlt(0xd00)), 'NHLT').bytes).toHaveLength(0xd00);
  expect(() => buildAcpi(nhlt(0xd01))).toThrow('NHLT takes 3329 bytes, there is room for 3328');
  const beside = { ...nhlt(0x801), tables: [...nhlt(0x801).tables, { signature: 'TPM2', bytes: new Uint8Array(76) }] };
  expect(() => buildAcpi(beside)).toThrow('NHLT takes 2049 bytes, there is room for 2048');
});
