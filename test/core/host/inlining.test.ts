/** V8's code caches know with which flags they were made: what a thread of Node's starts from is refused with others. */
import { once } from 'node:events';
import { cachedDataVersionTag } from 'node:v8';
import { expect, test } from 'vitest';
import { letCompilerInline } from '../../../devicemodel/core/host/inlining.ts';
import { startWorker } from '../../../devicemodel/core/host/worker.ts';

// Mutation: without the pair in startWorker, threads start with the flag.
test('V8 may inline more, but not while threads start', async () => {
  const [nodes] = [cachedDataVersionTag(), letCompilerInline()];
  const wanted = cachedDataVersionTag();
  expect(wanted).not.toBe(nodes);
  const workers = [1, 2].map(() => startWorker('setTimeout(() => {}, 1)', { eval: true }, 'a thread'));
  // Asked for now: on a busy machine one of them has ended before the other one is there.
  const exits = Promise.all(workers.map((worker) => once(worker, 'exit')));
  expect(cachedDataVersionTag()).toBe(nodes);
  await Promise.all(workers.map((worker) => once(worker, 'online')));
  expect(cachedDataVersionTag()).toBe(wanted);
  await exits;
  expect(cachedDataVersionTag()).toBe(wanted);
});

test('a thread that cannot be had changes nothing', () => {
  letCompilerInline();
  const before = cachedDataVersionTag();
  expect(() => startWorker('', { eval: true, workerData: () => {} }, 'a thread')).toThrow();
  expect(cachedDataVersionTag()).toBe(before);
});
