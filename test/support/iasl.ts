/** The ACPICA compiler and disassembler, where it is installed: a second opinion on AML made here. */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';

/** Whether `iasl` can be run; says so if not. */
export const hasIasl: boolean = spawnSync('iasl', ['-v']).status === 0;
if (!hasIasl) console.warn('AML is not compared with iasl: iasl is not installed');

/** A table of the given body, with a header that iasl accepts. */
export function tableOf(signature: string, body: Uint8Array): Uint8Array {
  const table = new Uint8Array(36 + body.length);
  const view = new DataView(table.buffer);
  const ascii = (at: number, value: string) => table.set(new TextEncoder().encode(value), at);
  ascii(0, signature);
  view.setUint32(4, table.length, true);
  table[8] = 2;
  ascii(10, 'TEST  ');
  ascii(16, 'TERMS   ');
  view.setUint32(24, 1, true);
  ascii(28, 'TEST');
  table.set(body, 36);
  table[9] = -table.reduce((sum, byte) => sum + byte, 0) & 0xff;
  return table;
}

function run(dir: string, args: readonly string[]): string {
  const { stdout, stderr } = spawnSync('iasl', args, { cwd: dir, encoding: 'utf8' });
  return `${stdout}\n${stderr}`;
}

/**
 * Disassemble a table to `NAME.dsl`.
 * @param style of expressions: `asl+` has operators, but leaves out parentheses it would need to read some of them again.
 * @returns what iasl said.
 */
export function disassemble(dir: string, name: string, table: Uint8Array, style: 'asl+' | 'asl' = 'asl+'): string {
  writeFileSync(join(dir, `${name}.aml`), table);
  return run(dir, [style === 'asl+' ? '-d' : '-dl', `${name}.aml`]);
}

/** A table as ASL, by a disassembler that has nothing to complain about. */
export function disassembledText(dir: string, table: Uint8Array): string {
  const said = disassemble(dir, 'table', table);
  if (/error|warning/i.test(said)) throw new Error(said);
  return readFileSync(join(dir, 'table.dsl'), 'utf8');
}

/** Compile `NAME.dsl` left by `disassemble`. @returns AML without optimizations of names and constants, and the report. */
export function recompile(dir: string, name: string): { report: string; aml: Uint8Array | undefined } {
  const report = run(dir, ['-of', '-on', '-p', `${name}-again`, `${name}.dsl`]);
  const path = join(dir, `${name}-again.aml`);
  return { report, aml: existsSync(path) ? readFileSync(path) : undefined };
}
