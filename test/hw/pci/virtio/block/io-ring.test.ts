/** The ring of a data thread when the kernel takes nothing any more: the thread ends by an error, and its queues come back. */
import { closeSync, openSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { Eventfd } from '../../../../../devicemodel/core/host/eventfd.ts';
import { closeFd } from '../../../../../devicemodel/core/host/files.ts';
import { native } from '../../../../../devicemodel/core/host/libc.ts';
import { socketPair } from '../../../../../devicemodel/core/host/unix-sockets.ts';
import { BlockRing } from '../../../../../devicemodel/hw/pci/virtio/block/io-ring.ts';

const ring = (() => {
  try {
    return new BlockRing();
  } catch {
    return undefined;
  }
})();

/** Put in the place of the ring's descriptor: each is refused with an errno of its own. @returns what is to be closed. */
const inItsPlace: Readonly<Record<string, () => number>> = {
  'the null device': () => openSync('/dev/null', 'r'),
  'a file': () => openSync(import.meta.filename, 'r'),
  'a folder': () => openSync(import.meta.dirname, 'r'),
  'an eventfd': () => new Eventfd().fd,
  'a socket': () => {
    const [one, other] = socketPair('test');
    closeFd(other);
    return one;
  },
};

// Mutation: without the throw, `settle` turns for ever around requests that the kernel never had.
describe.skipIf(ring === undefined)('a ring that takes nothing', () => {
  const dup2 = native('int dup2(int, int)');

  test.each(Object.keys(inItsPlace))('because there is %s in its place', (what) => {
    const { fd } = ring as BlockRing;
    const other = inItsPlace[what]?.() as number;
    dup2(other, fd);
    closeSync(other);
    for (const completions of [1, 64]) expect(() => (ring as BlockRing).submit(completions)).toThrow(/^io_uring: E/);
  });
});
