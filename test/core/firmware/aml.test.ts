import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import * as aml from '../../../devicemodel/core/firmware/aml.ts';
import * as resources from '../../../devicemodel/core/firmware/aml-resources.ts';
import { tpmTables } from '../../../devicemodel/hw/platform/tpm-tables.ts';
import { disassemble, hasIasl, recompile, tableOf } from '../../support/iasl.ts';
import { temporaryDirectory } from '../../support/images.ts';
import { pcTable } from '../../support/pc-tables.ts';

const { arg, local } = aml;

/** The terms of test/golden/aml/every-term.asl, in its order. */
function everyTerm(): aml.Aml {
  const levelShared = { level: true, activeLow: true, shared: true };
  const gpio = '\\_SB.GPO0';
  return aml.terms([
    aml.name('NUL0', 0),
    aml.name('SNGL', 1),
    aml.name('BYTE', 0xff),
    aml.name('WORD', 0x100),
    aml.name('DWRD', 0x1_0000),
    aml.name('QWRD', 0x1_0000_0000),
    aml.name('HUGE', 0xffff_ffff_ffff_fffen),
    aml.name('ALL1', 0xffff_ffff_ffff_ffffn),
    aml.name('TEXT', aml.text('two words')),
    aml.name('UNIC', aml.unicode('Hi')),
    aml.name('EISA', aml.eisaId('PNP0A03')),
    aml.name('SMAL', aml.eisaId('PNP0000')),
    aml.name('UUID', aml.uuid('0811b06e-4a27-44f9-8d60-3cbbc22e7b48')),
    aml.name('BUFF', aml.buffer([1, 2], 4)),
    aml.name('PACK', aml.pkg([0, 1, 0x1234, aml.text('x'), aml.pkg(['BYTE', aml.pkg([])]), '\\_SB.DEV0'])),
    aml.scope('\\_SB', [
      aml.device('DEV0', [
        aml.name('_ADR', 0x0002_0001),
        aml.operationRegion('REGI', aml.RegionSpace.SystemIo, 0x500, 0x20),
        aml.field('REGI', { access: aml.FieldAccess.DWord, lock: true, update: aml.FieldUpdate.WriteAsOnes }, [
          { name: 'AAA_', bits: 1 },
          { skipBits: 6 },
          { name: 'BBB_', bits: 1 },
          { offset: 4 },
          { name: 'CCC_', bits: 32 },
          { offset: 0x10 },
          { name: 'DDD_', bits: 64 },
        ]),
        aml.name(
          '_CRS',
          resources.resourceTemplate([
            resources.io(0x60, 1),
            resources.irqNoFlags(1, 12),
            resources.irq(levelShared, [5, 9]),
            resources.irq({}, []),
            resources.memory32Fixed(0xfed0_0000, 0x400, false),
            resources.interrupt(levelShared, [16, 300]),
            resources.interrupt({}, [8]),
            resources.wordBusNumber(0, 0x100),
            resources.wordIo(0xd00, 0xf300),
            resources.dwordMemory(0xc000_0000, 0x2000_0000),
            resources.qwordMemory(0x40_0000_0000, 0x40_0000_0000),
            resources.register({
              space: resources.AddressSpace.FixedHardware,
              bitWidth: 0x40,
              bitOffset: 0,
              address: 0xe7,
              accessSize: 4,
            }),
            resources.gpioInput({ controller: gpio, pins: [30, 31] }),
            resources.gpioInterruptBothEdges({ controller: gpio, pins: [7] }),
            resources.i2cDevice('\\_SB.I2C1', 0x70, 400_000),
          ]),
        ),
      ]),
    ]),
    aml.method('MATH', 3, [
      aml.store(arg(0), local(0)),
      aml.add(arg(0), arg(1), local(1)),
      aml.and(arg(0), 0x0f, local(1)),
      aml.or(arg(0), 0x0f, local(1)),
      aml.shiftLeft(arg(0), 5, local(1)),
      aml.findSetRightBit(arg(0), local(1)),
      aml.decrement(local(1)),
      aml.concatenate(arg(0), arg(1), local(4)),
      aml.concatenateResources(arg(0), arg(1), local(4)),
      aml.toInteger(arg(2), local(5)),
      aml.ret(aml.add(local(0), local(1))),
    ]),
    aml.method(
      'FLOW',
      2,
      [
        aml.createWordField(arg(0), 2, 'FWRD'),
        aml.createDWordField(arg(0), 4, 'FDWD'),
        aml.store(arg(1), local(0)),
        aml.whileLoop(aml.less(local(0), 10), [
          aml.ifElse(aml.equal(local(0), 3), [aml.breakLoop]),
          aml.decrement(local(0)),
        ]),
        aml.ifElse(aml.less(arg(1), 2), [aml.ret(0)], [aml.ret(aml.call('MATH', arg(0), 1, aml.text('x')))]),
        aml.ret('\\_SB.DEV0.CCC_'),
      ],
      { serialized: true, syncLevel: 2 },
    ),
    aml.scope('\\_SB.DEV0', [aml.method('_STA', 0, [aml.ret('^^^NUL0')])]),
  ]);
}

