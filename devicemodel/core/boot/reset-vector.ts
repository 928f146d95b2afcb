/** Where a CPU starts after power-on. */
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import { KIND_BYTES, kindOf } from './file-kind.ts';
import { badImage, type ImageFile } from './image-file.ts';

const RESET_VECTOR_BYTES = 16;
/** Flash is erased, and firmware built, in no smaller pieces. */
const FLASH_SECTOR_BYTES = 4096;
/** Real mode at the reset vector, 16 bytes below 4 GiB (Intel SDM volume 3, §9.1.4). */
const RESET_VECTOR = Layout.firmwareEnd - RESET_VECTOR_BYTES;
export const RESET_REGS: VcpuRegs = {
  cr0: 0x30n, // ET, NE
  cs: { selector: 0xf000, base: BigInt(RESET_VECTOR - (RESET_VECTOR % 0x1_0000)), limit: 0xffff, attributes: 0x9f },
  rip: BigInt(RESET_VECTOR % 0x1_0000),
};

/** @param file ends at 4 GiB. @throws ConfigError for what cannot be firmware: a CPU would run into nothing. */
export function checkFirmware(file: ImageFile): void {
  const vector = new Uint8Array(Math.min(RESET_VECTOR_BYTES, file.sizeBytes));
  file.read(vector, file.sizeBytes - vector.length);
  const [first] = vector;
  const isBlank = (first === 0 || first === 0xff) && vector.every((byte) => byte === first);
  // The head of flash holds variables, in which a guest writes what it likes, or packed code: neither is a sign of anything.
  if (!isBlank && file.sizeBytes % FLASH_SECTOR_BYTES === 0) return;
  const head = new Uint8Array(Math.min(KIND_BYTES, file.sizeBytes));
  file.read(head, 0);
  const kind = kindOf(head);
  if (kind !== undefined) throw badImage(file.role, file.path, `is no firmware: it is ${kind.name}`, kind.hint);
  if (isBlank) {
    throw badImage(
      file.role,
      file.path,
      `has nothing to start: its last ${vector.length} bytes, the reset vector, are all 0x${first.toString(16)}`,
      'is it a disk, or the file with the variables?',
    );
  }
}
