/** What the benches of disks have in common: a file in memory, the sizes and depths that are measured, random places. */
import { rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, bench, describe } from 'vitest';
import { makeScratch } from '../tools/scratch.mjs';

const DISK_BYTES = 64 << 20;

export interface Traffic {
  /** Behind the path: of the image that is read, or of the one that is written. */
  readonly options: string;
  readonly isWrite: boolean;
  readonly sizeBytes: number;
  readonly depth: number;
}

export interface DiskFixture {
  readonly path: string;
  /** What is to be undone at the end. */
  readonly undo: Array<() => void | Promise<void>>;
  /** Sector of a place that is as good as any, for a request of this size. */
  place(sizeBytes: number): number;
}

/** @param makeTraffic `depth` requests ready to be made again and again. @returns what makes them all at once. */
export function benchDisk(
  name: string,
  deep: string,
  makeTraffic: (disk: DiskFixture, traffic: Traffic) => Promise<() => void>,
): void {
  const dir = makeScratch('disk-bench', '/dev/shm');
  const path = join(dir, 'disk');
  for (const image of [path, `${path}.w`]) writeFileSync(image, Buffer.alloc(DISK_BYTES));
  let seed = 1;
  const disk: DiskFixture = {
    path,
    undo: [() => rmSync(dir, { recursive: true })],
    place: (sizeBytes) => {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      return (seed % (DISK_BYTES / sizeBytes - 1)) * (sizeBytes / 512);
    },
  };
  afterAll(async () => {
    for (const step of disk.undo.splice(0).reverse()) await step();
  });
  const reading = { options: ',ro,range=0/131072', isWrite: false };
  describe(name, async () => {
    const read = await makeTraffic(disk, { ...reading, sizeBytes: 4096, depth: 1 });
    bench('4 KiB random read', () => read());
    const many = await makeTraffic(disk, { ...reading, sizeBytes: 4096, depth: 16 });
    bench(`16 times 4 KiB random read at ${deep}`, () => many());
    const large = await makeTraffic(disk, { ...reading, sizeBytes: 128 * 1024, depth: 1 });
    bench('128 KiB read', () => large());
  });
  describe(`${name}, writing`, async () => {
    const write = await makeTraffic(disk, { options: '.w', isWrite: true, sizeBytes: 4096, depth: 1 });
    bench('4 KiB random write, written through', () => write());
  });
}
