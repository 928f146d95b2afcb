/** Who gets which back end, over the lives of a VM and beside other VMs. */
import { closeSync, openSync } from 'node:fs';
import { expect, test } from 'vitest';
import { ConfigError } from '../../../../devicemodel/core/errors.ts';
import { CharBackendPool } from '../../../../devicemodel/hw/uart/backends/pool.ts';
import { StdioClaim } from '../../../../devicemodel/hw/uart/backends/stdio.ts';
import { memoryLog } from '../../../support/memory-log.ts';

const { log } = memoryLog();

test('the same user gets the same back end again, another one its own', () => {
  const pool = new CharBackendPool({ log });
  expect(pool.open('com1', 'null')).toBe(pool.open('com1', 'null'));
  expect(pool.open('com2', 'null')).not.toBe(pool.open('com1', 'null'));
});

test('a back end of the launcher goes before option texts, once', () => {
  const opened: string[] = [];
  const pool = new CharBackendPool({
    log,
    ownBackend: (user, text) => {
      if (text !== 'mine') return undefined;
      opened.push(user);
      return {
        name: 'mine',
        read: () => -1,
        write: () => {},
        flush: () => {},
        onReadable: undefined,
        start() {},
        stop() {},
      };
    },
  });
  const first = pool.open('com1', 'mine');
  expect(pool.open('com1', 'mine')).toBe(first);
  expect(first.name).toBe('mine');
  expect(opened).toEqual(['com1']);
  expect(() => new CharBackendPool({ log }).open('com1', 'mine')).toThrow(ConfigError);
});

// Mutation: flush of the back end alone; whoever looks on has the history, and nothing that comes after it.
test('whoever looks on hears what is written, once, when the line is flushed', () => {
  const pool = new CharBackendPool({ log });
  const line = pool.open('com1', 'null');
  const told: string[] = [];
  const tap = pool.lines[0]?.tap((data) => void told.push(Buffer.from(data).toString()));
  for (const text of ['one', 'two']) {
    for (const byte of Buffer.from(text)) line.write(byte);
    pool.flush();
    pool.flush();
  }
  expect(told).toEqual(['one', 'two']);
  tap?.detach();
});

/** Mutation: each pool has a claim of its own. */
test('two VMs of one process cannot both have stdio; it is free when the first has ended', async () => {
  const fd = openSync('/dev/null', 'r+');
  try {
    const stdio = { input: fd, output: fd };
    const stdioClaim = new StdioClaim();
    const [first, second] = [1, 2].map(() => new CharBackendPool({ log, stdio, stdioClaim })) as [
      CharBackendPool,
      CharBackendPool,
    ];
    await first.open('com1 of a', 'stdio').start();
    await expect(async () => second.open('com1 of b', 'stdio').start()).rejects.toThrow(
      'stdio is used by com1 of a already',
    );
    await first.dispose();
    const other = new CharBackendPool({ log, stdio, stdioClaim });
    await other.open('com1 of c', 'stdio').start();
    await other.dispose();
    await second.dispose();
  } finally {
    closeSync(fd);
  }
});