test('every term and descriptor has the bytes iasl makes of it', () => {
  const hex = readFileSync(join(import.meta.dirname, '../../golden/aml/every-term.hex'), 'latin1').replaceAll('\n', '');
  expect(Buffer.from(everyTerm()).toString('hex')).toBe(hex);
});

describe('lengths', () => {
  // ACPI 6.4 §20.2.4: one byte up to 63, then 4 bits and 1 to 3 bytes more. A buffer's length counts its opcode's
  // length bytes, the size integer and the content.
  test.each([
    { content: 60, leadByte: 0x3f },
    { content: 61, leadByte: 0x41 }, // 65 bytes: bits 3:0 here, the rest in one byte more
    { content: 4090, leadByte: 0x4f }, // 4095 bytes
    { content: 4091, leadByte: 0x81 }, // 4097 bytes: two bytes more
  ])('a buffer of $content bytes has a package length that begins with $leadByte', ({ content, leadByte }) => {
    expect(aml.buffer(new Uint8Array(content))[1]).toBe(leadByte);
  });

  test('a package of more than 255 elements carries its count as an integer', () => {
    const encoded = aml.pkg(new Array(256).fill(0));
    expect(encoded[0]).toBe(0x13); // VarPackageOp
    expect(encoded.slice(3, 6)).toEqual([0x0b, 0x00, 0x01]); // WordPrefix 256
  });
});

describe('what cannot be encoded is our mistake', () => {
  test.each([
    ['a lower-case name', () => aml.name('abcd', 0)],
    ['a name of five letters', () => aml.path('ABCDE')],
    ['an empty name', () => aml.path('')],
    ['a negative integer', () => aml.integer(-1)],
    ['an integer of 65 bits', () => aml.integer(1n << 64n)],
    ['a fraction', () => aml.integer(1.5)],
    ['text that is not ASCII', () => aml.text('é')],
    ['an EISA id with a small letter', () => aml.eisaId('pnp0303')],
    ['half a UUID', () => aml.uuid('0811b06e')],
    ['a field that goes back', () => aml.field('R', {}, [{ offset: 4 }, { offset: 3 }])],
    ['Local8', () => aml.local(8)],
    ['Arg7', () => aml.arg(7)],
    ['eight arguments', () => aml.method('M', 8, [])],
    ['IRQ 16', () => resources.irqNoFlags(16)],
    ['a port range that is too long', () => resources.io(0x100, 0x100)],
  ])('%s', (_, encode) => {
    expect(encode).toThrow(/^aml: /);
  });
});

