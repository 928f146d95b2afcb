/**
 * What every PCI driver has to keep, whatever the device: used for each one in the registry. A driver whose example
 * options need a file or a network gets them from the test that calls this.
 */
import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import type { BarIndex } from '../../devicemodel/chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../devicemodel/core/address.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';
import { checkOptions, optionsFromText, optionUsage } from '../../devicemodel/core/options.ts';
import type { EmulatedPciFunction } from '../../devicemodel/hw/pci/function.ts';
import type { AnyPciDriver, PciDriverEntry } from '../../devicemodel/hw/registry.ts';
import { expectWithin } from './bus-access.ts';
import { bdf, PciMachine } from './pci-machine.ts';

export interface Example {
  /** Option text that is right on any machine. */
  readonly text: string;
  /** Default true; false if `start` needs something a machine may not have. */
  readonly canStart?: boolean;
  /** A BAR of memory and not of registers: what is written there outlives a reset. */
  readonly memoryBar?: BarIndex;
}

export interface ConformanceCase {
  readonly entry: PciDriverEntry;
  readonly examples: readonly Example[];
}

/** Bytes of each BAR that are compared after a reset: more than any register block here has in use. */
const COMPARED_BYTES = 0x200;

const AT = '0:6.0';
/** Where a device of each bus kind may be asked to go; some of it is taken, some is nowhere. */
const ADDRESSES = [0, 0xcf8, 0x2000, 0x7000, 0xfff8, 0x80000000, 0x90000000, 0xdffff000, 0xe0000000, 0xffffffff];

export function describeConformance({ entry, examples }: ConformanceCase): void {
  for (const { text, canStart = true, memoryBar } of examples) {
    test(`"${text}": options survive the way from text to object and back into the schema`, async () => {
      const options = parse(entry, text);
      expect(checkOptions(entry.options, options as Record<string, unknown>)).toEqual(options);
      const driver = await entry.load();
      expect([driver.name, driver.options]).toEqual([entry.name, entry.options]);
    });

    test.skipIf(!canStart)(
      `"${text}": stop is safe without start, and twice${canStart ? '' : ' (skipped: start needs a host device)'}`,
      async () => {
        const { machine, fn } = await powerOn(entry, text);
        await machine.host.stop();
        await fn?.stop?.();
        await machine.host.start();
        await machine.host.stop();
        await machine.host.stop();
        await fn?.stop?.();
        machine.host.detach();
        machine.host.detach();
        machine.host.destroyVdevs();
      },
    );

    test(`"${text}": no access throws, reads stay within width, and reset equals fresh`, async () => {
      const driver = await entry.load();
      const fresh = stateOf(await powerOn(entry, text), memoryBar);
      fc.assert(
        fc.property(accesses(), (list) => {
          const powered = powerOnSync(driver, text);
          for (const access of list) apply(powered, access);
          powered.machine.host.reset();
          powered.machine.host.destroyVdevs();
          powered.machine.host.createVdevs();
          expect(stateOf(powered, memoryBar)).toEqual(fresh);
        }),
        { numRuns: 60 },
      );
    });

    test(`"${text}": every offset and width of configuration space and the start of each BAR is answered`, async () => {
      const powered = await powerOn(entry, text);
      for (const size of [1, 2, 4] as const) {
        for (let offset = 0; offset < 0x1010; offset++) {
          within(powered.machine.cfgRead(AT, offset, size), size);
        }
        for (const bar of powered.machine.host.report()[0]?.bars ?? []) {
          for (let offset = 0; offset < Math.min(bar.sizeBytes, 0x1000) + 8; offset++) {
            within(readBar(powered, bar.index, offset, size), size);
          }
        }
      }
    });
  }

  test('any option text gives options or one ConfigError', () => {
    const words = fc.constantFrom(
      'stdio',
      '=',
      'ro',
      'name=',
      'dm:/',
      '-1',
      '0x10',
      '/',
      '@',
      ':',
      '{',
      '}',
      'vuart_idx:',
    );
    const text = fc.oneof(
      fc.string({ maxLength: 40 }),
      fc.array(fc.oneof(words, fc.string({ maxLength: 6 })), { maxLength: 8 }).map((parts) => parts.join(',')),
    );
    fc.assert(
      fc.property(text, (input) => {
        try {
          parse(entry, input);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
          expect((error as ConfigError).message).not.toContain('\n');
        }
      }),
    );
  });

  test('help has a summary and a usage line', () => {
    expect(entry.summary).not.toBe('');
    expect(optionUsage(entry.name, entry.options)).toMatch(new RegExp(`^${entry.name}`));
  });
}

