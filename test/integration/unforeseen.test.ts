/** The built program when something is thrown that nobody foresaw: it says so with status 70, and leaves nothing behind. */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { demoGuest, repository, whyNoSoftHypervisor } from '../support/program.ts';

const reason = whyNoSoftHypervisor();
const TIMEOUT_MS = 60_000;
/** acrnctl's socket comes last, once the guest runs. */
const MANAGER_SOCKETS = '/run/acrn/mngr';
const tag = `un${process.pid % 1_000_000}`;

const thrown = {
  'in a timer': 'throw new Error("unforeseen")',
  'in a microtask': 'queueMicrotask(() => { throw new Error("unforeseen"); })',
  'as a promise': 'Promise.reject(new Error("unforeseen"))',
  'by an emitter that nobody listens to': 'new (require("node:events"))().emit("error", new Error("unforeseen"))',
  'in a tick, and is no Error': 'process.nextTick(() => { throw "unforeseen"; })',
};

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'unforeseen-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

function left(pid: number): string[] {
  const sockets = existsSync(MANAGER_SOCKETS) ? readdirSync(MANAGER_SOCKETS) : [];
  return [
    ...sockets.filter((name) => name.includes(`.${pid}.`)),
    ...readdirSync('/dev/shm').filter((name) => name.includes(tag)),
    ...readdirSync(folder).filter((name) => !['crash.cjs', 'vms'].includes(name)),
  ];
}

describe.skipIf(reason !== undefined)('an error that nobody foresaw, thrown', { timeout: TIMEOUT_MS }, () => {
  test.each(Object.entries(thrown))('%s', async (_where, code) => {
    const crash = join(folder, 'crash.cjs');
    // Once the guest prints, and acrnctl's socket is there if it can be.
    const wait = `const fs = require("node:fs");
      const isUp = () => fs.existsSync(${JSON.stringify(join(folder, 'com2'))}) && process.uptime() > 1.5;
      const timer = setInterval(() => { if (isUp()) { clearInterval(timer); ${code}; } }, 50);`;
    writeFileSync(crash, `if (require("node:worker_threads").isMainThread) { ${wait} }`);
    const machine = ['--hypervisor', 'soft', '-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,stdio'];
    const devices = [
      ...['-s', `5,ivshmem,hv:/${tag},2`, '--cmd_monitor', join(folder, 'monitor')],
      ...['-l', `com2,unix:${join(folder, 'com2')}`, '-l', `com3,pty:${join(folder, 'link')}`],
    ];
    const program = join(repository, 'dist/acrn-dm.js');
    const args = ['--require', crash, program, ...machine, ...devices, '-k', demoGuest, '-B', 'demo=idle', tag];
    const child = spawn(process.execPath, args, {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, ACRN_RUN_DIR: join(folder, 'vms') },
    });
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    const status = await new Promise<number | null>((resolve) => child.on('close', resolve));
    expect(stderr).toMatch(/^acrn-dm: internal error: unforeseen$/m);
    expect([status, left(child.pid ?? 0)]).toEqual([70, []]);
  });
});
