/** Block devices of the host (<linux/fs.h>, x86-64). */
import { Errno } from './errno.ts';
import { ioctlBytes } from './ioctl.ts';
import { asyncCall, must } from './libc.ts';

const Request = { GetSize64: 0x80081272, PhysicalBlockSize: 0x127b, Discard: 0x1277 } as const;
const SECTOR_BYTES = 512;

const discardRange = new BigUint64Array(2);

/** @throws HostError when it is none. */
export function blockDeviceSize(fd: number, path: string): number {
  const size = new BigUint64Array(1);
  must(ioctlBytes(fd, Request.GetSize64, size), 'BLKGETSIZE64', path);
  return Number(size[0]);
}

/** What the medium writes at once; 512 where the device does not say. */
export function physicalBlockBytes(fd: number): number {
  const size = new Uint32Array(1);
  return ioctlBytes(fd, Request.PhysicalBlockSize, size) === 0 && size[0] !== 0 ? (size[0] as number) : SECTOR_BYTES;
}

/** Give a range back; what it reads as is the device's. A range of nothing tells whether it can. @returns 0 or a negative errno. */
export function discardBlocks(fd: number, at: number, sizeBytes: number): number {
  discardRange[0] = BigInt(at);
  discardRange[1] = BigInt(sizeBytes);
  return ioctlBytes(fd, Request.Discard, discardRange);
}

const ioctlAside = asyncCall<[fd: number, request: number, argument: BigUint64Array]>(
  'int ioctl(int, unsigned long, void *)',
);

/** As {@link discardBlocks}, on a thread of Node's. @returns 0 or a negative errno. */
export async function discardBlocksAside(fd: number, at: number, sizeBytes: number): Promise<number> {
  for (;;) {
    const result = await ioctlAside(fd, Request.Discard, new BigUint64Array([BigInt(at), BigInt(sizeBytes)]));
    if (result !== -Errno.EINTR) return result;
  }
}
