/** ATA commands of a disk, on real files, in every way a request can take. */
import { readFileSync, statSync, truncateSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { DATA } from '../../../support/ahci-driver.ts';
import { diskMachine, imageBytes, SECTORS, sector, stalled } from './support.ts';

const READY = 0x50;
const ABORTED = 0x441;
const NOT_FOUND = 0x1041;
const reads = [0x20, 0x24, 0x25, 0x29, 0x60, 0xc4, 0xc8];
const writes = [0x30, 0x34, 0x35, 0x39, 0x61, 0xc5, 0xca];

describe.each([
  ['by the kernel', {}],
  ['RAM without addresses', { viewsOnly: true }],
  ['aio=threads', { text: (path: string) => `hd:${path},aio=threads` }],
])('%s', (_what, choices) => {
  test('all reads and all writes reach the same sectors', async () => {
    const { driver, machine, path } = await diskMachine(choices);
    driver.start(0);
    const expected = imageBytes();
    for (const [i, command] of reads.entries()) {
      const done = await driver.run(0, { command, lba: i + 3, count: 2, memory: [[DATA, 1024]] }, i);
      expect(done).toMatchObject({ tfd: READY, bytes: 1024 });
      expect(driver.read(DATA, 1024)).toEqual(Uint8Array.from([...sector(i + 3), ...sector(i + 4)]));
    }
    for (const [i, command] of writes.entries()) {
      const data = new Uint8Array(512).fill(0xa0 + i);
      machine.memory.write(DATA, data);
      const done = await driver.run(0, { command, lba: 2 * i, count: 1, memory: [[DATA, 512]], isWrite: true }, i);
      expect(done).toMatchObject({ tfd: READY, bytes: 512 });
      expected.set(data, 1024 * i);
    }
    expect(new Uint8Array(readFileSync(path))).toEqual(expected);
    expect(machine.counters.of('disk', 'device@0').values()).toMatchObject({
      reads: reads.length,
      readBytes: 1024 * reads.length,
      writes: writes.length,
      writeBytes: 512 * writes.length,
      errors: 0,
    });
  });

  test('nothing behind the end is read or written, and the file keeps its length', async () => {
    const { driver, path } = await diskMachine(choices);
    driver.start(0);
    const before = readFileSync(path);
    for (const [lba, count] of [
      [SECTORS, 1],
      [SECTORS - 1, 2],
      [2 ** 28 - 1, 1],
    ] as const) {
      for (const command of [0x25, 0x35, 0x20, 0x30, 0xc8]) {
        expect(await driver.run(0, { command, lba, count, memory: [[DATA, 1024]] })).toMatchObject({ tfd: NOT_FOUND });
        await driver.restart(0);
      }
    }
    // A count of 0 is the largest there is; addresses of 48 bits are exact.
    for (const [command, lba, count] of [
      [0x25, 0, 0],
      [0x25, 2 ** 48 - 1, 1],
      [0xc8, 1, 0],
    ] as const) {
      expect(await driver.run(0, { command, lba, count, memory: [[DATA, 1024]] })).toMatchObject({ tfd: NOT_FOUND });
      await driver.restart(0);
    }
    expect(await driver.run(0, { command: 0xc8, lba: 0, count: 0, memory: [[DATA, 0x20000]] })).toMatchObject({
      tfd: READY,
      bytes: 0x20000,
    });
    expect(readFileSync(path)).toEqual(before);
    expect(statSync(path).size).toBe(SECTORS * 512);
  });

  test('TRIM gives ranges back: in one command many, by NCQ too, and none behind the end', async () => {
    const { driver, machine, path } = await diskMachine({ ...choices, text: (p) => `hd:${p},discard` });
    driver.start(0);
    const list = (...ranges: Array<[number, number]>) => {
      const bytes = new Uint8Array(512);
      for (const [i, [lba, count]] of ranges.entries()) bytes.set([lba, 0, 0, 0, 0, 0, count, 0], 8 * i);
      machine.memory.write(DATA, bytes);
    };
    const trim = { command: 0x06, features: 1, count: 1, memory: [[DATA, 512]], isWrite: true } as const;
    list([8, 8], [0, 0], [32, 16]);
    expect(await driver.run(0, trim)).toMatchObject({ tfd: READY, bytes: 24 });
    list([64, 8]);
    const queued = { command: 0x64, count: 1, auxiliary: 1, memory: [[DATA, 512]], isWrite: true } as const;
    expect(await driver.run(0, queued, 4)).toMatchObject({ tfd: READY, failed: false });
    const expected = imageBytes();
    for (const [at, count] of [
      [8, 8],
      [32, 16],
      [64, 8],
    ] as const) {
      expected.fill(0, at * 512, (at + count) * 512);
    }
    expect(new Uint8Array(readFileSync(path))).toEqual(expected);
    // The first range is inside, the second is not: nothing is carried out.
    list([100, 8], [255, 2]);
    expect(await driver.run(0, trim)).toMatchObject({ tfd: ABORTED });
    expect(new Uint8Array(readFileSync(path))).toEqual(expected);
  });

  test('a file that lost its end while it is used is an error, and not a short read', async () => {
    const { driver, path } = await diskMachine(choices);
    driver.start(0);
    truncateSync(path, 4096);
    expect(await driver.run(0, { command: 0x25, lba: 7, count: 2, memory: [[DATA, 1024]] })).toMatchObject({
      tfd: ABORTED,
    });
  });
});

test('range: the guest sees its part, reads zeros where the file has become shorter, and nothing else', async () => {
  const { driver, path } = await diskMachine({ text: (p) => `hd:${p},range=240/10` });
  driver.start(0);
  truncateSync(path, 246 * 512);
  await driver.run(0, { command: 0x25, lba: 5, count: 2, memory: [[DATA, 1024]] });
  expect(driver.read(DATA, 1024)).toEqual(Uint8Array.from([...sector(245), ...new Uint8Array(512)]));
  expect(await driver.run(0, { command: 0x25, lba: 10, count: 1, memory: [[DATA, 512]] })).toMatchObject({
    tfd: NOT_FOUND,
  });
  expect(readFileSync(path).length).toBe(246 * 512);
});

test('the byte count of a flush, and of a transfer without descriptors, is written, as in C', async () => {
  const { driver, machine } = await diskMachine();
  driver.start(0);
  for (const command of [{ command: 0xe7 }, { command: 0xea }, { command: 0x25, count: 1 }]) {
    driver.prepare(0, 0, command);
    machine.memory.writeU32(driver.headerAt(0, 0) + 4, 0x55);
    driver.issue(0, 0);
    await driver.until(() => driver.get(0, 'ci') === 0);
    expect(machine.memory.readU32(driver.headerAt(0, 0) + 4)).toBe(0);
  }
});

test('ro: writes and TRIM are aborted, reads and flushes are not', async () => {
  const { driver, machine, path } = await diskMachine({ text: (p) => `hd:${p},ro,discard` });
  driver.start(0);
  for (const command of [0x35, 0x61]) {
    expect(await driver.run(0, { command, lba: 0, count: 1, memory: [[DATA, 512]] })).toMatchObject({ failed: true });
    await driver.restart(0);
  }
  const trim = { command: 0x06, features: 1, count: 1, memory: [[DATA, 512]] } as const;
  // A list of nothing is done, as in C.
  machine.memory.write(DATA, new Uint8Array(512));
  expect(await driver.run(0, trim)).toMatchObject({ tfd: READY });
  machine.memory.write(DATA, Uint8Array.from([0, 0, 0, 0, 0, 0, 1, 0]));
  expect(await driver.run(0, trim)).toMatchObject({ tfd: ABORTED });
  await driver.restart(0);
  expect(await driver.run(0, { command: 0xea })).toMatchObject({ tfd: READY });
  expect(new Uint8Array(readFileSync(path))).toEqual(imageBytes());
});

describe('what is durable', () => {
  const write = { command: 0x61, lba: 0, count: 1, memory: [[DATA, 512]], isWrite: true } as const;
  const durable = async (text: string, features: readonly number[], device = 0x40) => {
    const { driver, queue } = await stalled({ text: (p) => `hd:${p}${text}` });
    for (const feature of features) {
      driver.prepare(0, 0, { command: 0xef, features: feature });
      driver.issue(0, 0);
      if (queue.requests.length > 0) queue.finish(0);
    }
    driver.prepare(0, 1, { ...write, device });
    driver.issueQueued(0, 1);
    return queue.requests[0]?.isDurable;
  };

  test('write-through: always; write-back: not', async () => {
    expect(await durable('', [])).toBe(true);
    expect(await durable(',writeback', [])).toBe(false);
  });
  test('write-back with the cache off by SET FEATURES, and on again', async () => {
    expect(await durable(',writeback', [0x82])).toBe(true);
    expect(await durable(',writeback', [0x82, 0x02])).toBe(false);
  });
  test('forced unit access', async () => {
    expect(await durable(',writeback', [], 0xc0)).toBe(true);
  });
});

describe('IDENTIFY DEVICE', () => {
  const identify = async (text: (p: string) => string, features: readonly number[] = []) => {
    const { driver } = await diskMachine({ text });
    driver.start(0);
    for (const feature of features) await driver.run(0, { command: 0xef, features: 3, count: feature });
    await driver.run(0, { command: 0xec, memory: [[DATA, 512]] });
    const bytes = driver.read(DATA, 512);
    return { bytes, words: new Uint16Array(bytes.slice().buffer) };
  };

  test('sectors, queue depth, checksum', async () => {
    const { bytes, words } = await identify((p) => `hd:${p}`);
    expect([words[60], words[61], words[100], words[75]]).toEqual([SECTORS, 0, SECTORS, 31]);
    expect(bytes.reduce((sum, byte) => (sum + byte) & 0xff, 0)).toBe(0);
    expect(words[169]).toBe(0);
  });

  test('sectors of 4 KiB, TRIM', async () => {
    const { words } = await identify((p) => `hd:${p},sectorsize=4096,discard`);
    expect([words[60], words[106], words[117], words[169], words[105]]).toEqual([32, 0x5000, 2048, 1, 1]);
  });

  test('without a table it is aborted', async () => {
    const { driver } = await diskMachine();
    driver.start(0);
    expect(await driver.run(0, { command: 0xec })).toMatchObject({ tfd: ABORTED });
  });
});

test.each([0x00, 0x08, 0x92, 0xa0, 0xa1, 0xb0, 0xf5, 0xff])('command %i is aborted', async (command) => {
  const { driver } = await diskMachine();
  driver.start(0);
  expect(await driver.run(0, { command })).toMatchObject({ tfd: ABORTED, failed: true });
});

test('two disks of one controller, and a second controller, keep apart; an image has one owner', async () => {
  const { path, driver, machine } = await diskMachine({ text: (p) => `hd:${p},ro,hd:${p},ro` });
  driver.start(0);
  driver.start(1);
  await driver.run(0, { command: 0x25, lba: 1, count: 1, memory: [[DATA, 512]] });
  await driver.run(1, { command: 0x25, lba: 2, count: 1, memory: [[DATA + 512, 512]] });
  expect(machine.memory.read(DATA, 1024)).toEqual(Uint8Array.from([...sector(1), ...sector(2)]));
  const { ahciMachine } = await import('../../../support/ahci-driver.ts');
  const other = await ahciMachine(`hd:${path}`, { isStarted: false });
  await expect(other.fn.start()).rejects.toThrow(/in use by another disk or User VM/);
});
