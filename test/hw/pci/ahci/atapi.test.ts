/** A CD drive: packets, and the medium, which the host changes. */
import { readdirSync, readlinkSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { type AhciDriver, ahciMachine, DATA } from '../../../support/ahci-driver.ts';
import { diskMachine, image, imageBytes, StallingQueue, sector } from './support.ts';

const READY = 0x50;

async function cdMachine(text = (path: string) => `cd:${path}`) {
  const made = await diskMachine({ text });
  made.driver.start(0);
  return made;
}

async function packet(driver: AhciDriver, bytes: readonly number[], room = 64) {
  driver.machine.memory.write(DATA, new Uint8Array(room));
  const done = await driver.run(0, { command: 0xa0, packet: bytes, memory: [[DATA, room]] });
  if (done.failed) await driver.restart(0);
  return { ...done, answer: driver.read(DATA, Math.min(done.bytes, room)) };
}

/** Sense key and code of the last failure. */
async function sense(driver: AhciDriver): Promise<string> {
  const { answer } = await packet(driver, [0x03, 0, 0, 0, 18]);
  return `${answer[2]}/${answer[12]?.toString(16)}`;
}

const testUnitReady = [0x00];
const readCapacity = [0x25];
const read = (lba: number, count: number) => [0x28, 0, 0, 0, 0, lba, 0, 0, count];
const eventStatus = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];

describe('a disc', () => {
  test('READ CAPACITY, READ(10) and READ(12) in sectors of 2048 bytes', async () => {
    const { driver } = await cdMachine();
    const { answer } = await packet(driver, readCapacity);
    expect([...answer]).toEqual([0, 0, 0, 63, 0, 0, 8, 0]);
    await packet(driver, read(2, 1), 2048);
    expect(driver.read(DATA, 512)).toEqual(sector(8));
    await packet(driver, [0xa8, 0, 0, 0, 0, 63, 0, 0, 0, 1], 2048);
    expect(driver.read(DATA, 2048)).toEqual(imageBytes().slice(63 * 2048));
  });

  test('nothing behind its end, and a read of nothing is done at once', async () => {
    const { driver } = await cdMachine();
    expect(await packet(driver, read(63, 2), 4096)).toMatchObject({ tfd: 0x5041, bytes: 0 });
    expect(await sense(driver)).toBe('5/21');
    expect(await packet(driver, [0xa8, 0, 0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff])).toMatchObject({ tfd: 0x5041 });
    expect(await packet(driver, read(1, 0))).toMatchObject({ tfd: READY, bytes: 0 });
  });

  test('commands of disks are aborted: the image is not reached past the packets', async () => {
    const { driver } = await cdMachine();
    for (const command of [0x25, 0x35, 0x60, 0xec, 0x06]) {
      expect(await driver.run(0, { command, count: 1, memory: [[DATA, 512]] })).toMatchObject({ tfd: 0x441 });
      await driver.restart(0);
    }
  });

  test('it is opened for reading only: two drives may have one image', async () => {
    const { driver } = await cdMachine((path) => `cd:${path},cd:${path}`);
    driver.start(1);
    expect(await packet(driver, readCapacity)).toMatchObject({ tfd: READY });
  });
});