describe.skipIf(!hasIasl)('iasl agrees', () => {
  test('that a whole DSDT has nothing to be said about it', () => {
    const dir = temporaryDirectory();
    const pState = {
      coreFrequencyMhz: 2000,
      powerMw: 1000,
      transitionLatencyUs: 10,
      busMasterLatencyUs: 10,
      control: 1,
      status: 1,
    };
    const halt = { space: resources.AddressSpace.FixedHardware, bitWidth: 0, bitOffset: 0, accessSize: 0, address: 0 };
    const machine = (cpu: object) =>
      pcTable('DSDT', {
        cpus: [0, 2].map((lapicId) => ({ lapicId, pStates: undefined, cStates: [], ...cpu })),
        com: [{ index: 1, backend: '' }],
        lpc: { bus: 0, device: 1, function: 0 },
        routes: [{ device: 3, pin: 1, gsi: 16, link: 1 }],
        ioWindow: { base: 0x2000, end: 0x3020 },
        devices: [tpmTables({ base: 0xf000_0000, sizeBytes: 0x5000 })],
      });
    const machines = {
      plain: machine({}),
      continuous: machine({ pStates: 'continuous' }),
      states: machine({ pStates: [pState], cStates: [{ entry: halt, type: 1, latencyUs: 1, powerMw: 1 }] }),
    };
    for (const [name, bytes] of Object.entries(machines)) {
      expect(disassemble(dir, name, bytes)).not.toMatch(/error|warning/i);
      const { report, aml: again } = recompile(dir, name);
      expect(report).toContain('0 Errors, 0 Warnings, 0 Remarks');
      expect(Buffer.from(again as Uint8Array).subarray(36)).toEqual(Buffer.from(bytes).subarray(36));
    }
  }, 60_000);

  test('with random trees: disassembled and compiled again they have the same bytes', () => {
    const dir = temporaryDirectory();
    // One run of iasl for many trees: each becomes a method of one table.
    const seed = Math.floor(Math.random() * 2 ** 31);
    const trees = fc.sample(statements(3), { numRuns: 60, seed });
    const methods = trees.map((body, i) =>
      aml.method(`M${i.toString(16).toUpperCase().padStart(3, '0')}`, 4, [
        // iasl refuses locals that were not written.
        ...[0, 1, 2, 3].map((n) => aml.store(arg(n), local(n))),
        ...body,
      ]),
    );
    const table = tableOf(
      'DSDT',
      Uint8Array.from(
        aml.terms([aml.name('VAL0', 5), aml.scope('\\_SB', [aml.device('DEV0', [aml.name('_ADR', 7)])]), ...methods]),
      ),
    );
    disassemble(dir, 'random', table, 'asl');
    const { report, aml: again } = recompile(dir, 'random');
    expect(report, `seed ${seed}`).toContain(' 0 Errors');
    expect(
      Buffer.from(again as Uint8Array)
        .subarray(36)
        .toString('hex'),
    ).toBe(Buffer.from(table).subarray(36).toString('hex'));
  }, 60_000);

  test('with random resources, fields and packages: disassembled and compiled again they have the same bytes', () => {
    const dir = temporaryDirectory();
    const seed = Math.floor(Math.random() * 2 ** 31);
    const objects = fc.sample(fc.tuple(template, region, dataValue(3)), { numRuns: 60, seed });
    const devices = objects.map(([crs, declarations, value], i) =>
      aml.device(`D${i.toString(16).toUpperCase().padStart(3, '0')}`, [
        aml.name('_ADR', i),
        aml.name('_CRS', crs),
        ...declarations,
        aml.name('DATA', value),
      ]),
    );
    const table = tableOf(
      'DSDT',
      Uint8Array.from(aml.scope('\\_SB', [aml.device('I2C1', [aml.name('_ADR', 0)]), ...devices])),
    );
    disassemble(dir, 'declared', table, 'asl');
    const { report, aml: again } = recompile(dir, 'declared');
    expect(report, `seed ${seed}`).toContain(' 0 Errors');
    expect(
      Buffer.from(again as Uint8Array)
        .subarray(36)
        .toString('hex'),
      `seed ${seed}`,
    ).toBe(Buffer.from(table).subarray(36).toString('hex'));
  }, 60_000);
});

// ---- random resources, fields and packages ----------------------------------------------------------------------

const flags = fc.record({ level: fc.boolean(), activeLow: fc.boolean(), shared: fc.boolean() });
const u32Span = fc.tuple(fc.nat({ max: 0x7fff_ffff }), fc.integer({ min: 1, max: 0x7fff_ffff }));
const u16Span = fc.tuple(fc.nat({ max: 0x7fff }), fc.integer({ min: 1, max: 0x7fff }));

const descriptor: fc.Arbitrary<aml.Aml> = fc.oneof(
  fc
    .tuple(fc.nat({ max: 0xff00 }), fc.integer({ min: 1, max: 0xff }))
    .map(([base, length]) => resources.io(base, length)),
  fc.uniqueArray(fc.nat(15), { minLength: 1 }).map((lines) => resources.irqNoFlags(...lines)),
  fc
    .tuple(fc.constantFrom({}, { level: true, activeLow: true, shared: true }), fc.uniqueArray(fc.nat(15)))
    .map(([how, lines]) => resources.irq(how, lines)),
  fc.tuple(u32Span, fc.boolean()).map(([[base, length], writable]) => resources.memory32Fixed(base, length, writable)),
  fc
    .tuple(flags, fc.uniqueArray(fc.nat(0xffff_ffff), { minLength: 1, maxLength: 20 }))
    .map(([how, gsis]) => resources.interrupt(how, gsis)),
  fc
    .tuple(fc.nat(0x7f), fc.integer({ min: 1, max: 0x80 }))
    .map(([first, count]) => resources.wordBusNumber(first, count)),
  u16Span.map(([base, length]) => resources.wordIo(base, length)),
  u32Span.map(([base, length]) => resources.dwordMemory(base, length)),
  u32Span.map(([base, length]) => resources.qwordMemory(base * 0x1000, length * 0x1000)),
  fc
    .record({
      space: fc.constantFrom(resources.AddressSpace.FixedHardware, resources.AddressSpace.SystemIo),
      bitWidth: fc.nat(0xff),
      bitOffset: fc.nat(0xff),
      accessSize: fc.nat(4),
      address: fc.nat(0xffff_ffff),
    })
    .map((at) => resources.register(at)),
  fc
    .uniqueArray(fc.nat(0xffff), { minLength: 1, maxLength: 8 })
    .map((pins) => resources.gpioInput({ controller: '\\_SB.I2C1', pins })),
  fc
    .tuple(fc.nat(0x7f), fc.nat(0xffff_ffff))
    .map(([address, speed]) => resources.i2cDevice('\\_SB.I2C1', address, speed)),
);
const template = fc.array(descriptor, { maxLength: 12 }).map((list) => resources.resourceTemplate(list));

