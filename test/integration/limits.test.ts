/**
 * The built program under limits of the shell, for real: it runs, ends the guest in good order, or says in one line that
 * it has too little, and leaves nothing. Descriptors: descriptors.test.ts.
 */
import { spawn, spawnSync } from 'node:child_process';
import { chmodSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { demoGuest, repository, softVm, whyNoSoftHypervisor } from '../support/program.ts';

const PATIENCE_S = 90;
const tag = `lim${process.pid % 1_000_000}`;
/** Somebody who has no other process. */
const USER = 61_234;
const program = join(repository, 'dist/acrn-dm.js');
const asUser = ['setpriv', '--reuid', `${USER}`, '--regid', `${USER}`, '--clear-groups'];
const isOthersToo =
  process.getuid?.() === 0 &&
  spawnSync(asUser[0] as string, [...asUser.slice(1), 'test', '-r', demoGuest]).status === 0;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'limits-'));
  chmodSync(folder, 0o777);
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

interface Case {
  readonly limit: string;
  readonly guest: string;
  readonly user?: boolean;
  readonly status: number;
  readonly says: RegExp;
}

const { OsError, Ok, VmFailed } = ExitCode;
const cases: Readonly<Record<string, Case>> = {
  'less memory than V8 has': { limit: 'ulimit -d 100000', guest: 'demo=tour', status: OsError, says: /ulimit -d/ },
  'less memory than the software CPU needs': {
    limit: 'ulimit -d 290000',
    guest: 'demo=tour',
    status: OsError,
    says: /283 MiB of memory of its own, .* 296 MiB .* or more/,
  },
  'less address space than WebAssembly keeps free': {
    limit: 'ulimit -v 4000000',
    guest: 'demo=tour',
    status: OsError,
    says: /ulimit -v/,
  },
  'less threads than Node makes': {
    limit: 'ulimit -u 9',
    guest: 'demo=tour',
    user: true,
    status: OsError,
    says: /9 threads, .*\n.*ulimit -u/,
  },
  'files smaller than a region': {
    limit: 'ulimit -f 1000',
    guest: 'demo=tour',
    status: VmFailed,
    says: /region.*EFBIG.*\n.*ulimit -f/,
  },
  'no locked memory': { limit: 'ulimit -l 0', guest: 'demo=tour', status: Ok, says: /^/ },
  'no pending signals': { limit: 'ulimit -i 0', guest: 'demo=tour', status: Ok, says: /^/ },
  'a small stack': { limit: 'ulimit -s 512', guest: 'demo=tour', status: Ok, says: /^/ },
};

describe.skipIf(whyNoSoftHypervisor() !== undefined)('with', { timeout: 2 * PATIENCE_S * 1000 }, () => {
  test.each(Object.entries(cases))('%s', async (_name, { limit, guest, user = false, status, says }) => {
    if (user && !isOthersToo) return;
    const sockets = ['--cmd_monitor', join(folder, 'monitor'), '--api-socket', `path=${join(folder, 'api')}`];
    const args = softVm(tag, guest, ...sockets, '-s', `5,ivshmem,hv:/${tag},2`);
    const line = `${limit}; exec timeout -s KILL ${PATIENCE_S} "$@"`;
    const command = ['bash', '-c', line, 'bash', process.execPath, program, ...args];
    const [file = '', ...rest] = user ? [...asUser, ...command] : command;
    const env = { ...process.env, ACRN_RUN_DIR: join(folder, 'run') };
    // The guest's console stays open: it waits for what is typed.
    const child = spawn(file, rest, { env, stdio: ['pipe', 'ignore', 'pipe'] });
    let said = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => (said += text));
    expect(await new Promise((resolve) => child.once('close', resolve)), said).toBe(status);
    expect(said).toMatch(says);
    expect(said).not.toMatch(/internal error|\n {4}at |FATAL/);
    expect(readdirSync(folder).filter((name) => name !== 'run')).toEqual([]);
    expect(readdirSync('/dev/shm').filter((name) => name.includes(tag))).toEqual([]);
  });
});
