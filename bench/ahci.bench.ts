/**
 * Disk requests inside this process as a driver of AHCI makes them, beside virtio-blk: from PxCI to the interrupt, on a
 * file in memory. What the registers cost a guest in exits is not in here; bench/virtio.mjs has that for virtio.
 */
import { checkOptions } from '../devicemodel/core/options.ts';
import { Ahci } from '../devicemodel/hw/pci/ahci/ahci.ts';
import { AhciOptions, parseAhciText } from '../devicemodel/hw/pci/ahci/options.ts';
import { AhciDriver } from '../test/support/ahci-driver.ts';
import { VirtioMachine } from '../test/support/virtio-driver.ts';
import { benchDisk } from './disk-bench.ts';

benchDisk('ahci', 'once', async ({ path, undo, place }, { options, isWrite, sizeBytes, depth }) => {
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
  const all = depth === 32 ? 0xffffffff : 2 ** depth - 1;
  return () => {
    for (let slot = 0; slot < depth; slot++) {
      const lba = place(sizeBytes);
      const table = driver.tableAt(0, slot);
      machine.memory.writeU16(table + 4, lba & 0xffff);
      machine.memory.writeU8(table + 6, lba >> 16);
    }
    driver.set(0, 'sact', all);
    driver.set(0, 'ci', all);
    driver.set(0, 'pis', 0xffffffff);
    driver.setHba(8, 1);
  };
});
