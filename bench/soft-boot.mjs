/**
 * npm run bench -- soft-boot: CPU time (user and system, of all threads) of a start of Debian's i386 kernel up to its
 * shell and off again on the software engine, beside QEMU's TCG with the same kernel, ramdisk and words. The two take
 * turns, and the figure is the median of the pairs' ratios. Needs qemu-system-i386 and what examples/debian-i386/fetch.sh
 * fetches (DEBIAN_I386=DIRECTORY where it is already).
 *
 *   BENCH_PAIRS=3        pairs
 *   MAX_RATIO=R          status 1 when the median is above it
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { makeScratch } from '../tools/scratch.mjs';

const PAIRS = Number(process.env.BENCH_PAIRS ?? 3);
const TIMEOUT_MS = 300_000;
const WORDS = 'console=ttyS0 panic=-1 quiet mitigations=off noisapnp cryptomgr.notests';

/** @returns seconds of CPU time, by /usr/bin/time; throws when the guest did not come up and power off */
function cpuSeconds(work, command, args) {
  const times = join(work, 'times');
  const { stdout, error } = spawnSync('/usr/bin/time', ['-f', '%U %S', '-o', times, command, ...args], {
    encoding: 'utf8',
    stdio: ['ignore', 'pipe', 'ignore'],
    timeout: TIMEOUT_MS,
  });
  if (error !== undefined) throw error;
  if (!stdout.includes('GUEST-DONE')) throw new Error(`${command}: the guest did not come up:\n${stdout.slice(-2000)}`);
  const [user, system] = readFileSync(times, 'utf8').trim().split('\n').at(-1).split(' ').map(Number);
  return user + system;
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** @param root the checkout, built. @returns exit status */
export function benchSoftBoot(root) {
  const skip = (why) => {
    console.log(`skipped: soft-boot (${why})`);
    return 0;
  };
  if (!existsSync('/usr/bin/time')) return skip('no /usr/bin/time');
  if (!existsSync(join(root, 'node_modules/v86'))) return skip('the optional package v86 is not installed');
  if (spawnSync('qemu-system-i386', ['--version']).status !== 0) return skip('no qemu-system-i386');
  const debian = process.env.DEBIAN_I386 ?? join(root, '.cache/debian-i386');
  const example = join(root, 'examples/debian-i386');
  if (spawnSync(join(example, 'fetch.sh'), [debian]).status !== 0) return skip('no Debian i386 packages');

  const work = makeScratch('bench');
  try {
    const [kernel, ramdisk] = [join(debian, 'vmlinuz'), join(work, 'initramfs.gz')];
    const env = { ...process.env, INITRAMFS: ramdisk };
    if (spawnSync(join(example, 'mkinitramfs.sh'), [debian], { env }).status !== 0) throw new Error('mkinitramfs.sh');
    const ratios = [];
    for (let pair = 1; pair <= PAIRS; pair++) {
      const tcg = cpuSeconds(work, 'qemu-system-i386', [
        ...'-accel tcg -m 256M -nographic -no-reboot -nodefaults -serial stdio -net none'.split(' '),
        ...['-kernel', kernel, '-initrd', ramdisk, '-append', WORDS],
      ]);
      const soft = cpuSeconds(work, process.execPath, [
        join(root, 'dist/acrn-dm.js'),
        ...'--hypervisor soft -m 256M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio'.split(' '),
        ...['-k', kernel, '-r', ramdisk, '-B', WORDS, 'bench'],
      ]);
      ratios.push(soft / tcg);
      console.log(`pair ${pair}: TCG ${tcg.toFixed(2)} s, soft ${soft.toFixed(2)} s, ${(soft / tcg).toFixed(2)} times`);
    }
    const ratio = median(ratios);
    console.log(`soft-boot: ${ratio.toFixed(2)} times the CPU time of QEMU's TCG (median of ${PAIRS})`);
    return ratio > Number(process.env.MAX_RATIO ?? Number.POSITIVE_INFINITY) ? 1 : 0;
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}
