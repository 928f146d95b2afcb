/** What a block request looks like (Virtio 1.2 §5.2.6), and what of it has to be checked before anything is done. */
import type { DiscardLimits, DiskImage } from '../../../storage/disk-image.ts';
import { SECTOR_BYTES } from '../../../storage/image-options.ts';
import type { Chain } from '../ring/chain.ts';

/** §5.2.6, request types. */
export const RequestType = { In: 0, Out: 1, Flush: 4, FlushOut: 5, GetId: 8, Discard: 11 } as const;
/** Legacy drivers may OR this into the type; it means nothing here (§5.2.6.4). */
export const BARRIER = 0x80000000;
export const BlkStatus = { Ok: 0, IoError: 1, Unsupported: 2 } as const;
/** u32 type, u32 reserved, u64 sector. */
export const HEADER_BYTES = 16;
/** §5.2.6, struct virtio_blk_discard_write_zeroes: u64 sector, u32 num_sectors, u32 flags. */
export const DISCARD_SEGMENT_BYTES = 16;
const DISCARD_UNMAP = 1;

/** §5.2.6.1: whole sectors, inside the disk. */
export function isInside(image: DiskImage, sector: number, count: number): boolean {
  return count % SECTOR_BYTES === 0 && sector <= Number.MAX_SAFE_INTEGER / SECTOR_BYTES / 2
    ? sector * SECTOR_BYTES + count <= image.sizeBytes - (image.sizeBytes % SECTOR_BYTES)
    : false;
}

/** @returns the status of a discard of these segments before anything is carried out. */
export function checkSegments(chain: Chain, image: DiskImage, limits: DiscardLimits, segments: number): number {
  for (let i = 0; i < segments; i++) {
    const at = HEADER_BYTES + i * DISCARD_SEGMENT_BYTES;
    const sector = chain.readU32(at) + chain.readU32(at + 4) * 0x1_0000_0000;
    const sectors = chain.readU32(at + 8);
    // §5.2.6.2: unmap is for write-zeroes only.
    if ((chain.readU32(at + 12) & DISCARD_UNMAP) !== 0) return BlkStatus.Unsupported;
    if (
      sectors === 0 ||
      sectors > limits.maxSectors ||
      (limits.alignmentSectors !== 0 && sector % limits.alignmentSectors !== 0) ||
      !isInside(image, sector, sectors * SECTOR_BYTES)
    ) {
      return BlkStatus.IoError;
    }
  }
  return BlkStatus.Ok;
}
