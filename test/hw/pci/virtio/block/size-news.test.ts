/** A guest that heard of a larger disk asks for its new end while a data thread is still at the ring. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { silentLog } from '../../../../../devicemodel/core/log.ts';
import { BlockRequests } from '../../../../../devicemodel/hw/pci/virtio/block/requests.ts';
import type { Virtqueue } from '../../../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import type { VirtioDevice } from '../../../../../devicemodel/hw/pci/virtio/transport/device.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { openDiskImage } from '../../../../../devicemodel/hw/storage/disk-image.ts';
import { ImageIo } from '../../../../../devicemodel/hw/storage/image-io.ts';
import { MEMORY_DIR } from '../../../../support/memory-dir.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const SECTORS = 64;
const [OK, IO_ERROR] = [0, 1];

// Mutation: look before the ring is served, and not before each request.
test('each request meets the size of the disk as it is then', async () => {
  const dir = mkdtempSync(join(MEMORY_DIR, 'size-news-'));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'disk');
  writeFileSync(path, Buffer.alloc(2 * SECTORS * 512));
  const options = { ro: false, writeback: true, nocache: false, discard: undefined };
  const backend = new ImageIo(await openDiskImage(path, options, silentLog));
  backend.resize(SECTORS * 512);
  const state = {
    backend,
    isWriteback: true,
    reportsLength: false,
    serial: new Uint8Array(20),
    runsBesideDriver: true,
  };
  const requests = new BlockRequests(state, silentLog, { nowNs: () => 0 });
  let looks = 0;
  requests.lookAtSize = () => {
    if (++looks === 2) backend.resize(2 * SECTORS * 512);
  };
  const device: VirtioDevice = {
    name: 'disk',
    features: 0n,
    queueSizes: [64],
    configSizeBytes: 0,
    attach: () => {},
    notify: (queue: Virtqueue) => void requests.serve(queue),
    reset: () => {},
  };
  const machine = new VirtioMachine();
  const identity = { legacyDeviceId: 0x1001, type: 2, classCode: 0x010000 };
  const fn = new VirtioPci(device, machine.env(), { mode: 'legacy', identity });
  const driver = new VirtioDriver(machine, fn);
  await fn.start();
  onTestFinished(async () => {
    await fn.stop();
    machine.dispose();
  });
  driver.init();
  const header = new Uint8Array(16);
  header[8] = SECTORS;
  const statuses = [0, 1, 2].map(() => {
    driver.add(0, [{ read: header }, { write: 512 }, { write: 1 }]);
    return (driver.lastBuffers[2] as { at: number }).at;
  });
  driver.kick(0);
  expect(statuses.map((at) => driver.read(at, 1)[0])).toEqual([IO_ERROR, OK, OK]);
});
