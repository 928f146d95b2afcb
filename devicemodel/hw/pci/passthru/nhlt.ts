/** The host's NHLT (Intel, Non HD Audio Specification): what microphones and codecs the audio controller has. */
import { readFileSync } from 'node:fs';
import { HostError } from '../../../core/errors.ts';
import { AcpiHeader, checkAcpiTable } from '../../../core/firmware/tables.ts';

/**
 * @param root of the host's files, empty for this machine's.
 * @returns the whole table. @throws HostError if there is none, or it is damaged: as with C the controller is not passed then.
 */
export function readHostNhlt(root = ''): Uint8Array {
  const path = `${root}/sys/firmware/acpi/tables/NHLT`;
  const fail = (why: string, cause?: unknown): never => {
    throw new HostError(`the host's ACPI table NHLT, which its audio controller needs, ${why}`, 0, {
      ...(cause === undefined ? {} : { cause }),
    });
  };
  let bytes: Buffer;
  try {
    bytes = readFileSync(path);
  } catch (error) {
    return fail(`cannot be read: ${(error as Error).message}`, error);
  }
  const problem = checkAcpiTable(bytes, 'NHLT');
  if (problem !== undefined) fail(problem);
  return bytes.subarray(0, AcpiHeader.decode(bytes).length);
}
