/** Ports and the controller as a driver sees them: command lists, interrupts, stopping, resetting, hostile structures. */
import { describe, expect, test } from 'vitest';
import { type AhciDriver, DATA, Reg } from '../../../support/ahci-driver.ts';
import { diskMachine, SECTORS, sector, stalled } from './support.ts';

const BUSY = 0x80;
const READ = { command: 0x25, lba: 8, count: 1, memory: [[DATA, 512]] } as const;

describe('registers', () => {
  test('six ports at least, the ids of an ICH8, as many vectors as ports', async () => {
    const { driver } = await diskMachine();
    expect(driver.fn.identity).toMatchObject({ vendorId: 0x8086, deviceId: 0x2821, classCode: 0x010601 });
    expect(driver.fn.bars).toEqual([{ index: 5, kind: 'mem32', sizeBytes: 0x400 }]);
    expect(driver.hba(Reg.cap)).toBe(0xff30ff25);
    expect(driver.hba(Reg.pi)).toBe(1);
    // 2^3 messages.
    expect(driver.config.get16(0x42)).toBe(0x186);
  });

  test('32 ports fill a BAR of 8 KiB, and the last works', async () => {
    const { driver } = await diskMachine({ text: (path) => `${'hd:,'.repeat(31)}hd:${path}` });
    expect(driver.fn.bars[0]?.sizeBytes).toBe(0x2000);
    expect(driver.hba(Reg.cap) & 0x1f).toBe(31);
    expect(driver.hba(Reg.pi)).toBe(0x80000000);
    driver.start(31);
    expect(await driver.run(31, { ...READ, table: 0x70000 })).toMatchObject({ tfd: 0x50, bytes: 512 });
    expect(driver.hba(Reg.is)).toBe(0x80000000);
  });
});

describe('command lists', () => {
  test('32 slots at once, in any order', async () => {
    const { driver } = await diskMachine();
    driver.start(0);
    for (let slot = 0; slot < 32; slot++) {
      driver.prepare(0, slot, { command: 0x60, lba: slot, count: 1, memory: [[DATA + 512 * slot, 512]] });
    }
    driver.issueQueued(0, ...Array.from({ length: 32 }, (_, i) => 31 - i));
    await driver.until(() => driver.get(0, 'sact') === 0);
    for (let slot = 0; slot < 32; slot++) expect(driver.read(DATA + 512 * slot, 512)).toEqual(sector(slot));
    expect(driver.get(0, 'tfd')).toBe(0x50);
  });

  test('a table over the seam of two pieces of RAM, regions of odd sizes', async () => {
    const { driver } = await diskMachine();
    driver.start(0);
    const seam = 0x80000;
    const memory = [
      [seam - 3, 7],
      [DATA, 1],
      [DATA + 1, 504],
      [DATA + 600, 4096],
    ] as const;
    expect(await driver.run(0, { ...READ, memory, table: seam - 0x84 })).toMatchObject({ tfd: 0x50, bytes: 512 });
    const whole = [...driver.read(seam - 3, 7), ...driver.read(DATA, 505)];
    expect(Uint8Array.from(whole)).toEqual(sector(8));
    // Nothing behind the end of the transfer.
    expect(driver.read(DATA + 600, 512)).toEqual(new Uint8Array(512));
  });

  test('a transfer in more regions than one request has', async () => {
    const { driver } = await diskMachine();
    driver.start(0);
    const memory = Array.from({ length: 600 }, (_, i) => [DATA + 3 * i, 2] as const);
    const table = 0x70000;
    expect(await driver.run(0, { command: 0x25, lba: 3, count: 2, memory, table })).toMatchObject({ bytes: 1024 });
    const got = Uint8Array.from({ length: 512 }, (_, i) => driver.read(DATA + 3 * (i >> 1), 2)[i & 1] as number);
    expect(got).toEqual(sector(3));
  });

  test('regions above 4 GiB', async () => {
    const { driver } = await diskMachine();
    driver.start(0);
    await driver.run(0, { ...READ, memory: [[0x1_0000_0000, 512]] });
    expect(driver.read(0x1_0000_0000, 512)).toEqual(sector(8));
  });
});

