/** Disk requests inside this process: from the kick to the used ring, on a file in memory. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, bench, describe } from 'vitest';
import { checkOptions } from '../devicemodel/core/options.ts';
import { virtioBlk } from '../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../devicemodel/hw/pci/virtio/block/options.ts';
import { VirtioDriver, VirtioMachine } from '../test/support/virtio-driver.ts';

const DISK_BYTES = 64 << 20;
const dir = mkdtempSync('/dev/shm/virtio-bench-');
const path = join(dir, 'disk');
writeFileSync(path, Buffer.alloc(DISK_BYTES));
const undo: Array<() => void | Promise<void>> = [() => rmSync(dir, { recursive: true })];
afterAll(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** A driver with `depth` requests ready to be offered again and again. @returns what offers and kicks them. */
async function makeTraffic(options: string, isWrite: boolean, sizeBytes: number, depth: number): Promise<() => void> {
  const machine = new VirtioMachine({ ram: [[0, 32 << 20]] });
  undo.push(() => machine.dispose());
  const parsed = checkOptions(BlockOptions, parseBlockText(`${path}${options}`)) as BlockOptions;
  const env = { ...machine.env(), msi: { signal: () => {} } };
  const driver = new VirtioDriver(machine, virtioBlk.create(parsed, env));
  await driver.fn.start?.();
  undo.push(() => driver.fn.stop?.());
  driver.enableMsix();
  driver.init();
  const { memory } = machine;
  const ring = driver.queues[0] as { desc: number; avail: number; size: number };
  const headers = Array.from({ length: depth }, (_, i) => {
    const header = driver.allocate(16);
    const data = driver.allocate(sizeBytes, 4096);
    const status = driver.allocate(1);
    memory.writeU32(header, isWrite ? 1 : 0);
    driver.setDescriptor(ring.desc, 3 * i, header, 16, 1, 3 * i + 1);
    driver.setDescriptor(ring.desc, 3 * i + 1, data, sizeBytes, isWrite ? 1 : 3, 3 * i + 2);
    driver.setDescriptor(ring.desc, 3 * i + 2, status, 1, 2, 0);
    return header;
  });
  const places = DISK_BYTES / sizeBytes - 1;
  let seed = 1;
  let available = 0;
  return () => {
    for (const [i, header] of headers.entries()) {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      memory.writeU32(header + 8, (seed % places) * (sizeBytes / 512));
      memory.writeU16(ring.avail + 4 + 2 * (available % ring.size), 3 * i);
      available = (available + 1) & 0xffff;
    }
    memory.writeU16(ring.avail + 2, available);
    driver.kick(0);
  };
}

describe('virtio-blk', async () => {
  const read = await makeTraffic(',ro,range=0/131072', false, 4096, 1);
  bench('4 KiB random read', () => read());
  const deep = await makeTraffic(',ro,range=0/131072', false, 4096, 16);
  bench('16 times 4 KiB random read at one kick', () => deep());
  const large = await makeTraffic(',ro,range=0/131072', false, 128 * 1024, 1);
  bench('128 KiB read', () => large());
});

describe('virtio-blk, writing', async () => {
  const other = `${path}.w`;
  writeFileSync(other, Buffer.alloc(DISK_BYTES));
  const write = await makeTraffic('.w', true, 4096, 1);
  bench('4 KiB random write, written through', () => write());
});
