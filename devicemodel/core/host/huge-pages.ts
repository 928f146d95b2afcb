/**
 * The host's pools of huge pages (/sys/kernel/mm/hugepages): making them larger for a VM, and as large as they were
 * once it is gone, also when its process was killed.
 *
 * Who changes a pool holds a lock that the C device model takes, too. What was added stands in a file that the process
 * keeps locked while it lives: a file that nobody has locked is of a process that died, and the next one to come gives
 * back what stands in it.
 */
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { lockWait, tryLock } from './file-lock.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';

export const HUGE_2M = 0x20_0000;
export const HUGE_1G = 0x4000_0000;

const DEBT_NAME = /^debt\.\d+\.\d+$/;
let debts = 0;

export interface HugePageHost {
  /** With a folder for each kind of page. */
  readonly sysfs: string;
  /** Where the lock is. */
  readonly runDirectory: string;
}

export const realHost: HugePageHost = { sysfs: '/sys/kernel/mm/hugepages', runDirectory: '/run/hugepage/acrn' };

/** One kind of huge page on this host, by its sysfs counters. */
export class PagePool {
  readonly pageBytes: number;
  readonly #directory: string;
  /** Pages added to the pool (or, below zero, taken out of it) and not yet given back. */
  added = 0;

  constructor(pageBytes: number, host: HugePageHost = realHost) {
    this.pageBytes = pageBytes;
    this.#directory = join(host.sysfs, `hugepages-${pageBytes / 1024}kB`);
  }

  /** @returns undefined where there is no such page size, or when it cannot be read just now (no descriptor left). */
  #read(name: string): number | undefined {
    try {
      return Number.parseInt(readFileSync(join(this.#directory, name), 'utf8'), 10) || 0;
    } catch {
      return undefined;
    }
  }

  /** Pages nobody uses or has reserved. */
  get available(): number {
    return (this.#read('free_hugepages') ?? 0) - (this.#read('resv_hugepages') ?? 0);
  }

  /** The pool's size; what fails once need not fail again. */
  get #size(): number | undefined {
    return this.#read('nr_hugepages') ?? this.#read('nr_hugepages');
  }

  /**
   * Ask the kernel for a larger (or smaller) pool; how far it got shows in `available`.
   * @returns whether it could be asked: not without the rights for it, where there is no such pool, or no descriptor left.
   */
  grow(pages: number): boolean {
    const before = this.#size;
    if (before === undefined) return false;
    const wanted = Math.max(0, before + pages);
    try {
      writeFileSync(join(this.#directory, 'nr_hugepages'), String(wanted));
    } catch {
      return false;
    }
    // What cannot be read is given back as if the kernel had given all of it.
    this.added += (this.#size ?? wanted) - before;
    return true;
  }
}

/** What one VM changed. Everything here is done under the lock: see {@link withPools}. */
export class HugePages {
  readonly gigabytes: PagePool;
  readonly megabytes: PagePool;
  readonly #host: HugePageHost;
  #debtPath: string | undefined;
  #debtFd = -1;

  constructor(host: HugePageHost = realHost) {
    this.#host = host;
    this.gigabytes = new PagePool(HUGE_1G, host);
    this.megabytes = new PagePool(HUGE_2M, host);
  }

  get isInDebt(): boolean {
    return this.gigabytes.added !== 0 || this.megabytes.added !== 0;
  }

  /**
   * Let a process that comes after a crash of this one know what it has to give back.
   * @returns whether it can know.
   */
  noteDebt(): boolean {
    if (!this.isInDebt) {
      this.#forgetDebt();
      return true;
    }
    try {
      this.#debtPath ??= join(this.#host.runDirectory, `debt.${process.pid}.${debts++}`);
      if (this.#debtFd < 0) {
        this.#debtFd = openFile(this.#debtPath, OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.CloseOnExec);
        tryLock(this.#debtFd, 'exclusive', this.#debtPath);
      }
      writeFileSync(this.#debtPath, `${this.gigabytes.added} ${this.megabytes.added}\n`);
      return true;
    } catch {
      // Nobody will know, as nobody did before; the VM runs.
      return false;
    }
  }

  /**
   * The pools are as large as before. Small pages first: a page of 1 GiB that was taken apart for them can only be put
   * together again out of their memory. A pool that cannot be asked is left to the next process, in the file of debts.
   * @returns whether nothing is lost: given back, or written down.
   */
  giveBack(): boolean {
    for (const pool of [this.megabytes, this.gigabytes]) {
      const { added } = pool;
      if (added === 0 || pool.grow(-added)) pool.added = 0;
    }
    if (!this.isInDebt) {
      this.#forgetDebt();
      return true;
    }
    const isNoted = this.noteDebt();
    this.#unlockDebt();
    return isNoted;
  }

  #unlockDebt(): void {
    if (this.#debtFd >= 0) closeFd(this.#debtFd);
    this.#debtPath = undefined;
    this.#debtFd = -1;
  }

  #forgetDebt(): void {
    if (this.#debtPath === undefined) return;
    try {
      rmSync(this.#debtPath, { force: true });
    } finally {
      this.#unlockDebt();
    }
  }
}

/**
 * Do something with the pools while no other device model does. Before it, what dead processes left enlarged is given
 * back. @param onUnlocked told why, where there can be no lock: without the rights for it the pools cannot be changed
 * either.
 */
export function withPools<T>(work: () => T, onUnlocked: (why: string) => void, host: HugePageHost = realHost): T {
  const path = join(host.runDirectory, 'lock');
  let fd = -1;
  try {
    mkdirSync(host.runDirectory, { recursive: true, mode: 0o755 });
    fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.CloseOnExec);
    lockWait(fd, 'exclusive', path);
    payDebtsOfTheDead(host);
  } catch (error) {
    onUnlocked((error as Error).message);
  }
  try {
    return work();
  } finally {
    if (fd >= 0) closeFd(fd);
  }
}

function payDebtsOfTheDead(host: HugePageHost): void {
  for (const name of readdirSync(host.runDirectory)) {
    if (!DEBT_NAME.test(name)) continue;
    const path = join(host.runDirectory, name);
    const fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
    try {
      // A process locks its file as soon as it made it, both under the lock that we have.
      if (!tryLock(fd, 'exclusive', path)) continue;
      const [gigabytes = 0, megabytes = 0] = readFileSync(path, 'utf8').split(' ').map(Number);
      const pages = new HugePages(host);
      pages.gigabytes.added = Number.isSafeInteger(gigabytes) ? gigabytes : 0;
      pages.megabytes.added = Number.isSafeInteger(megabytes) ? megabytes : 0;
      // What could not be given back stands in a file of this process now, or stays in this one.
      if (pages.giveBack()) rmSync(path, { force: true });
    } finally {
      closeFd(fd);
    }
  }
}