interface Powered {
  readonly machine: PciMachine;
  /** Undefined for a function of the hypervisor. */
  readonly fn: EmulatedPciFunction | undefined;
}

/** @throws ConfigError; for the empty text that means: the driver needs options, give it an example in the calling test. */
function parse(entry: Pick<AnyPciDriver, 'options' | 'parseText'>, text: string): unknown {
  return checkOptions(entry.options, entry.parseText?.(text) ?? optionsFromText(entry.options, text));
}

async function powerOn(entry: PciDriverEntry, text: string): Promise<Powered> {
  return powerOnSync(await entry.load(), text);
}

function powerOnSync(driver: AnyPciDriver, text: string): Powered {
  const machine = new PciMachine().plug(AT, driver, parse(driver, text)).power();
  const fn = machine.host.functionAt(bdf(AT));
  return { machine, fn: fn?.backing === 'device-model' ? fn : undefined };
}

/** `expectWithin`, without the cost of an `expect` for each of very many reads. */
function within(value: number, size: AccessSize): void {
  if (!(Number.isInteger(value) && value >= 0 && value <= allOnes(size))) expectWithin(value, size);
}

/** Everything a guest can see: the header, and the start of every register BAR, by each width that is aligned. */
function stateOf(powered: Powered, memoryBar: BarIndex | undefined): unknown {
  const { machine, fn } = powered;
  const bars = (machine.host.report()[0]?.bars ?? []).filter((bar) => bar.index !== memoryBar);
  const registers = bars.map(({ index, sizeBytes }) =>
    ([1, 2, 4] as const).map((size) =>
      Array.from({ length: Math.min(sizeBytes, COMPARED_BYTES) / size }, (_, n) =>
        readBar(powered, index, n * size, size),
      ),
    ),
  );
  return {
    config: machine.cfgDump(AT),
    registers,
    vdev: machine.host.report()[0]?.vdev,
    hasFunction: fn !== undefined,
  };
}

function readBar({ machine, fn }: Powered, index: BarIndex, offset: number, size: AccessSize): number {
  if (fn !== undefined) {
    const bar = machine.host.report()[0]?.bars.find((b) => b.index === index);
    return bar === undefined || offset + size > bar.sizeBytes ? allOnes(size) : fn.readBar(index, offset, size);
  }
  const described = machine.host.functionAt(bdf(AT));
  const answer = described?.backing === 'hypervisor' ? described.readBar?.(index, offset, size) : undefined;
  return answer ?? allOnes(size);
}

interface Access {
  readonly space: 'config' | 'ecam' | 0 | 1 | 2 | 3;
  readonly write: boolean;
  readonly offset: number;
  readonly size: AccessSize;
  readonly value: number;
  readonly delayNs: number;
}

function accesses(): fc.Arbitrary<Access[]> {
  return fc.array(
    fc.record({
      space: fc.constantFrom('config' as const, 'ecam' as const, 0 as const, 1 as const, 2 as const, 3 as const),
      write: fc.boolean(),
      // Many registers are aligned, few are far up.
      offset: fc.oneof(
        fc.nat({ max: 0x0f }).map((n) => 4 * n),
        fc.nat({ max: 0x60 }),
        fc.nat({ max: 0x1100 }),
      ),
      size: fc.constantFrom<AccessSize>(1, 2, 4),
      value: fc.oneof(fc.nat({ max: 0xffffffff }), fc.nat({ max: 0xff }), fc.constantFrom(...ADDRESSES)),
      delayNs: fc.constantFrom(0, 0, 0, 1_000, 1_000_000_000),
    }),
    { maxLength: 60 },
  );
}

function apply({ machine, fn }: Powered, { space, write, offset, size, value, delayNs }: Access): void {
  if (delayNs > 0) machine.clock.advance(delayNs);
  const cut = size === 4 ? value : value & allOnes(size);
  if (space === 'config') {
    if (write) machine.cfgWrite(AT, offset, cut, size);
    else expectWithin(machine.cfgRead(AT, offset, size), size);
    return;
  }
  if (space === 'ecam') {
    const address = 0xe0000000 + 6 * 0x8000 + offset;
    if (write) machine.mmioWrite(address, cut, size);
    else expectWithin(machine.mmioRead(address, size), size);
    return;
  }
  // BARs are written directly too: where the guest has put them by now is not asked.
  const bar = machine.host.report()[0]?.bars[space];
  if (bar === undefined || fn === undefined || offset + size > bar.sizeBytes) return;
  if (write) fn.writeBar(bar.index, offset, size, cut);
  else expectWithin(fn.readBar(bar.index, offset, size), size);
}
