/** The socket that a VM makes for its API in the folder of its name goes with the VM, however early that ends. */
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { repository, softVm, whyNoSoftHypervisor } from '../support/program.ts';

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'api-socket-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

test.skipIf(whyNoSoftHypervisor() !== undefined)(
  'a VM that ends before its process knows that it listens leaves nothing',
  { timeout: 60_000 },
  async () => {
    // The socket is made at once, and its server hears of that once the guest is over, as on a machine with much to do.
    const late = join(folder, 'late.cjs');
    const made = join(folder, 'made');
    writeFileSync(
      late,
      `const { Server } = require('node:net');
      const { listen } = Server.prototype;
      Server.prototype.listen = function (at, ready) {
        if (!String(at?.path).endsWith('api.sock')) return listen.apply(this, arguments);
        require('node:fs').writeFileSync(${JSON.stringify(made)}, '');
        return listen.call(this, at, () => setTimeout(ready, 3000));
      };`,
    );
    const args = ['--require', late, join(repository, 'dist/acrn-dm.js'), ...softVm('brief', 'demo=idle,0')];
    const run = join(folder, 'run');
    const child = spawn(process.execPath, args, { stdio: 'ignore', env: { ...process.env, ACRN_RUN_DIR: run } });
    const status = await new Promise<number | null>((resolve) => child.on('close', resolve));
    expect([status, existsSync(made), readdirSync(join(run, 'vm'))]).toEqual([0, true, []]);
  },
);
