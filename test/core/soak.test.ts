/**
 * Many VMs in one process, each with a full reset: nothing is left behind. Here a thousand of few devices and fifty of
 * many; a thousand of many is npm run soak.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { expect, test } from 'vitest';
import { LogLevel } from '../../devicemodel/core/log.ts';
import { MiB } from '../../devicemodel/core/units.ts';
import { makePc } from '../support/fake-pc.ts';

const ROUNDS = 1000;
const WARM_UP_ROUNDS = 10;
const MAX_GROWTH_BYTES = 5 * MiB;

setFlagsFromString('--expose-gc');
const collectGarbage = runInNewContext('gc') as () => void;

const held = () => ({
  descriptors: readdirSync('/proc/self/fd').length,
  threads: readdirSync('/proc/self/task').length,
  sharedMemory: readdirSync('/dev/shm').filter((name) => name.includes(`soak-${process.pid}`)),
});

async function round(): Promise<void> {
  const argv = ['-s', '5,ivshmem,hv:/soak,2', '-s', `6,ivshmem,dm:/soak-${process.pid},2`, '-s', '7,uart,vuart_idx:1'];
  const pc = makePc(
    argv,
    (hsm, life) => {
      void hsm.guest.inb(0x71);
      if (life === 1) void hsm.guest.outb(0xcf9, 0x0e);
      else void hsm.guest.pioWrite(0x404, 2, 0x3400);
    },
    { logLevel: LogLevel.error },
  );
  const event = await pc.vm.run();
  await pc.dispose();
  expect([event.kind, pc.lives.length, pc.ramOut, pc.log]).toEqual(['poweroff', 2, 0, []]);
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

/** Freed memory is not resident memory given back at once: the smallest of a few looks is what is really used. */
async function residentBytes(): Promise<number> {
  let least = Number.POSITIVE_INFINITY;
  for (let look = 0; look < 5; look++) {
    collectGarbage();
    await new Promise((resolve) => setTimeout(resolve, 20));
    least = Math.min(least, process.memoryUsage.rss());
  }
  return least;
}

// What the engine keeps for a moment (code it compiles meanwhile) can look like growth once; a leak does each time.
test(`${ROUNDS} times created, started, fully reset and destroyed`, { timeout: 120_000, retry: 1 }, async () => {
  for (let i = 0; i < WARM_UP_ROUNDS; i++) await round();
  growYoungGeneration();
  const before = held();
  const bytesBefore = await residentBytes();
  for (let i = WARM_UP_ROUNDS; i < ROUNDS; i++) await round();
  expect(held()).toEqual(before);
  expect((await residentBytes()) - bytesBefore).toBeLessThan(MAX_GROWTH_BYTES);
  rmSync(`/dev/shm/soak-${process.pid}`);
});

test('fifty with disk, consoles, entropy and watchdog, and a system reset each', { timeout: 120_000 }, () => {
  const tool = join(import.meta.dirname, '../../tools/soak.mjs');
  const { status, stdout, stderr } = spawnSync(process.execPath, [tool, '--rounds', '50'], { encoding: 'utf8' });
  expect([status, stdout, stderr]).toEqual([0, stdout, '']);
  const { before, after } = JSON.parse(stdout);
  expect({ ...after, residentBytes: 0 }).toEqual({ ...before, residentBytes: 0 });
});
