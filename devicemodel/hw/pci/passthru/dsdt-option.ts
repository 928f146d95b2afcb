/**
 * `dsdt=FILE`: what a user wants the guest to be told of a function. The file is AML (a whole DSDT or SSDT, as iasl makes
 * it), or ASL for inside of `\_SB.PCI0`, which iasl compiles. The text is only ever given to the compiler.
 */
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { ConfigError, ExitCode, HostError } from '../../../core/errors.ts';
import type { Aml } from '../../../core/firmware/aml.ts';
import { AcpiHeader, checkAcpiTable } from '../../../core/firmware/tables.ts';
import { readRegularFile } from '../../../core/host/read-file.ts';
import { KiB } from '../../../core/units.ts';

/** More than the DSDT's room can take, however it is written. */
const MAX_FILE_BYTES = 512 * KiB;
const COMPILE_TIMEOUT_MS = 20_000;

/** Opcodes around the text of a user (ACPI 6.4 §20.2.5). */
const Op = { If: 0xa0, Scope: 0x10, RootChar: 0x5c, ExtPrefix: 0x5b, Device: 0x82 } as const;
/** `Name (_ADR, 0)`: iasl wants a device to have one. */
const ADR_BYTES = 6;

/** @returns undefined if there is no such file: as with C that is a message, no more. */
export function readDsdtFile(path: string, warn: (line: string) => void): Aml | undefined {
  let content: Buffer;
  try {
    content = readRegularFile(path, 'it');
  } catch (error) {
    warn(`dsdt=${path} is ignored: ${(error as Error).message}`);
    return undefined;
  }
  if (content.length > MAX_FILE_BYTES) throw new ConfigError(`dsdt=${path}: ${content.length} bytes are too many`);
  const signature = content.toString('latin1', 0, 4);
  return signature === 'DSDT' || signature === 'SSDT' ? bodyOfTable(path, content) : compile(path, content);
}

function bodyOfTable(path: string, table: Buffer): Aml {
  const problem = checkAcpiTable(table, table.toString('latin1', 0, 4));
  if (problem !== undefined) throw new ConfigError(`dsdt=${path}: the table ${problem}`);
  return [...table.subarray(AcpiHeader.size, AcpiHeader.decode(table).length)];
}

function compile(path: string, text: Buffer): Aml {
  const dir = mkdtempSync(join(tmpdir(), 'acrn-dm-dsdt-'));
  try {
    const source = Buffer.concat([
      Buffer.from(
        'DefinitionBlock ("", "SSDT", 2, "ACRN", "PTDEV", 1) { Scope (\\_SB) { Device (PCI0) { Name (_ADR, Zero)\n',
      ),
      text,
      Buffer.from('\n} } }\n'),
    ]);
    writeFileSync(join(dir, 'user.asl'), source);
    const { error, status, stdout, stderr } = spawnSync('iasl', ['-vr', '-p', 'user', 'user.asl'], {
      cwd: dir,
      timeout: COMPILE_TIMEOUT_MS,
      encoding: 'latin1',
    });
    if (error !== undefined) throw noCompiler(path, error);
    if (status !== 0) throw new ConfigError(`dsdt=${path}: ${firstComplaint(stdout + stderr, text)}`, { hint: HINT });
    return contents(path, readFileSync(join(dir, 'user.aml')));
  } finally {
    rmSync(dir, { recursive: true, force: true });
  }
}

const HINT = 'it is ASL for inside of Device (PCI0); External () declares what it names of other devices';

function noCompiler(path: string, error: Error): HostError {
  const why = (error as NodeJS.ErrnoException).code === 'ENOENT' ? 'iasl is not installed' : `iasl: ${error.message}`;
  return new HostError(`dsdt=${path}: ${why}`, 0, {
    cause: error,
    exitCode: ExitCode.Unavailable,
    hint: 'install acpica-tools, or compile it elsewhere (iasl FILE) and give the .aml file',
  });
}

/** `user.asl(3): Error 6126 - syntax error` → where it is in the file, and what is wrong. */
function firstComplaint(output: string, text: Buffer): string {
  const lines = output.split('\n');
  const at = lines.findIndex((line) => /^(user\.asl\(\d+\) : )?\s*Error\s+\d+/.test(line));
  const message = /Error\s+\d+\s+-\s*(.*)/
    .exec(lines[at] ?? '')?.[1]
    ?.replace(/\s*\^\s*/, ' ')
    .trim();
  const line =
    /^\S*user\.asl\s+(\d+):/.exec(lines[at - 1] ?? '')?.[1] ?? /user\.asl\((\d+)\)/.exec(lines[at] ?? '')?.[1];
  const what =
    message === undefined || message === '' ? 'iasl does not accept it' : message.replace(/[^\x20-\x7e]/g, '?');
  // Behind the end it is an end that is missing.
  const lineCount = text.toString('latin1').trimEnd().split('\n').length;
  return line === undefined ? what : `line ${Math.min(Number(line) - 1, lineCount)}: ${what}`;
}

/** What the user wrote, out of the scope and the device it was compiled in. */
function contents(path: string, table: Buffer): Aml {
  const unexpected = () => new ConfigError(`dsdt=${path}: iasl made something unexpected of it`);
  let at: number = AcpiHeader.size;
  // External declarations are in a block that is never run.
  while (table[at] === Op.If) at = packageAt(table, at + 1).end;
  if (table[at] !== Op.Scope) throw unexpected();
  at = packageAt(table, at + 1).start;
  if (table[at] === Op.RootChar) at++;
  at += Buffer.byteLength('_SB_');
  if (table[at] !== Op.ExtPrefix || table[at + 1] !== Op.Device) throw unexpected();
  const device = packageAt(table, at + 2);
  return [...table.subarray(device.start + Buffer.byteLength('PCI0') + ADR_BYTES, device.end)];
}

/** PkgLength (ACPI 6.4 §20.2.4): two bits say how many bytes follow. */
function packageAt(table: Buffer, at: number): { readonly start: number; readonly end: number } {
  const lead = table.readUInt8(at);
  const more = lead >>> 6;
  let length = more === 0 ? lead & 0x3f : lead & 0x0f;
  for (let i = 1; i <= more; i++) length += table.readUInt8(at + i) << (4 + 8 * (i - 1));
  return { start: at + 1 + more, end: at + length };
}
