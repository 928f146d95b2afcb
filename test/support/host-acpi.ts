/** A made-up host with a TPM, as directories and files. */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { temporaryDirectory } from './images.ts';

export interface HostTpm2 {
  readonly signature?: string;
  readonly control?: number;
  readonly startMethod?: number;
  readonly log?: { readonly base: number; readonly sizeBytes: number };
}

/** TCG ACPI 1.2 §7.3: 64 bytes, 76 with the fields of the event log; its sum is right. */
export function tpm2HostTable({
  signature = 'TPM2',
  control = 0xfed40040,
  startMethod = 7,
  log,
}: HostTpm2 = {}): Buffer {
  const table = Buffer.alloc(log === undefined ? 64 : 76);
  table.write(signature, 'latin1');
  table.writeUInt32LE(table.length, 4);
  table.writeBigUInt64LE(BigInt(control), 40);
  table.writeUInt32LE(startMethod, 48);
  if (log !== undefined) {
    table.writeUInt32LE(log.sizeBytes, 64);
    table.writeBigUInt64LE(BigInt(log.base), 68);
  }
  table[9] = -table.reduce((sum, byte) => sum + byte, 0) & 0xff;
  return table;
}

/** @param files more of them, or others, by path; undefined: not there. */
export function hostWithTpm(
  files: Readonly<Record<string, string | Uint8Array | undefined>> = {},
  root: string = temporaryDirectory(),
): string {
  const all = {
    'sys/bus/acpi/devices/MSFT0101:00/modalias': 'acpi:MSFT0101:MSFT0101:\n',
    'proc/iomem': 'fed40000-fed44fff : MSFT0101:00\n',
    'sys/firmware/acpi/tables/TPM2': tpm2HostTable(),
    ...files,
  };
  for (const [path, content] of Object.entries(all)) {
    if (content === undefined) continue;
    mkdirSync(join(root, dirname(path)), { recursive: true });
    writeFileSync(join(root, path), content);
  }
  return root;
}
