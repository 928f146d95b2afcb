/** A file that the user gives the guest, by its text or from a file of this machine. */
import { statSync } from 'node:fs';
import * as v from 'valibot';
import { ConfigError } from '../../../core/errors.ts';
import { readRegularFile } from '../../../core/host/read-file.ts';
import { formatSize, MiB } from '../../../core/units.ts';

/** One file; larger ones have better ways into a guest. */
export const MAX_FILE_BYTES = 16 * MiB;

export const FwCfgFile = v.strictObject({ name: v.string(), from: v.picklist(['string', 'file']), value: v.string() });
export type FwCfgFile = v.InferOutput<typeof FwCfgFile>;

/** @throws HostError or ConfigError that names the file. */
export function contentOf({ name, from, value }: FwCfgFile): Uint8Array {
  if (from === 'string') return new TextEncoder().encode(value);
  const what = `file ${value} for ${name}`;
  const size = statSync(value, { throwIfNoEntry: false })?.size ?? 0;
  const limit = `${what} is larger than ${formatSize(MAX_FILE_BYTES)}`;
  if (size > MAX_FILE_BYTES) throw new ConfigError(limit);
  const content = readRegularFile(value, what);
  if (content.length > MAX_FILE_BYTES) throw new ConfigError(limit);
  return content;
}
