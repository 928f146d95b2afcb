/**
 * Many VMs in one process, one after the other, each with a system reset and a full reset: what does the process hold
 * afterwards that it did not hold after the first ones?
 *
 *   npm run soak [-- --rounds N] [--host]
 *
 * The guest sets a disk up before each reset, so that its kicks are wired. With `--host` the disk has a data thread and
 * there is a tap, each of which takes its time.
 * Prints one line of JSON: descriptors, threads, shared memory and resident bytes before, half-way and after, and the most
 * threads there were in between. Status 1: something is left behind.
 */
import { readdirSync, rmSync, writeFileSync } from 'node:fs';
import { constants } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { LogLevel } from '../../devicemodel/core/log.ts';
import { MiB } from '../../devicemodel/core/units.ts';
import { makeScratch, sweepDead } from '../../tools/scratch.mjs';
import type { FakeGuest } from '../support/fake-hsm.ts';
import { makePc } from '../support/fake-pc.ts';

/** V8 optimizes and the allocator spreads over the threads of Node for that long. */
const WARM_UP_ROUNDS = 200;
const MAX_GROWTH_BYTES = 5 * MiB;
const DISK_SECTORS = 64;
const DISK = { bus: 0, device: 9, function: 0 } as const;
const RESET_PORT = 0xcf9;
const Reset = { system: 0x06, full: 0x0e } as const;
const PM1_CONTROL = 0x404;
const SLEEP_S5 = 0x3400;
/** Times a driver brings the disk up in one round. */
const DRIVERS = 3;

/** What a process can leak, as the kernel counts it. */
interface Held {
  readonly descriptors: number;
  readonly threads: number;
  readonly sharedMemory: readonly string[];
  readonly residentBytes: number;
}

const sharedName = `soak-${process.pid}`;

/** Freed memory is not given back at once: the smallest of a few looks is what is really used. */
async function residentBytes(): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let look = 0; look < 10; look++) {
    globalThis.gc?.();
    await new Promise((resolve) => setTimeout(resolve, 20));
    least = Math.min(least, process.memoryUsage.rss());
  }
  return least;
}

const threads = () => readdirSync('/proc/self/task').length;

async function held(): Promise<Held> {
  const resident = await residentBytes();
  return {
    descriptors: readdirSync('/proc/self/fd').length,
    threads: threads(),
    sharedMemory: readdirSync('/dev/shm').filter((name) => name.includes(sharedName)),
    residentBytes: resident,
  };
}

/**
 * V8 lets the young generation grow with what survives there, up to some 30 MiB: brought to its full size before the
 * first look, so that what is seen to grow is what is kept.
 */
function growYoungGeneration(): void {
  let recent: object[] = [];
  for (let i = 0; i < 2_000_000; i++) {
    recent.push({ i });
    if (recent.length === 200_000) recent = [];
  }
}

/** Legacy set-up of the disk's queue at page 1, up to DRIVER_OK, and a kick. */
async function useDisk(guest: FakeGuest): Promise<void> {
  const bar = (await guest.pciRead(DISK, 0x10, 4)) & ~3;
  await guest.pioWrite(bar + 0x12, 1, 3);
  await guest.pioWrite(bar + 0x04, 4, 0);
  await guest.pioWrite(bar + 0x0e, 2, 0);
  await guest.pioWrite(bar + 0x08, 4, 1);
  await guest.pioWrite(bar + 0x12, 1, 7);
  await guest.pioWrite(bar + 0x10, 2, 0);
}

let peakThreads = 0;

async function live(guest: FakeGuest, life: number): Promise<void> {
  await guest.outb(0x3f8, 0x41);
  await useDisk(guest);
  peakThreads = Math.max(peakThreads, threads());
  if (life === 1) {
    // Neither write is answered: the vCPU that made it starts anew.
    void guest.outb(RESET_PORT, Reset.system);
    await useDisk(guest);
    void guest.outb(RESET_PORT, Reset.full);
  } else {
    void guest.pioWrite(PM1_CONTROL, 2, SLEEP_S5);
  }
}

async function round(scratch: string, withHost: boolean): Promise<void> {
  const argv = [
    ...['-s', '5,ivshmem,hv:/soak,2', '-s', `6,ivshmem,dm:/${sharedName},2`, '-s', '7,uart,vuart_idx:1'],
    ...['-s', '8,wdt-i6300esb', '-s', `9,virtio-blk,iothread,${join(scratch, 'disk')},writeback`],
    ...(withHost ? ['-s', `10,virtio-net,tap=${sharedName.slice(0, 15)}`] : []),
    ...[
      '-s',
      '11,virtio-rnd',
      '-s',
      `12,virtio-console,@pty:a,socket:b=${join(scratch, 'console')},file:c=${join(scratch, 'log')}`,
    ],
  ];
  const pc = makePc(argv, () => {}, { logLevel: LogLevel.error, hasOwnRam: true });
  pc.vm.on('started', () => void live(pc.lives.at(-1)!.guest, pc.lives.length));
  const event = await pc.vm.run();
  await pc.dispose();
  // What was closed is let go of when the event loop had its turn.
  await new Promise((resolve) => setImmediate(resolve));
  const problems = [...pc.log];
  if (event.kind !== 'poweroff' || pc.lives.length !== 2) problems.push(`${event.kind} after ${pc.lives.length} lives`);
  if (pc.ramOut !== 0) problems.push('RAM was not given back');
  const kicks = pc.lives.flatMap((hsm) => hsm.calls.filter(({ method }) => method === 'ioeventfd'));
  if (kicks.length !== 2 * DRIVERS) problems.push(`${kicks.length} ioeventfd calls for ${DRIVERS} drivers`);
  if (problems.length > 0) throw new Error(problems.join('; '));
}

const { values } = parseArgs({ options: { rounds: { type: 'string' }, host: { type: 'boolean' } } });
const withHost = values.host === true;
const rounds = Number(values.rounds ?? 1000);
const scratch = makeScratch('soak');
sweepDead('/dev/shm', /^soak-(\d+)/);
writeFileSync(join(scratch, 'disk'), Buffer.alloc(DISK_SECTORS * 512));
function removeScratch(): void {
  rmSync(scratch, { recursive: true, force: true });
  rmSync(join('/dev/shm', sharedName), { force: true });
}
for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
  process.once(signal, () => {
    removeScratch();
    process.exit(128 + constants.signals[signal]);
  });
}
try {
  for (let i = 0; i < WARM_UP_ROUNDS; i++) await round(scratch, withHost);
  growYoungGeneration();
  const before = await held();
  const half = Math.floor(rounds / 2);
  for (let i = 0; i < half; i++) await round(scratch, withHost);
  const middle = await held();
  for (let i = half; i < rounds; i++) await round(scratch, withHost);
  const after = await held();
  console.log(JSON.stringify({ before, middle, after, peakThreads }));
  const grownBytes = Math.max(after.residentBytes - before.residentBytes, after.residentBytes - middle.residentBytes);
  const isKept = (a: Held, b: Held) => a.descriptors === b.descriptors && a.threads === b.threads;
  const hasShared = after.sharedMemory.length === before.sharedMemory.length;
  if (!isKept(before, after) || !hasShared || grownBytes > MAX_GROWTH_BYTES) {
    console.error(`left behind after ${rounds} rounds`);
    process.exitCode = 1;
  }
} finally {
  removeScratch();
}
