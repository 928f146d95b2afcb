/**
 * Disk requests inside this process as a driver of AHCI makes them, beside virtio-blk: from PxCI to the interrupt, on a
 * file in memory. What the registers cost a guest in exits is not in here; bench/virtio.mjs has that for virtio.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, bench, describe } from 'vitest';
import { checkOptions } from '../devicemodel/core/options.ts';
import { Ahci } from '../devicemodel/hw/pci/ahci/ahci.ts';
import { AhciOptions, parseAhciText } from '../devicemodel/hw/pci/ahci/options.ts';
import { AhciDriver } from '../test/support/ahci-driver.ts';
import { VirtioMachine } from '../test/support/virtio-driver.ts';

const DISK_BYTES = 64 << 20;
const dir = mkdtempSync('/dev/shm/ahci-bench-');
const path = join(dir, 'disk');
writeFileSync(path, Buffer.alloc(DISK_BYTES));
const undo: Array<() => void | Promise<void>> = [() => rmSync(dir, { recursive: true })];
afterAll(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** A driver with `depth` queued commands ready to be issued again and again. @returns what issues them all at once. */
async function makeTraffic(options: string, isWrite: boolean, sizeBytes: number, depth: number): Promise<() => void> {
  const machine = new VirtioMachine({ ram: [[0, 32 << 20]] });
  undo.push(() => machine.dispose());
  const env = { ...machine.env(), msi: { signal: () => {} } };
  const fn = new Ahci(checkOptions(AhciOptions, parseAhciText('ahci', 'hd', `${path}${options}`)), env);
  await fn.start();
  undo.push(() => fn.stop());
  const driver = new AhciDriver(machine, fn);
  driver.config.write(0x44, 4, 0xfee00000);
  driver.config.write(0x42, 2, 1);
  driver.start(0);
  const command = isWrite ? 0x61 : 0x60;
  for (let slot = 0; slot < depth; slot++) {
    const memory = [[0x100000 + slot * sizeBytes, sizeBytes]] as const;
    driver.prepare(0, slot, { command, count: sizeBytes / 512, memory, isWrite });
  }
  const places = DISK_BYTES / sizeBytes - 1;
  let seed = 1;
  const all = depth === 32 ? 0xffffffff : 2 ** depth - 1;
  return () => {
    for (let slot = 0; slot < depth; slot++) {
      seed = (Math.imul(seed, 1103515245) + 12345) & 0x7fffffff;
      const lba = (seed % places) * (sizeBytes / 512);
      const table = driver.tableAt(0, slot);
      machine.memory.writeU16(table + 4, lba & 0xffff);
      machine.memory.writeU8(table + 6, lba >> 16);
    }
    driver.set(0, 'sact', all);
    driver.set(0, 'ci', all);
    driver.set(0, 'pis', 0xffffffff);
    driver.setHba(8, 1);
  };
}

describe('ahci', async () => {
  const read = await makeTraffic(',ro,range=0/131072', false, 4096, 1);
  bench('4 KiB random read', () => read());
  const deep = await makeTraffic(',ro,range=0/131072', false, 4096, 16);
  bench('16 times 4 KiB random read at once', () => deep());
  const large = await makeTraffic(',ro,range=0/131072', false, 128 * 1024, 1);
  bench('128 KiB read', () => large());
});

describe('ahci, writing', async () => {
  writeFileSync(`${path}.w`, Buffer.alloc(DISK_BYTES));
  const write = await makeTraffic('.w', true, 4096, 1);
  bench('4 KiB random write, written through', () => write());
});
