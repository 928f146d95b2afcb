/** Pools of huge pages are as large after a VM as before it, whoever dies when. The pools are files that follow no kernel. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { planHugePages } from '../../../devicemodel/core/guest-ram.ts';
import {
  HUGE_1G,
  HUGE_2M,
  type HugePageHost,
  HugePages,
  PagePool,
  withPools,
} from '../../../devicemodel/core/host/huge-pages.ts';
import { GiB, MiB } from '../../../devicemodel/core/units.ts';

let root: string;
let host: HugePageHost;
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'huge-pages-'));
  host = { sysfs: join(root, 'sysfs'), runDirectory: join(root, 'run') };
  for (const kind of ['hugepages-2048kB', 'hugepages-1048576kB'])
    mkdirSync(join(host.sysfs, kind), { recursive: true });
});
afterEach(() => rmSync(root, { recursive: true }));

const counter = (pageBytes: number, name: string) => join(host.sysfs, `hugepages-${pageBytes / 1024}kB`, name);
const size = (pageBytes: number) => Number(readFileSync(counter(pageBytes, 'nr_hugepages'), 'utf8'));
function setPool(pageBytes: number, nr: number, free = nr): void {
  writeFileSync(counter(pageBytes, 'nr_hugepages'), String(nr));
  writeFileSync(counter(pageBytes, 'free_hugepages'), String(free));
  writeFileSync(counter(pageBytes, 'resv_hugepages'), '0');
}
const neverUnlocked = (why: string) => {
  throw new Error(why);
};
const debts = () => readdirSync(host.runDirectory).filter((name) => name.startsWith('debt.'));

/** A pool whose kernel fills what is asked for out of a given amount of memory, shared by both kinds. */
class Machine {
  free: number;
  readonly orders: string[] = [];
  constructor(freeBytes: number) {
    this.free = freeBytes;
  }
  pool(pageBytes: number, nr: number): PagePool {
    const machine = this;
    let count = nr;
    return new (class extends PagePool {
      override get available(): number {
        return count;
      }
      override grow(pages: number): boolean {
        const take = Math.max(-count, Math.min(pages, Math.floor(machine.free / pageBytes)));
        count += take;
        machine.free -= take * pageBytes;
        this.added += take;
        machine.orders.push(`${pageBytes === HUGE_1G ? '1G' : '2M'} ${take}`);
        return true;
      }
    })(pageBytes, host);
  }
}

// Mutation: take a step that was not finished for the kernel's last word: a guest's reset leaves it with small pages.
test.each([512 * MiB, 1 * GiB - 2 * MiB])(
  'a pool that signals keep from growing at once grows all the same: %i bytes',
  (bytes) => {
    mkdirSync(host.runDirectory);
    const machine = new Machine(GiB);
    const megabytes = machine.pool(HUGE_2M, 1);
    const { grow } = megabytes;
    megabytes.grow = (by) => grow.call(megabytes, Math.min(by, 3));
    const pages = Object.assign(new HugePages(host), { gigabytes: machine.pool(HUGE_1G, 0), megabytes });
    expect(planHugePages([{ base: 0, sizeBytes: bytes }], pages)).toEqual([
      { base: 0, gigabyteBytes: 0, megabyteBytes: bytes },
    ]);
    expect(megabytes.available).toBe(bytes / HUGE_2M);
    pages.giveBack();
    expect(megabytes.available).toBe(1);
  },
);

describe('as large as before', () => {
  test.each([
    { name: 'nothing was needed', gigabytes: 1, megabytes: 64, freeBytes: 0, region: 1 * GiB, fits: true },
    { name: 'small pages are added', gigabytes: 0, megabytes: 1, freeBytes: 128 * MiB, region: 100 * MiB, fits: true },
    { name: 'large pages are added', gigabytes: 0, megabytes: 0, freeBytes: 2 * GiB, region: 2 * GiB, fits: true },
    { name: 'a large page is taken apart', gigabytes: 2, megabytes: 0, freeBytes: 0, region: 512 * MiB, fits: true },
    {
      name: 'large and small together',
      gigabytes: 0,
      megabytes: 3,
      freeBytes: 1.5 * GiB,
      region: 1.25 * GiB,
      fits: true,
    },
    { name: 'two are taken apart', gigabytes: 3, megabytes: 5, freeBytes: 0, region: 1 * GiB - 2 * MiB, fits: true },
    { name: 'there is not enough', gigabytes: 0, megabytes: 8, freeBytes: 64 * MiB, region: 512 * MiB, fits: false },
  ])('$name', ({ gigabytes, megabytes, freeBytes, region, fits }) => {
    const machine = new Machine(freeBytes);
    mkdirSync(host.runDirectory);
    const pages = Object.assign(new HugePages(host), {
      gigabytes: machine.pool(HUGE_1G, gigabytes),
      megabytes: machine.pool(HUGE_2M, megabytes),
    });
    const plan = planHugePages([{ base: 0, sizeBytes: region }], pages);
    expect(plan !== undefined).toBe(fits);
    pages.giveBack();
    expect([pages.gigabytes.available, pages.megabytes.available, machine.free]).toEqual([
      gigabytes,
      megabytes,
      freeBytes,
    ]);
    expect(debts()).toEqual([]);
  });
});

