import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import type { PciFunctionAml } from '../../../../devicemodel/core/firmware/contribution.ts';
import { passthroughAml } from '../../../../devicemodel/hw/pci/passthru/aml.ts';
import { gpioAml } from '../../../../devicemodel/hw/pci/virtio/gpio/aml.ts';
import { i2cAml } from '../../../../devicemodel/hw/pci/virtio/i2c/aml.ts';
import { disassemble, hasIasl, recompile } from '../../../support/iasl.ts';
import { temporaryDirectory } from '../../../support/images.ts';
import { pcTable } from '../../../support/pc-tables.ts';

const INTEL = 0x8086;
const at = (device: number) => ({ bus: 0, device, function: 0 });

function dsdtWith(functions: readonly PciFunctionAml[]): Uint8Array {
  return pcTable('DSDT', { lpc: at(1), functions });
}

const passthrough = (slot: number, deviceId: number) =>
  passthroughAml(at(slot), INTEL, deviceId, { nhlt: { base: 0xf2800, sizeBytes: 0x200 } });

/** Intel functions that the reference writes AML for. */
const known = [0x4b32, 0x4ba0, 0x4bb0, 0x5aaa, 0x5ab4, 0x5aac, 0x5a98, 0x5abc, 0x5aca];

test('functions that need nothing get nothing', () => {
  expect(passthroughAml(at(3), INTEL, 0x1234)).toBeUndefined();
  expect(passthroughAml(at(3), 0x10ec, 0x4b32)).toBeUndefined();
});

test('an audio controller without a table to show gets nothing', () => {
  expect(passthroughAml(at(3), INTEL, 0x5a98)).toBeUndefined();
});

describe.skipIf(!hasIasl)('iasl has nothing to say about', () => {
  // Two passed-through I2C controllers are I2C0 and I2C1: the virtio adapter beside them is a third.
  const functions: Record<string, PciFunctionAml[]> = {
    'virtio GPIO': [gpioAml(at(3), 0x201c)],
    'virtio I2C with everything behind it': [i2cAml(at(4), 0, ['cam1', 'cam2', 'hdac'])],
    'virtio I2C alone': [i2cAml(at(4), 2, [])],
    'all passed-through functions but TSN': known
      .filter((id) => id >>> 12 === 5)
      .map((id, i) => passthrough(5 + i, id) as PciFunctionAml),
  };
  test.each(Object.keys(functions))('%s', (what) => {
    const dir = temporaryDirectory();
    const bytes = dsdtWith(functions[what] as PciFunctionAml[]);
    expect(disassemble(dir, 'dsdt', bytes)).not.toMatch(/error|warning/i);
    const { report, aml } = recompile(dir, 'dsdt');
    // The cameras' _ADR is the only thing.
    const warnings = report.split('\n').filter((line) => /Warning\s+\d+/.test(line));
    expect(warnings.filter((line) => !line.includes('requires either a _HID or _ADR'))).toEqual([]);
    expect(report).toContain('0 Errors');
    expect(Buffer.from(aml as Uint8Array).subarray(36)).toEqual(Buffer.from(bytes).subarray(36));
  });

  test('the register window of a TSN controller is computed from its BAR', () => {
    const dir = temporaryDirectory();
    disassemble(dir, 'dsdt', dsdtWith([passthrough(5, 0x4ba0) as PciFunctionAml]));
    const asl = readFileSync(join(dir, 'dsdt.dsl'), 'utf8');
    expect(asl).toContain('MAL0 = ((^^PCI0.OTN0.TADL & 0xFFFFF000) + 0x0200)');
    // Base addresses of the two descriptors.
    expect(asl).toContain('CreateDWordField (PCSR, 0x04, MAL0)');
    expect(asl).toContain('CreateDWordField (PCSR, 0x10, MDL0)');
  });
});
