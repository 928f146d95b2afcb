/** Another process cuts the memory that a running guest shares: the guest runs on, and shares it still. */
import { execFileSync } from 'node:child_process';
import { openSync, readFileSync, readSync, rmSync, statSync, writeSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, describe, expect, test } from 'vitest';
import { Program, softVm, whyNoSoftHypervisor } from '../support/program.ts';

const TIMEOUT_MS = 120_000;
const tag = `cut${process.pid}`;
const paths = { dm: `/dev/shm/${tag}`, hv: `/dev/shm/acrn-soft.${process.getuid?.() ?? 0}.${tag}` };
/** examples/guest/ivshmem.c: what the sender waits for, and where its text comes. */
const STATE_READY = Buffer.from('REDY');
const TEXT_AT = 16;

const running: Program[] = [];
afterEach(async () => {
  await Promise.all(running.splice(0).map((program) => program.end()));
  for (const path of Object.values(paths)) rmSync(path, { force: true });
});

describe.skipIf(whyNoSoftHypervisor() !== undefined)('the built program', { timeout: TIMEOUT_MS }, () => {
  test.each([
    ['dm', 'truncate -s 0 "$1"'],
    ['dm', 'truncate -s 100 "$1"; truncate -s 0 "$1"'],
    ['dm', ': > "$1"'],
    ['hv', 'truncate -s 0 "$1"'],
    ['hv', 'truncate -s 4096 "$1"; truncate -s 0 "$1"'],
    ['hv', 'dd if=/dev/null of="$1" 2>/dev/null'],
  ] as const)('%s:/ and "%s"', async (kind, cut) => {
    const program = new Program(softVm(tag, 'demo=ivshmem-send,ahoy', '-s', `5,ivshmem,${kind}:/${tag},2`));
    running.push(program);
    await program.console('waiting for a receiver');
    execFileSync('/bin/sh', ['-c', cut, 'sh', paths[kind]]);
    // The guest looks at its first word all the time. What is written before it does makes a page of it.
    await expect.poll(() => statSync(paths[kind]).size, { timeout: TIMEOUT_MS / 2 }).toBe(2 << 20);
    const fd = openSync(paths[kind], 'r+');
    const text = Buffer.alloc(4);
    // A peer writes that word, and finds the guest's answer.
    while (!text.equals(Buffer.from('ahoy'))) {
      writeSync(fd, STATE_READY, 0, 4, 0);
      await sleep(20);
      readSync(fd, text, 0, 4, TEXT_AT);
    }
    expect(readFileSync(paths[kind])).toHaveLength(2 << 20);
    await program.console('rang peer');
    program.signal('SIGINT');
    const { code, stderr } = await program.exited;
    expect(stderr).toMatch(/: another process cut it; it has its size again/);
    expect({ code, internal: /internal|error/.test(stderr) }).toEqual({ code: 0, internal: false });
  });
});