describe('hostile structures', () => {
  test.each([
    ['a list outside RAM', (d: AhciDriver) => d.set(0, 'clb', 0x7000_0000)],
    ['a list that ends outside RAM', (d: AhciDriver) => d.set(0, 'clb', 0xffc00)],
    ['a list beyond any address', (d: AhciDriver) => d.set(0, 'clbu', 0xffffffff)],
  ] as const)('%s: host bus fatal, and the port works again after that', async (_what, spoil) => {
    const { driver } = await diskMachine();
    driver.start(0);
    driver.prepare(0, 0, READ);
    const clb = driver.get(0, 'clb');
    driver.set(0, 'cmd', 0x16);
    spoil(driver);
    driver.set(0, 'cmd', 0x17);
    driver.issue(0, 0);
    // The list at the end of RAM is in RAM as a whole.
    if (driver.get(0, 'clb') === 0xffc00) {
      await driver.until(() => driver.get(0, 'pis') !== 0);
      return;
    }
    expect(driver.get(0, 'pis') & 0x20000000).not.toBe(0);
    driver.set(0, 'cmd', 0x16);
    driver.set(0, 'clb', clb);
    driver.set(0, 'clbu', 0);
    await driver.restart(0);
    expect(await driver.run(0, READ)).toMatchObject({ tfd: 0x50, bytes: 512 });
  });

  test('a frame of another type, a table outside RAM: the slot stays, nothing spins', async () => {
    const { driver, machine } = await diskMachine();
    driver.start(0);
    driver.prepare(0, 0, READ);
    machine.memory.writeU8(driver.tableAt(0, 0), 0x34);
    driver.issue(0, 0);
    expect([driver.get(0, 'ci'), driver.get(0, 'pis')]).toEqual([1, 0x20000000]);
    await driver.restart(0);
    machine.memory.writeU64(driver.headerAt(0, 0) + 8, 0xffff_ffff_ffff_ff80n);
    driver.issue(0, 0);
    expect([driver.get(0, 'ci'), driver.get(0, 'pis')]).toEqual([1, 0x20000000]);
    await driver.restart(0);
    // 65535 descriptors from the last table in RAM on.
    driver.prepare(0, 0, READ);
    machine.memory.writeU16(driver.headerAt(0, 0) + 2, 0xffff);
    machine.memory.writeU64(driver.headerAt(0, 0) + 8, 0xfff00n);
    driver.issue(0, 0);
    expect(driver.get(0, 'pis')).toBe(0x20000000);
    expect(machine.lines.length).toBeLessThan(10);
  });

  test('a region outside RAM: the command fails, and memory before it is left alone', async () => {
    const { driver } = await diskMachine();
    driver.start(0);
    const memory = [
      [DATA, 512],
      [0x7000_0000, 512],
    ] as const;
    expect(await driver.run(0, { ...READ, count: 2, memory })).toMatchObject({ tfd: 0x441, bytes: 0, failed: true });
    expect(driver.read(DATA, 512)).toEqual(new Uint8Array(512));
  });

  test('a port without a drive takes everything and does nothing', async () => {
    const { driver } = await diskMachine();
    driver.start(1);
    driver.prepare(1, 0, READ);
    driver.issue(1, 0);
    expect([driver.get(1, 'ci'), driver.get(1, 'tfd'), driver.get(1, 'pis')]).toEqual([1, 0x7f, 0]);
  });
});

