/** Disk requests inside this process: from the kick to the used ring, on a file in memory. */
import { checkOptions } from '../devicemodel/core/options.ts';
import { virtioBlk } from '../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../devicemodel/hw/pci/virtio/block/options.ts';
import { VirtioDriver, VirtioMachine } from '../test/support/virtio-driver.ts';
import { benchDisk } from './disk-bench.ts';

benchDisk('virtio-blk', 'one kick', async ({ path, undo, place }, { options, isWrite, sizeBytes, depth }) => {
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
  let available = 0;
  return () => {
    for (const [i, header] of headers.entries()) {
      memory.writeU32(header + 8, place(sizeBytes));
      memory.writeU16(ring.avail + 4 + 2 * (available % ring.size), 3 * i);
      available = (available + 1) & 0xffff;
    }
    memory.writeU16(ring.avail + 2, available);
    driver.kick(0);
  };
});