test('who died while its VM ran is paid for by the next, once', () => {
  setPool(HUGE_2M, 10);
  setPool(HUGE_1G, 3);
  const module = pathToFileURL(join(import.meta.dirname, '../../../devicemodel/core/host/huge-pages.ts')).href;
  const code = `
    import { HugePages, withPools } from ${JSON.stringify(module)};
    const host = ${JSON.stringify(host)};
    withPools(() => {
      const pages = new HugePages(host);
      pages.gigabytes.grow(-1); pages.noteDebt();
      pages.megabytes.grow(7); pages.noteDebt();
    }, console.error, host);
    process.kill(process.pid, 'SIGKILL');`;
  const child = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', code], {
    encoding: 'utf8',
  });
  expect(child.stderr).toBe('');
  expect(child.signal).toBe('SIGKILL');
  expect([size(HUGE_2M), size(HUGE_1G), debts().length]).toEqual([17, 2, 1]);

  for (let round = 0; round < 2; round++) {
    withPools(() => {}, neverUnlocked, host);
    expect([size(HUGE_2M), size(HUGE_1G), debts().length]).toEqual([10, 3, 0]);
  }
});

test('who lives is not paid for', () => {
  setPool(HUGE_2M, 10);
  setPool(HUGE_1G, 0);
  const pages = new HugePages(host);
  const borrow = () => {
    pages.megabytes.grow(5);
    pages.noteDebt();
  };
  withPools(borrow, neverUnlocked, host);
  withPools(() => {}, neverUnlocked, host);
  expect([size(HUGE_2M), debts().length]).toEqual([15, 1]);
  withPools(() => pages.giveBack(), neverUnlocked, host);
  expect([size(HUGE_2M), debts().length]).toEqual([10, 0]);
});

// Mutation: giveBack() forgets what it could not give.
test('a pool that cannot be asked at the end is given back by the next', () => {
  setPool(HUGE_2M, 10);
  setPool(HUGE_1G, 0);
  const pages = new HugePages(host);
  const borrow = () => {
    pages.megabytes.grow(5);
    pages.noteDebt();
  };
  withPools(borrow, neverUnlocked, host);
  const sizeFile = counter(HUGE_2M, 'nr_hugepages');
  rmSync(sizeFile);
  mkdirSync(sizeFile);
  withPools(() => pages.giveBack(), neverUnlocked, host);
  expect(debts()).toHaveLength(1);
  // Nor can the next one: it takes the debt over.
  withPools(() => {}, neverUnlocked, host);
  expect(debts()).toHaveLength(1);
  rmSync(sizeFile, { recursive: true });
  setPool(HUGE_2M, 15);
  withPools(() => {}, neverUnlocked, host);
  expect([size(HUGE_2M), debts().length]).toEqual([10, 0]);
});

// Mutation: remove the dead one's file whatever became of its debt.
test('a debt that can be neither paid nor taken over stays where it is', () => {
  setPool(HUGE_1G, 0);
  mkdirSync(join(host.sysfs, 'hugepages-2048kB/nr_hugepages'));
  mkdirSync(host.runDirectory);
  const file = join(host.runDirectory, 'debt.1.0');
  writeFileSync(file, '0 5\n');
  vi.spyOn(HugePages.prototype, 'noteDebt').mockReturnValue(false);
  withPools(() => {}, neverUnlocked, host);
  vi.restoreAllMocks();
  expect(readFileSync(file, 'utf8')).toBe('0 5\n');
});

test.each(['', 'x', '9e99 1', '-1', '1 2 3 4', '\0\0'])('a debt of %j gives back no more than it says', (text) => {
  setPool(HUGE_2M, 10);
  setPool(HUGE_1G, 2);
  mkdirSync(host.runDirectory);
  writeFileSync(join(host.runDirectory, 'debt.1.0'), text);
  withPools(() => {}, neverUnlocked, host);
  expect(debts()).toEqual([]);
  expect(size(HUGE_2M)).toBe(text === '1 2 3 4' ? 8 : text === '9e99 1' ? 9 : 10);
  expect(size(HUGE_1G)).toBe(text === '1 2 3 4' ? 1 : text === '-1' ? 3 : 2);
});

test('where there can be no lock the work is done, and the reason said', () => {
  writeFileSync(join(root, 'run'), 'a file in the way');
  const said: string[] = [];
  expect(
    withPools(
      () => 'done',
      (why) => said.push(why),
      host,
    ),
  ).toBe('done');
  expect(said).toEqual([expect.stringContaining('EEXIST')]);
});
