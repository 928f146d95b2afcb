/** Rings alone: chains out, used elements back, nothing done with them. */
import { bench, describe } from 'vitest';
import { GuestRam } from '../devicemodel/hw/pci/virtio/guest-ram.ts';
import { Virtqueue } from '../devicemodel/hw/pci/virtio/virtqueue.ts';

const SIZE = 64;
/** Requests of three descriptors, as a disk's, that are offered at once. */
const BATCH = 16;
const [DESC, AVAIL, USED, BUFFERS] = [0x1000, 0x2000, 0x3000, 0x10000] as const;

function serve(queue: Virtqueue): void {
  do {
    queue.suppressNotify();
    for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) queue.push(chain, 1);
    queue.publish();
  } while (queue.allowNotify());
}

describe('virtqueue', () => {
  const bytes = new Uint8Array(0x100000);
  const view = new DataView(bytes.buffer);
  const ram = new GuestRam([{ base: 0, bytes, hostAddress: undefined }]);
  const host = { interrupt: () => {}, broken: () => {} };
  const queue = new Virtqueue(0, SIZE, ram, host);
  queue.setFeatures({ packed: false, indirect: true, eventIdx: true, notifyOnEmpty: false });
  queue.enable(DESC, AVAIL, USED);
  for (let i = 0; i < 3 * BATCH; i++) {
    const part = i % 3;
    view.setUint32(DESC + 16 * i, BUFFERS + 4096 * i, true);
    view.setUint32(DESC + 16 * i + 8, part === 1 ? 4096 : 16, true);
    view.setUint16(DESC + 16 * i + 12, part === 0 ? 1 : part === 1 ? 3 : 2, true);
    view.setUint16(DESC + 16 * i + 14, i + 1, true);
  }
  let available = 0;
  bench(`split: ${BATCH} requests`, () => {
    for (let i = 0; i < BATCH; i++) {
      view.setUint16(AVAIL + 4 + 2 * (available % SIZE), 3 * i, true);
      available = (available + 1) & 0xffff;
    }
    view.setUint16(AVAIL + 2, available, true);
    serve(queue);
  });
});