/** Not 63: one byte here as §20.2.4 has it, iasl takes two. */
const fieldBits = fc.integer({ min: 1, max: 200 }).filter((bits) => bits !== 63);
const region = fc
  .tuple(
    fc.nat({ max: 0xf000 }),
    fc.integer({ min: 1, max: 0xfff }),
    fc.constantFrom(aml.FieldAccess.DWord, aml.FieldAccess.Byte, aml.FieldAccess.Any),
    fc.boolean(),
    fc.array(fc.tuple(fieldBits, fc.boolean()), { minLength: 1, maxLength: 20 }),
  )
  .map(([base, length, access, lock, units]) => [
    aml.operationRegion('REGI', aml.RegionSpace.SystemMemory, base, length * 0x1000),
    aml.field(
      'REGI',
      { access, lock },
      // iasl makes one gap of two, and none of one at the end.
      units.flatMap(([bits, isSkipped], i) => {
        const unit = { name: `F${i.toString(16).toUpperCase().padStart(3, '0')}`, bits };
        return isSkipped ? [{ skipBits: bits }, unit] : [unit];
      }),
    ),
  ]);

function dataValue(depth: number): fc.Arbitrary<aml.Operand> {
  const flat: fc.Arbitrary<aml.Operand> = fc.oneof(
    integers,
    fc.stringMatching(/^[ -~]{0,20}$/).map((text) => aml.text(text)),
    fc.uint8Array({ minLength: 1, maxLength: 80 }).map((bytes) => aml.buffer(bytes)),
  );
  if (depth === 0) return flat;
  return fc.oneof(
    flat,
    fc.array(dataValue(depth - 1), { maxLength: 6 }).map((list) => aml.pkg(list)),
  );
}

// ---- random trees ---------------------------------------------------------------------------------------------

const integers = fc.oneof(
  fc.constantFrom(0n, 1n, 0xffn, 0x100n, 0xffffn, 0x1_0000n, 0xffff_ffffn, 0x1_0000_0000n, (1n << 64n) - 1n),
  fc.bigInt({ min: 0n, max: (1n << 64n) - 1n }),
);
const variable = fc.nat(3).map(local);
const leaf: fc.Arbitrary<aml.Operand> = fc.oneof(
  integers,
  variable,
  fc.nat(3).map(arg),
  fc.constantFrom('VAL0', '\\_SB.DEV0._ADR'),
);

/** Something with an integer value. Constants alone are left out of logic: iasl says that it is always true. */
function expression(depth: number): fc.Arbitrary<aml.Operand> {
  if (depth === 0) return leaf;
  const inner = expression(depth - 1);
  const two = <T>(make: (a: aml.Operand, b: aml.Operand) => T) => fc.tuple(inner, inner).map(([a, b]) => make(a, b));
  return fc.oneof(
    leaf,
    ...[aml.add, aml.and, aml.or].map((op) => two((a, b) => op(a, b))),
    fc.tuple(inner, fc.nat(63)).map(([a, n]) => aml.shiftLeft(a, n)),
    inner.map((a) => aml.findSetRightBit(a)),
    ...[aml.equal, aml.less].map((op) => two(op)),
  );
}

function statements(depth: number): fc.Arbitrary<aml.Aml[]> {
  return fc.array(statement(depth), { minLength: 1, maxLength: 5 });
}

function statement(depth: number): fc.Arbitrary<aml.Aml> {
  const value = expression(2);
  const assignments = [
    fc.tuple(value, variable).map(([v, into]) => aml.store(v, into)),
    fc.tuple(value, value, variable).map(([a, b, into]) => aml.add(a, b, into)),
    variable.map((v) => aml.decrement(v)),
    fc.tuple(fc.stringMatching(/^[ -~]{0,20}$/), variable).map(([s, into]) => aml.store(aml.text(s), into)),
    fc
      .tuple(fc.uint8Array({ minLength: 1, maxLength: 300 }), variable)
      .map(([bytes, into]) => aml.store(aml.buffer(bytes), into)),
    fc.tuple(fc.array(integers, { maxLength: 12 }), variable).map(([list, into]) => aml.store(aml.pkg(list), into)),
  ];
  if (depth === 0) return fc.oneof(...assignments);
  const inner = statements(depth - 1);
  return fc.oneof(
    ...assignments,
    fc.tuple(value, inner).map(([p, body]) => aml.ifElse(p, body)),
    fc.tuple(value, inner, inner).map(([p, body, otherwise]) => aml.ifElse(p, body, otherwise)),
    fc.tuple(value, inner).map(([p, body]) => aml.whileLoop(p, body)),
  );
}
