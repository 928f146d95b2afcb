/** What the guest's tables tell of buses below bridges. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as v from 'valibot';
import { expect, test } from 'vitest';
import { device, name } from '../../../devicemodel/core/firmware/aml.ts';
import { pciAddress } from '../../../devicemodel/core/firmware/contribution.ts';
import { definePciDriver } from '../../../devicemodel/hw/pci/driver.ts';
import { rootPort } from '../../../devicemodel/hw/pci/root-port.ts';
import { disassemble, hasIasl } from '../../support/iasl.ts';
import { pcTable } from '../../support/pc-tables.ts';
import { PciMachine } from '../../support/pci-machine.ts';

/** A function with an ACPI object of its own. */
const named = definePciDriver({
  name: 'named',
  summary: 'for tests',
  options: v.strictObject({}),
  create: () => ({
    backing: 'device-model',
    identity: { vendorId: 1, deviceId: 2, classCode: 0 },
    bars: [],
    readBar: () => 0,
    writeBar: () => {},
    reset: () => {},
    aml: ({ bdf }, ordinal) => ({ bdf, aml: () => device(`FN0${ordinal}`, [name('_ADR', pciAddress(bdf))]) }),
  }),
});

function asl(machine: PciMachine): string {
  const { host } = machine.power();
  const dir = mkdtempSync(join(tmpdir(), 'buses-'));
  try {
    const dsdt = pcTable('DSDT', { functions: host.aml(), lastBus: host.lastBus, ioWindow: host.windows().io });
    expect(disassemble(dir, 'dsdt', dsdt)).not.toMatch(/Error|Warning/);
    return readFileSync(join(dir, 'dsdt.dsl'), 'latin1');
  } finally {
    rmSync(dir, { recursive: true });
  }
}

/** Minimum and maximum of the root bus, as iasl writes them. */
const busRange = (text: string) =>
  /WordBusNumber[\s\S]*?(0x\w{4}),\s*\/\/ Range Minimum\s*(0x\w{4}),\s*\/\/ Range Maximum/.exec(text)?.slice(1);

test.skipIf(!hasIasl)('objects of functions below a port stand inside an object for the port', () => {
  const machine = new PciMachine().plug('0:6.0', rootPort).plug('0:9.1', rootPort);
  const text = asl(machine.plug('0:3.0', named).plug('2:0.1', named));
  expect(busRange(text)).toEqual(['0x0000', '0x0002']);
  expect(text).toMatch(/Device \(FN00\)\s*\{\s*Name \(_ADR, 0x00030000\)/);
  expect(text).toMatch(
    /Device \(BR02\)\s*\{\s*Name \(_ADR, 0x00090001\)[^}]*Device \(FN01\)\s*\{\s*Name \(_ADR, One\)/,
  );
  expect(text).not.toContain('BR01');
});

test.skipIf(!hasIasl)('without a port by itself the root bus is the only one, as with C', () => {
  expect(busRange(asl(new PciMachine().plug('0:3.0', named)))).toEqual(['0x0000', '0x0000']);
});