describe('errors', () => {
  test('of 32 commands the third fails: the others wait for software, which begins anew', async () => {
    const { driver } = await diskMachine();
    driver.start(0);
    for (let slot = 0; slot < 4; slot++) {
      driver.prepare(0, slot, { ...READ, lba: slot === 2 ? SECTORS : slot });
    }
    driver.issue(0, 0, 1, 2, 3);
    await driver.until(() => (driver.get(0, 'pis') & 0x40000000) !== 0);
    expect(driver.get(0, 'ci')).toBe(0b1100);
    expect((driver.get(0, 'cmd') >> 8) & 0x1f).toBe(2);
    // ID not found.
    expect(driver.get(0, 'tfd')).toBe(0x1041);
    await driver.restart(0);
    expect(driver.get(0, 'ci')).toBe(0);
    expect(await driver.run(0, READ)).toMatchObject({ tfd: 0x50 });
  });

  test('a queued command fails: SDB frame, its tag in the NCQ error log', async () => {
    const { driver, machine } = await diskMachine();
    driver.start(0);
    await driver.run(0, { command: 0x60, lba: SECTORS - 1, count: 2, memory: [[DATA, 1024]] }, 5);
    expect([driver.get(0, 'sact'), driver.get(0, 'ci')]).toEqual([1 << 5, 0]);
    expect(driver.get(0, 'pis') & 0x40000008).toBe(0x40000008);
    expect(Buffer.from(machine.memory.read(0x2058, 8)).toString('hex')).toBe('a140411000000000');
    await driver.restart(0);
    await driver.run(0, { command: 0x2f, lba: 0x10, count: 1, memory: [[DATA, 512]] });
    const log = driver.read(DATA, 512);
    expect([log[0], log[2], log[3], log[4]]).toEqual([5, 0x41, 0x10, SECTORS - 1]);
    expect(log.reduce((sum, byte) => (sum + byte) & 0xff, 0)).toBe(0);
  });
});

test('an error with FRE off halts the port all the same: the command is not begun again and again', async () => {
  const { driver } = await diskMachine();
  driver.start(0);
  driver.set(0, 'cmd', 0x07);
  for (const command of [0xff, 0x60]) {
    driver.prepare(0, 1, { ...READ, command, lba: SECTORS });
    driver.issueQueued(0, 1);
    expect(driver.get(0, 'pis') & 0x40000000).not.toBe(0);
    driver.set(0, 'cmd', 0x06);
    driver.set(0, 'pis', 0xffffffff);
    driver.set(0, 'cmd', 0x07);
  }
});

