/** The built program with few descriptors (`ulimit -n`): it runs, or one line says that it needs more, with status 71. */
import { spawn } from 'node:child_process';
import { mkdtempSync, readdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { repository, softVm, whyNoSoftHypervisor } from '../support/program.ts';

const PATIENCE_S = 60;
const tag = `fd${process.pid}`;
let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'descriptors-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

interface Run {
  readonly status: number | null;
  readonly stderr: string;
  readonly left: readonly string[];
}

/** @param opened descriptors that the parent hands down. */
async function run(limit: number, args: readonly string[], opened = 0): Promise<Run> {
  const held = Array.from({ length: opened }, (_, i) => `exec {f${i}}</dev/null;`).join(' ');
  const line = `${held} ulimit -n ${limit}; exec timeout -s KILL ${PATIENCE_S} "$@"`;
  const program = [process.execPath, join(repository, 'dist/acrn-dm.js'), ...args];
  const child = spawn('bash', ['-c', line, 'bash', ...program], { stdio: ['ignore', 'ignore', 'pipe'] });
  let stderr = '';
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
  });
  const status = await new Promise<number | null>((resolve) => child.on('close', resolve));
  const shared = readdirSync('/dev/shm').filter((name) => name.includes(tag));
  return { status, stderr, left: [...shared, ...readdirSync(folder).filter((name) => !name.startsWith('disk'))] };
}

function expectToldOrFine({ status, stderr, left }: Run): void {
  expect(left).toEqual([]);
  const lines = stderr.split('\n').filter((text) => /^hint: |EMFILE|open files/.test(text));
  if (status === 0) expect(lines).toEqual([]);
  else {
    // 73: it was a socket's.
    expect([71, 73], stderr).toContain(status);
    expect(stderr).toMatch(/open files/);
    expect(lines).toHaveLength(2);
    expect(lines[1]).toMatch(/^hint: `ulimit -n`/);
  }
  expect(stderr).not.toMatch(/internal|\bat .*\.[ct]?js:/);
}

describe.skipIf(whyNoSoftHypervisor() !== undefined)('few descriptors', { timeout: 3 * PATIENCE_S * 1000 }, () => {
  const small = () => [
    ...softVm(tag, 'demo=tour', '--cmd_monitor', join(folder, 'monitor'), '-s', `5,ivshmem,hv:/${tag},2`),
  ];
  /** Opens more than a look at its configuration tells. */
  const large = () => {
    const slots = [8, 9, 10, 11, 12, 13].flatMap((slot) => {
      const disk = join(folder, `disk${slot}`);
      writeFileSync(disk, '');
      truncateSync(disk, 1 << 20);
      return ['-s', `${slot},virtio-blk,${disk}`];
    });
    const console = ['-s', `14,virtio-console,socket:port=${join(folder, 'port')}`, '-s', '15,virtio-rnd'];
    return softVm(tag, 'demo=tour', ...slots, ...console, '-s', `5,ivshmem,hv:/${tag},2`);
  };

  test.each([22, 24, 26, 29, 31])('a limit of %i is told before anything is asked for', async (limit) => {
    const result = await run(limit, small());
    expectToldOrFine(result);
    expect(result.status).toBe(71);
    expect(result.stderr).toMatch(
      /this process may have \d+ open files, and a VM like this one needs \d+ open files or more/,
    );
  });

  test.each([32, 34, 36])('a limit of %i', async (limit) => expectToldOrFine(await run(limit, small())));

  test.each([40, 44, 48, 52, 56])('a limit of %i and more devices', async (limit) => {
    expectToldOrFine(await run(limit, large()));
  });

  test.each([8, 12, 16, 18, 20])('a limit of 40, and %i are in use already', async (opened) => {
    expectToldOrFine(await run(40, small(), opened));
  });

  test.each(['--dry-run', '--dry-run=json'])('%s says what a start would say', async (dry) => {
    for (const limit of [22, 26, 31]) {
      const [plan, start] = await Promise.all([run(limit, [dry, ...small()]), run(limit, small())]);
      expect([plan.status, start.status]).toEqual([71, 71]);
      expect(plan.stderr).toContain(start.stderr.split('\n')[0]);
    }
  });
});
