/**
 * Recorded runs of the C device model, if this machine has them: ACRN_GOLDEN_DIR, or `shared/golden` beside the
 * repository. Tests that need them are skipped otherwise, with a reason.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join, resolve } from 'node:path';
import { gunzipSync } from 'node:zlib';
import { selectCases } from '../golden/select-cases.mjs';

const dir = process.env['ACRN_GOLDEN_DIR'] ?? resolve(import.meta.dirname, '../../../shared/golden');

/** Directory of the recorded cases, or undefined. */
export const recordedDir: string | undefined = existsSync(join(dir, 'README.md')) ? dir : undefined;
if (recordedDir === undefined) console.warn(`recorded cases are not compared: ${dir} does not exist`);

/** Content of a case's file, packed or not; undefined if the case has no such file. */
export function recordedFile(caseName: string, file: string): Uint8Array | undefined {
  const path = join(dir, caseName, file);
  if (existsSync(path)) return readFileSync(path);
  return existsSync(`${path}.gz`) ? gunzipSync(readFileSync(`${path}.gz`)) : undefined;
}

function text(caseName: string, file: string): string {
  const bytes = recordedFile(caseName, file);
  if (bytes === undefined) throw new Error(`${caseName}: ${file} is missing`);
  return new TextDecoder().decode(bytes);
}

export interface RecordedCase {
  readonly name: string;
  readonly argv: readonly string[];
  readonly script: { readonly config: Record<string, unknown> };
}

/** Cases of test/golden/cases.txt that have a file, by name. */
export function recordedCases(having: string): RecordedCase[] {
  if (recordedDir === undefined) return [];
  return selectCases(recordedDir)
    .filter((name) => recordedFile(name, having) !== undefined)
    .map((name) => ({
      name,
      argv: JSON.parse(text(name, 'case.json')).argv,
      script: JSON.parse(text(name, 'script.json')),
    }));
}

/** Events of a case's trace, one object per line. */
// biome-ignore lint/suspicious/noExplicitAny: each kind of event has fields of its own
export function recordedTrace(caseName: string): any[] {
  return text(caseName, 'trace.jsonl')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
}

/** Values of an option that may be given several times. */
export function optionValues(argv: readonly string[], option: string): string[] {
  return argv.flatMap((word, i) => (argv[i - 1] === option ? [word] : []));
}

/** Local APIC ids of the host the cases were recorded on, by physical CPU. */
export const RECORDED_HOST_LAPIC_IDS = [0, 2, 4, 6, 1, 3, 5, 7] as const;
