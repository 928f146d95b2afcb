/** A file that the user gives the guest, by its text or from a file of this machine. */
import * as v from 'valibot';
import { readRegularFile } from '../../../core/host/read-file.ts';
import { MiB } from '../../../core/units.ts';

/** One file; larger ones have better ways into a guest. */
export const MAX_FILE_BYTES = 16 * MiB;

export const FwCfgFile = v.strictObject({ name: v.string(), from: v.picklist(['string', 'file']), value: v.string() });
export type FwCfgFile = v.InferOutput<typeof FwCfgFile>;

/** @throws HostError that names the file. */
export function contentOf({ name, from, value }: FwCfgFile): Uint8Array {
  if (from === 'string') return new TextEncoder().encode(value);
  const what = `file ${value} for ${name}`;
  return readRegularFile(value, what, MAX_FILE_BYTES);
}