describe('stopping and resetting while storage does not answer', () => {
  test('ST=0: CR stays until the storage has given the memory back; then new commands run', async () => {
    const { driver, queue } = await stalled();
    driver.prepare(0, 3, READ);
    driver.issue(0, 3);
    expect(queue.requests).toHaveLength(1);
    driver.set(0, 'cmd', 0x16);
    expect([driver.get(0, 'ci'), driver.get(0, 'cmd') & 0x8000]).toEqual([0, 0x8000]);
    // Software that does not wait for CR: nothing begins before the old command is back.
    driver.set(0, 'cmd', 0x1f);
    driver.prepare(0, 3, { ...READ, lba: 9 });
    driver.issue(0, 3);
    expect(queue.requests).toHaveLength(1);
    const before = driver.get(0, 'pis');
    queue.finish(0);
    // The old one ends without a trace, the new one begins.
    expect(driver.get(0, 'pis')).toBe(before);
    expect(queue.requests).toHaveLength(1);
    expect(queue.requests[0]?.offset).toBe(9 * 512);
    expect(driver.get(0, 'ci')).toBe(1 << 3);
    queue.finish(0);
    expect([driver.get(0, 'ci'), driver.get(0, 'tfd')]).toEqual([0, 0x50]);
  });

  test('COMRESET: the drive is busy until then, and shows its signature after', async () => {
    const { driver, queue, machine } = await stalled();
    driver.prepare(0, 0, READ);
    driver.issue(0, 0);
    driver.set(0, 'cmd', 0x16);
    machine.memory.write(0x2040, new Uint8Array(20));
    driver.set(0, 'sctl', 1);
    driver.set(0, 'sctl', 0);
    expect(driver.get(0, 'tfd') & BUSY).toBe(BUSY);
    expect(machine.memory.readU8(0x2040)).toBe(0);
    queue.finish(0);
    expect(driver.get(0, 'tfd')).toBe(0x170);
    expect(machine.memory.readU8(0x2040)).toBe(0x34);
    expect(driver.get(0, 'cmd') & 0x8000).toBe(0);
  });

  test('HBA reset: HR reads 1 until then', async () => {
    const { driver, queue } = await stalled();
    for (const slot of [0, 1]) driver.prepare(0, slot, { ...READ, command: 0x60 });
    driver.issueQueued(0, 0, 1);
    expect(queue.requests).toHaveLength(2);
    driver.setHba(Reg.ghc, 1);
    expect(driver.hba(Reg.ghc)).toBe(0x80000001);
    queue.finish(0);
    expect(driver.hba(Reg.ghc)).toBe(0x80000001);
    queue.finish(0);
    expect(driver.hba(Reg.ghc)).toBe(0x80000000);
    expect([driver.get(0, 'tfd'), driver.get(0, 'sact'), driver.get(0, 'pis')]).toEqual([0x170, 0, 0]);
  });

  test('a software reset abandons queued commands', async () => {
    const { driver, queue, machine } = await stalled();
    driver.prepare(0, 7, { ...READ, command: 0x60 });
    driver.issueQueued(0, 7);
    for (const [slot, control] of [
      [0, 4],
      [1, 0],
    ] as const) {
      driver.prepare(0, slot, { command: 0 });
      machine.memory.writeU8(driver.tableAt(0, slot) + 1, 0);
      machine.memory.writeU8(driver.tableAt(0, slot) + 15, control);
      driver.issue(0, slot);
      expect(driver.get(0, 'ci')).toBe(0);
    }
    expect(driver.get(0, 'tfd') & BUSY).toBe(BUSY);
    queue.finish(0);
    expect([driver.get(0, 'tfd'), driver.get(0, 'sact')]).toEqual([0x170, 0]);
  });

  test('a large transfer is not continued after a stop', async () => {
    const { driver, queue } = await stalled();
    const memory = Array.from({ length: 600 }, (_, i) => [DATA + 2 * i, 2] as const);
    driver.prepare(0, 0, { command: 0x25, lba: 0, count: 2, memory, table: 0x70000 });
    driver.issue(0, 0);
    driver.set(0, 'cmd', 0x16);
    queue.finish(0);
    expect(queue.requests).toHaveLength(0);
    expect(driver.get(0, 'cmd') & 0x8000).toBe(0);
  });
});

