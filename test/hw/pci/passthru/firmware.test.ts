/** Firmware tables of passed-through functions: the user's AML by dsdt=, and the host's NHLT. */
import { chmodSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { checkAcpiTable } from '../../../../devicemodel/core/firmware/tables.ts';
import type { Log } from '../../../../devicemodel/core/log.ts';
import type { PciEnv } from '../../../../devicemodel/hw/pci/driver.ts';
import { readDsdtFile } from '../../../../devicemodel/hw/pci/passthru/dsdt-option.ts';
import { firmwareOf } from '../../../../devicemodel/hw/pci/passthru/firmware.ts';
import { hostWithTpm } from '../../../support/host-acpi.ts';
import { disassembledText, hasIasl } from '../../../support/iasl.ts';
import { temporaryDirectory } from '../../../support/images.ts';
import { pcTable } from '../../../support/pc-tables.ts';

const bdf = { bus: 0, device: 9, function: 0 };
const warnings: string[] = [];
const log = { warn: (line: string) => void warnings.push(line) } as unknown as Log;
afterEach(() => void (warnings.length = 0));

const env = (root = '', isPlan = false) => ({ bdf, log, hostTree: { root, isPlan } }) as PciEnv;
const identity = (vendorId: number, deviceId: number) => ({ vendorId, deviceId, classCode: 0 });
const warn = (line: string) => void warnings.push(line);

function file(content: string | Uint8Array): string {
  const path = join(temporaryDirectory(), 'user');
  writeFileSync(path, content);
  return path;
}

/** A table of the given body whose sum is right. */
function table(signature: string, body: readonly number[] = []): Buffer {
  const bytes = Buffer.alloc(36 + body.length);
  bytes.write(signature, 'latin1');
  bytes.writeUInt32LE(bytes.length, 4);
  bytes.set(body, 36);
  bytes[9] = -bytes.reduce((sum, byte) => sum + byte, 0) & 0xff;
  return bytes;
}

const ASL = 'Device (XYZ0)\n{\n    Name (_ADR, 0x00090000)\n    Name (_STR, Unicode ("100%s %n of it"))\n}\n';

describe('dsdt=FILE', () => {
  test.skipIf(!hasIasl)('ASL is compiled, whatever percent signs it has', () => {
    const aml = readDsdtFile(file(ASL), warn) as readonly number[];
    const text = disassembledText(temporaryDirectory(), pcTable('DSDT', { functions: [{ bdf, aml: () => aml }] }));
    expect(text).toMatch(/Device \(PCI0\)[\s\S]*Device \(XYZ0\)/);
    expect(text).toContain('Unicode ("100%s %n of it")');
    expect(text).not.toContain('External');
  });

  test.skipIf(!hasIasl)('names of other devices are declared by External', () => {
    const asl = `External (\\_SB.PCI0.ISA, DeviceObj)\nScope (\\_SB.PCI0.ISA) { Name (MINE, One) }\n${ASL}`;
    const aml = readDsdtFile(file(asl), warn) as readonly number[];
    const lpc = { bus: 0, device: 1, function: 0 };
    const dsdt = pcTable('DSDT', { lpc, functions: [{ bdf, aml: () => aml }] });
    expect(disassembledText(temporaryDirectory(), dsdt)).toMatch(
      /Scope \(\\_SB\.PCI0\.ISA\)\s*\{\s*Name \(MINE, One\)/,
    );
  });

  test.skipIf(!hasIasl)('an error of the compiler is one line, with the line of the file', () => {
    const path = file('Name (GOOD, 1)\nDevice (\n');
    expect(() => readDsdtFile(path, warn)).toThrow(/^dsdt=\S+: line \d+: [\x20-\x7e]+$/);
    expect(() => readDsdtFile(path, warn)).toThrow(/line 2: syntax error/);
  });

  test('AML is taken as it is', () => {
    const name = [0x08, ...Buffer.from('MINE'), 0x01];
    expect(readDsdtFile(file(table('SSDT', name)), warn)).toEqual(name);
    expect(readDsdtFile(file(table('DSDT', name)), warn)).toEqual(name);
  });

  test.each<[string, Uint8Array, string]>([
    ['a bad sum', Buffer.concat([table('DSDT'), Buffer.of(1)]).fill(1, 9, 10), 'has a wrong checksum'],
    ['a cut table', table('DSDT', [0, 0, 0]).subarray(0, 38), 'says that it has 39 bytes'],
    ['only a signature', Buffer.from('DSDT'), 'has 4 bytes'],
  ])('%s is refused', (_what, content, why) => {
    expect(() => readDsdtFile(file(content), warn)).toThrow(`: the table ${why}`);
  });

  test('a file that is not there is a warning, and nothing more', () => {
    expect(readDsdtFile('/nonexistent/x.asl', warn)).toBeUndefined();
    expect(warnings).toEqual([expect.stringMatching(/^dsdt=\/nonexistent\/x\.asl is ignored: .*ENOENT/)]);
  });

  test('without iasl AML is asked for', () => {
    const path = process.env['PATH'];
    process.env['PATH'] = temporaryDirectory();
    try {
      expect(() => readDsdtFile(file(ASL), warn)).toThrow(
        expect.objectContaining({
          message: expect.stringContaining('iasl is not installed'),
          hint: expect.stringContaining('.aml'),
        }),
      );
    } finally {
      process.env['PATH'] = path;
    }
  });

  test('a compiler that makes something else is refused', () => {
    const bin = temporaryDirectory();
    const odd = file(table('DSDT', [0x08, 1, 2, 3, 4]));
    writeFileSync(join(bin, 'iasl'), `#!/bin/sh\n/bin/cp ${odd} user.aml\n`);
    chmodSync(join(bin, 'iasl'), 0o755);
    const path = process.env['PATH'];
    process.env['PATH'] = bin;
    try {
      expect(() => readDsdtFile(file(ASL), warn)).toThrow('iasl made something unexpected of it');
    } finally {
      process.env['PATH'] = path;
    }
  });

  test('is for devices of Intel that have no AML of their own', () => {
    expect(firmwareOf(env(), identity(0x10ec, 0x8168), '/x').aml).toBeUndefined();
    expect(firmwareOf(env(), identity(0x8086, 0x5aaa), '/x').aml).toBeDefined();
    expect(warnings).toEqual([
      'dsdt=/x is ignored: only devices of Intel have it',
      'dsdt=/x is ignored: there is AML for this device',
    ]);
  });

  test('is read once, at the first writing of the tables; not at all for a plan', () => {
    const body = [0x08, ...Buffer.from('MINE'), 0x01];
    const path = file(table('SSDT', body));
    const { aml } = firmwareOf(env(), identity(0x8086, 0x9a49), path);
    expect(aml?.().aml()).toEqual(body);
    writeFileSync(path, 'gone');
    expect(aml?.().aml()).toEqual(body);
    expect(firmwareOf(env('', true), identity(0x8086, 0x9a49), '/nonexistent').aml).toBeUndefined();
    expect(warnings).toEqual([]);
  });
});

describe('the audio controller', () => {
  const audio = identity(0x8086, 0x5a98);

  test("has the host's NHLT, with a header of ours, where its AML says", () => {
    const host = table('NHLT', [1, 2, 3, 4, 5]);
    const { aml, tables } = firmwareOf(env(hostWithTpm({ 'sys/firmware/acpi/tables/NHLT': host })), audio, undefined);
    const [nhlt] = tables?.() ?? [];
    expect(nhlt).toMatchObject({ signature: 'NHLT' });
    expect([...(nhlt?.bytes.subarray(36) ?? [])]).toEqual([1, 2, 3, 4, 5]);
    expect(checkAcpiTable(nhlt?.bytes as Uint8Array, 'NHLT')).toBeUndefined();
    const length = Buffer.alloc(8);
    length.writeUInt32LE(host.length);
    expect(Buffer.from(aml?.().aml() as readonly number[]).includes(length)).toBe(true);
  });

  test.each<[string, Record<string, Uint8Array | undefined>, string]>([
    ['none', {}, 'cannot be read'],
    ['another table', { 'sys/firmware/acpi/tables/NHLT': table('DSDT') }, 'is no NHLT'],
    ['a cut one', { 'sys/firmware/acpi/tables/NHLT': table('NHLT', [1, 2]).subarray(0, 37) }, 'says that it has 38'],
  ])('%s is refused', (_what, files, why) => {
    const { tables } = firmwareOf(env(hostWithTpm(files)), audio, undefined);
    expect(() => tables?.()).toThrow(`the host's ACPI table NHLT, which its audio controller needs, ${why}`);
  });

  test('in a plan for another machine nothing is said of it', () => {
    expect(firmwareOf(env('/nonexistent', true), audio, undefined)).toEqual({ aml: undefined, tables: undefined });
  });
});