describe('changing the medium', () => {
  test('eject: no medium. Insert: the first command says that it changed, then it is there', async () => {
    const { driver, fn } = await cdMachine();
    await fn.changeMedium(0, undefined);
    expect(await packet(driver, testUnitReady)).toMatchObject({ tfd: 0x2041 });
    expect(await sense(driver)).toBe('2/3a');
    for (const command of [readCapacity, read(0, 1), [0x43, 0, 0, 0, 0, 0, 0, 0, 20]]) {
      expect((await packet(driver, command)).failed).toBe(true);
    }
    // INQUIRY is answered all the same.
    expect((await packet(driver, [0x12, 0, 0, 0, 36])).bytes).toBe(36);
    const bytes = new Uint8Array(8 * 2048).fill(0x77);
    await fn.changeMedium(0, { path: image(bytes), ro: false, writeback: false, nocache: false });
    expect(await packet(driver, testUnitReady)).toMatchObject({ tfd: 0x6041 });
    expect(await sense(driver)).toBe('6/28');
    expect(await packet(driver, testUnitReady)).toMatchObject({ tfd: READY });
    expect((await packet(driver, readCapacity)).answer[3]).toBe(7);
    await packet(driver, read(0, 1), 2048);
    expect(driver.read(DATA, 2048)).toEqual(new Uint8Array(2048).fill(0x77));
  });

  test('GET EVENT STATUS NOTIFICATION tells once what happened, and always what is so', async () => {
    const { driver, fn } = await cdMachine();
    const event = async () => [...(await packet(driver, eventStatus)).answer.slice(4, 6)];
    expect(await event()).toEqual([0, 2]);
    await fn.changeMedium(0, undefined);
    expect(await event()).toEqual([3, 0]);
    expect(await event()).toEqual([0, 0]);
    await fn.changeMedium(0, { path: image(), ro: false, writeback: false, nocache: false });
    expect(await event()).toEqual([2, 2]);
    expect(await event()).toEqual([0, 2]);
  });

  test('asynchronous notification, for a guest that asked for it', async () => {
    const { driver, fn } = await cdMachine();
    await fn.changeMedium(0, undefined);
    expect(driver.get(0, 'sntf')).toBe(0);
    await driver.run(0, { command: 0xef, features: 0x10, count: 5 });
    driver.set(0, 'pis', 0xffffffff);
    await fn.changeMedium(0, { path: image(), ro: false, writeback: false, nocache: false });
    expect([driver.get(0, 'sntf'), driver.get(0, 'pis') & 8]).toEqual([1, 8]);
    expect(driver.machine.memory.read(0x2058, 2)).toEqual(Uint8Array.of(0xa1, 0xc0));
    driver.set(0, 'sntf', 1);
    expect(driver.get(0, 'sntf')).toBe(0);
  });

  test('a drive may begin empty', async () => {
    const { driver, fn } = await ahciMachine('cd:nodisk');
    driver.start(0);
    expect(driver.get(0, 'sig')).toBe(0xeb140101);
    expect(await packet(driver, testUnitReady)).toMatchObject({ tfd: 0x2041 });
    await fn.changeMedium(0, { path: image(), ro: false, writeback: false, nocache: false });
    await packet(driver, testUnitReady);
    expect(await packet(driver, testUnitReady)).toMatchObject({ tfd: READY });
  });

  test('what cannot be: a disk, a port without a drive, a medium over another, no such file', async () => {
    const { fn, path } = await cdMachine((p) => `cd:${p},hd:${p},ro`);
    const medium = { path, ro: true, writeback: false, nocache: false };
    await expect(fn.changeMedium(1, undefined)).rejects.toThrow(/port 1 has a disk/);
    await expect(fn.changeMedium(2, undefined)).rejects.toThrow(/nothing is connected to port 2/);
    await expect(fn.changeMedium(0, medium)).rejects.toThrow(/eject it first/);
    await fn.changeMedium(0, undefined);
    await expect(fn.changeMedium(0, { ...medium, path: '/nowhere/at.all' })).rejects.toThrow(/no such file/);
    await fn.changeMedium(0, medium);
  });

  test('a read under way is waited for, also by the next medium', async () => {
    const queue = new DrainingQueue();
    const { driver, fn } = await diskMachine({ text: (p) => `cd:${p}`, openQueue: () => queue });
    driver.start(0);
    driver.prepare(0, 0, { command: 0xa0, packet: read(0, 1), memory: [[DATA, 2048]] });
    driver.issue(0, 0);
    let isOut = false;
    const out = fn.changeMedium(0, undefined).then(() => {
      isOut = true;
    });
    // The next one waits for it, too: a command in parts would go on with what is not its.
    let isIn = false;
    const next = fn.changeMedium(0, { path: image(), ro: true, writeback: false, nocache: false }).then(() => {
      isIn = true;
    });
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect([isOut, isIn]).toEqual([false, false]);
    queue.finish(0);
    await Promise.all([out, next]);
    expect(driver.get(0, 'tfd')).toBe(READY);
    expect(await packet(driver, testUnitReady)).toMatchObject({ tfd: 0x6041 });
  });

  // Mutation: the descriptor is closed first, which is then not the end of the lock.
  test('an image is closed when its queue has nothing of it any more', async () => {
    const queue = new StallingQueue();
    let release: () => void = () => {};
    queue.dispose = () =>
      new Promise((resolve) => {
        release = resolve;
      });
    const { fn, path } = await diskMachine({ text: (p) => `cd:${p}`, openQueue: () => queue });
    let isOut = false;
    const out = fn.changeMedium(0, undefined).then(() => {
      isOut = true;
    });
    await new Promise((done) => setTimeout(done, 20));
    expect([isOut, isOpen(path)]).toEqual([false, true]);
    release();
    await out;
    expect(isOpen(path)).toBe(false);
  });
});

/** Whether this process has the file open. */
function isOpen(path: string): boolean {
  return readdirSync('/proc/self/fd').some((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path;
    } catch {
      // That of the folder itself.
      return false;
    }
  });
}

class DrainingQueue extends StallingQueue {
  #wake: () => void = () => {};
  override drained(): Promise<void> | undefined {
    if (this.inFlight === 0) return undefined;
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
  override finish(errno: number): void {
    super.finish(errno);
    if (this.inFlight === 0) this.#wake();
  }
}