describe('what a driver does between two set-ups, with commands in flight', () => {
  const CLB = 0x1000;
  const OTHER_CLB = 0x3000;
  const hbaReset = (driver: AhciDriver) => driver.setHba(Reg.ghc, 1);
  const stop = (driver: AhciDriver) => driver.set(0, 'cmd', 0x16);
  const comreset = (driver: AhciDriver) => {
    driver.set(0, 'sctl', 1);
    driver.set(0, 'sctl', 0);
  };
  // Mutation: let `partDone` write the byte count of a command that is abandoned, or `#over` answer for it.
  test.each<[string, (driver: AhciDriver) => void]>([
    ['ST off', stop],
    ['ST off and on, not waiting for CR', (d) => [stop(d), d.set(0, 'cmd', 0x17)]],
    ['FRE off before ST', (d) => [d.set(0, 'cmd', 0x07), d.set(0, 'cmd', 0x06)]],
    ['COMRESET', (d) => [stop(d), comreset(d)]],
    ['COMRESET twice', (d) => [stop(d), comreset(d), comreset(d)]],
    ['HBA reset', hbaReset],
    ['HBA reset in the middle of a COMRESET', (d) => [stop(d), comreset(d), hbaReset(d)]],
    ['COMRESET in the middle of an HBA reset', (d) => [hbaReset(d), comreset(d)]],
    ['HBA reset twice', (d) => [hbaReset(d), hbaReset(d)]],
    ['command list override', (d) => [stop(d), d.set(0, 'cmd', 0x1e)]],
    ['another list, the old one used for something else', (d) => [stop(d), d.set(0, 'clb', OTHER_CLB)]],
    ['a list outside RAM', (d) => [stop(d), d.set(0, 'clbu', 0x7fff), d.set(0, 'cmd', 0x17), stop(d)]],
    ['power-on reset', (d) => d.fn.reset()],
  ])('%s: nothing of theirs is written any more, and the next driver is served', async (_what, change) => {
    const { driver, queue, machine } = await stalled();
    for (const slot of [0, 5, 31])
      driver.prepare(0, slot, { ...READ, command: 0x60, lba: slot, memory: [[DATA, 512]] });
    driver.issueQueued(0, 0, 5, 31);
    expect(queue.requests).toHaveLength(3);
    change(driver);
    // The guest uses the memory of list, frames and tables for something else.
    const structures = [CLB, 0x2000, driver.tableAt(0, 0), driver.tableAt(0, 31)];
    for (const at of structures) machine.memory.write(at, new Uint8Array(0x100).fill(0xee));
    driver.set(0, 'fb', 0x5000);
    driver.set(0, 'cmd', driver.get(0, 'cmd') & ~0x10);
    queue.finish(0);
    queue.finish(5);
    queue.finish(0);
    expect(queue.requests).toEqual([]);
    for (const at of structures) expect(driver.read(at, 0x100)).toEqual(new Uint8Array(0x100).fill(0xee));
    expect([driver.get(0, 'ci'), driver.get(0, 'sact'), driver.get(0, 'pis') & 0x40000008]).toEqual([0, 0, 0]);
    expect(driver.hba(Reg.ghc) & 1).toBe(0);
    // As it comes: list, frames, COMRESET, ST.
    stop(driver);
    expect(driver.get(0, 'cmd') & 0x8000).toBe(0);
    driver.start(0);
    driver.prepare(0, 4, { ...READ, lba: 9 });
    driver.issue(0, 4);
    expect(queue.requests[0]?.offset).toBe(9 * 512);
    queue.finish(0);
    expect([driver.get(0, 'ci'), driver.get(0, 'tfd')]).toEqual([0, 0x50]);
    expect(machine.memory.readU32(driver.headerAt(0, 4) + 4)).toBe(512);
  });
});

describe('interrupts', () => {
  const enable = (driver: AhciDriver, messages: number) => {
    driver.config.write(0x44, 4, 0xfee00000);
    driver.config.write(0x4c, 2, 0x40);
    driver.config.write(0x42, 2, (Math.log2(messages) << 4) | 1);
  };

  test('the line rises with an event, and falls when IS is clear', async () => {
    const { driver, machine } = await diskMachine();
    driver.start(0);
    await driver.run(0, READ);
    expect(machine.intx).toBe(true);
    driver.set(0, 'pis', 0xffffffff);
    expect(machine.intx).toBe(true);
    driver.setHba(Reg.is, 1);
    expect(machine.intx).toBe(false);
    // IS is set again by a PxIS that was left.
    await driver.run(0, READ);
    driver.setHba(Reg.is, 1);
    expect([driver.hba(Reg.is), machine.intx]).toEqual([1, true]);
  });

  test('a message of its own for each port, sent for every command', async () => {
    const { driver, machine } = await diskMachine();
    driver.start(0);
    enable(driver, 8);
    await driver.run(0, READ);
    driver.set(0, 'pis', 0xffffffff);
    await driver.run(0, READ);
    expect(machine.msis.map((m) => m.data)).toEqual([0x40, 0x40]);
    expect(machine.intx).toBe(false);
  });

  test('one message for all: only when the bit of IS becomes set', async () => {
    const { driver, machine } = await diskMachine();
    driver.start(0);
    enable(driver, 1);
    await driver.run(0, READ);
    driver.set(0, 'pis', 0xffffffff);
    await driver.run(0, READ);
    expect(machine.msis).toHaveLength(1);
    // IS written while PxIS is still set: the message comes again.
    driver.setHba(Reg.is, 1);
    expect(machine.msis).toHaveLength(2);
  });
});
