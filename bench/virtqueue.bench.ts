/** Rings alone: chains out, used elements back, nothing done with them. Each layout with what its driver has to write. */
import { bench, describe } from 'vitest';
import { GuestRam } from '../devicemodel/core/guest-buffers.ts';
import { Virtqueue } from '../devicemodel/hw/pci/virtio/ring/virtqueue.ts';

const SIZE = 64;
/** Requests of three descriptors, as a disk's, that are offered at once. */
const BATCH = 16;
const [DESC, DRIVER, DEVICE, BUFFERS] = [0x1000, 0x2000, 0x3000, 0x10000] as const;
const Flag = { Next: 1, Write: 2, Avail: 1 << 7, Used: 1 << 15 } as const;
/** Header, data, status. */
const lengths = [16, 4096, 1] as const;
const flags = [Flag.Next, Flag.Next | Flag.Write, Flag.Write] as const;

function makeQueue(packed: boolean) {
  const bytes = new Uint8Array(0x100000);
  const ram = new GuestRam([{ base: 0, bytes, hostAddress: undefined }]);
  const queue = new Virtqueue(0, SIZE, ram, { interrupt: () => {}, broken: () => {} });
  queue.setFeatures({ packed, indirect: true, eventIdx: true, notifyOnEmpty: false });
  queue.enable(DESC, DRIVER, DEVICE);
  return { queue, view: new DataView(bytes.buffer) };
}

function serve(queue: Virtqueue): void {
  do {
    queue.suppressNotify();
    for (let chain = queue.pop(); chain !== undefined; chain = queue.pop()) queue.push(chain, 1);
    queue.publish();
  } while (queue.allowNotify());
}

function makeSplitTraffic(): () => void {
  const { queue, view } = makeQueue(false);
  for (let i = 0; i < 3 * BATCH; i++) {
    const at = DESC + 16 * i;
    view.setUint32(at, BUFFERS + 4096 * i, true);
    view.setUint32(at + 8, lengths[i % 3] as number, true);
    view.setUint16(at + 12, flags[i % 3] as number, true);
    view.setUint16(at + 14, i + 1, true);
  }
  let available = 0;
  return () => {
    for (let i = 0; i < BATCH; i++) {
      view.setUint16(DRIVER + 4 + 2 * (available % SIZE), 3 * i, true);
      available = (available + 1) & 0xffff;
    }
    view.setUint16(DRIVER + 2, available, true);
    serve(queue);
  };
}

function makePackedTraffic(): () => void {
  const { queue, view } = makeQueue(true);
  let next = 0;
  let available: number = Flag.Avail;
  return () => {
    for (let i = 0; i < 3 * BATCH; i++) {
      const at = DESC + 16 * next;
      view.setUint32(at, BUFFERS + 4096 * i, true);
      view.setUint32(at + 8, lengths[i % 3] as number, true);
      view.setUint16(at + 12, i, true);
      view.setUint16(at + 14, (flags[i % 3] as number) | available, true);
      if (++next === SIZE) {
        next = 0;
        available ^= Flag.Avail | Flag.Used;
      }
    }
    serve(queue);
  };
}

describe('virtqueue', () => {
  const split = makeSplitTraffic();
  bench(`split: ${BATCH} requests`, () => split());
  const packed = makePackedTraffic();
  bench(`packed: ${BATCH} requests`, () => packed());
});
