/**
 * Every call of the host that the built program makes fails once, with each errno it may plausibly have: while a VM
 * starts, while it runs, and while it ends. The program runs as a user has it; `faults/preload.ts` stands between it and
 * the C library, Node's files, sockets and threads, and plays the driver of ACRN.
 *
 * Whatever fails, the program ends by itself and says so in a line: no bug of its own (status 70), no hang, no VM, socket,
 * link or huge page left behind, and what a disk said was written is in its image.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import {
  existsSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { availableParallelism, constants } from 'node:os';
import { join, relative } from 'node:path';
import { build } from 'esbuild';
import { makeScratch, sweepDead } from '../../tools/scratch.mjs';
import { demoGuest, repository } from '../support/program.ts';
import { SECTOR_BYTES, sectorPattern } from './faults/data.ts';
import { errnoName, plausibleErrnos } from './faults/errnos.ts';
import type { FaultOrder } from './faults/preload.ts';
import { Random } from './random.ts';

interface Scenario {
  readonly name: string;
  readonly options: (scratch: string) => readonly string[];
  readonly order: Pick<FaultOrder, 'hsm' | 'endings'>;
}

/** One call that fails. */
interface Fault {
  readonly scenario: Scenario;
  readonly thread: string;
  readonly call: string;
  readonly nth: number;
  readonly errno: number;
}

const DISK_BYTES = 64 * SECTOR_BYTES;
const DISK_SLOTS = [3, 4] as const;
const END_PATIENCE_MS = 60_000;
/** How much longer a second try may take. */
const SLOW_MACHINE = 3;
/** The first calls of a name are each in another place of the program; of more some are picked. */
const FIRST_CALLS = 12;
const PICKED_CALLS = 6;

const machine = ['-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,stdio', '--io-timeout', '3'];
const acrn = ['--hypervisor', 'acrn', '--cpu_affinity', '0', ...machine, '-k', demoGuest];
const disks = (scratch: string) => [
  ...['-s', `${DISK_SLOTS[0]},virtio-blk,iothread,${join(scratch, 'disk0')},writeback`],
  ...['-s', `${DISK_SLOTS[1]},virtio-blk,${join(scratch, 'disk1')}`],
];
const everything = (scratch: string) => [
  ...['--cmd_monitor', join(scratch, 'monitor'), '--logger_setting', 'console,level=4;disk,level=4'],
  ...['-l', `com2,unix:${join(scratch, 'com2')}`, '-s', `5,ivshmem,dm:/${sharedName(scratch)},2`],
  ...['-s', `6,virtio-console,@pty:a=${join(scratch, 'link')},socket:b=${join(scratch, 'console')}`],
  ...['-s', '7,virtio-rnd', '-s', '8,wdt-i6300esb', '-s', `9,uart,file:${join(scratch, 'com3.log')}`],
];
const sharedPrefix = `faults-${process.pid}-`;
const sharedName = (scratch: string) => `${sharedPrefix}${scratch.slice(-6)}`;

const scenarios: readonly Scenario[] = [
  {
    name: 'resets',
    options: (scratch) => [...acrn, ...disks(scratch), ...everything(scratch), 'vm'],
    order: { hsm: 'blocking', endings: ['system-reset', 'full-reset', 'power-off'] },
  },
  {
    name: 'polled',
    options: (scratch) => [...acrn, ...disks(scratch), ...everything(scratch), 'vm'],
    order: { hsm: 'polled', endings: ['SIGTERM'] },
  },
  {
    name: 'small',
    options: (scratch) => [...acrn, ...disks(scratch), 'vm'],
    order: { hsm: 'blocking', endings: ['SIGINT'] },
  },
  {
    name: 'soft',
    options: (scratch) => [
      ...['--hypervisor', 'soft', ...machine, ...everything(scratch)],
      ...['-k', demoGuest, '-B', 'acpi=off end=s5', 'vm'],
    ],
    order: { endings: [] },
  },
];

interface Outcome {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
  readonly isHung: boolean;
}

/** Where all runs are, and what is loaded before the program. */
interface Place {
  readonly folder: string;
  readonly preload: string;
}

/** Programs that run: whoever ends this one takes them along. */
const running = new Set<ChildProcess>();

class Run {
  readonly scratch: string;
  readonly #scenario: Scenario;
  readonly #preload: string;

  constructor(scenario: Scenario, { folder, preload }: Place) {
    this.scratch = mkdtempSync(join(folder, 'run-'));
    this.#scenario = scenario;
    this.#preload = preload;
    const pool = this.in('sys/kernel/mm/hugepages/hugepages-2048kB');
    for (const folder of [pool, this.in('run/acrn'), this.in('run/hugepage'), this.in('var/log/acrn')]) {
      mkdirSync(folder, { recursive: true, mode: 0o755 });
    }
    for (const counter of ['nr', 'free', 'resv']) writeFileSync(join(pool, `${counter}_hugepages`), '0\n');
    writeFileSync(this.in('madt'), madt());
    for (const [n] of DISK_SLOTS.entries()) {
      writeFileSync(this.in(`disk${n}`), '');
      truncateSync(this.in(`disk${n}`), DISK_BYTES);
    }
  }

  in(name: string): string {
    return join(this.scratch, name);
  }

  /** Lines the program's host wrote down. */
  notes(name: string): string[] {
    return existsSync(this.in(name)) ? readFileSync(this.in(name), 'utf8').trim().split('\n') : [];
  }

  async run(fault: Fault | undefined, patienceMs = END_PATIENCE_MS): Promise<Outcome> {
    const order: FaultOrder = {
      repository,
      scratch: this.scratch,
      disks: DISK_SLOTS,
      ...this.#scenario.order,
      ...(fault === undefined ? { isCensus: true } : { fault }),
    };
    const child = spawn(
      process.execPath,
      ['--require', this.#preload, join(repository, 'dist/acrn-dm.js'), ...this.#scenario.options(this.scratch)],
      {
        stdio: ['ignore', 'ignore', 'pipe'],
        env: { ...process.env, ACRN_RUN_DIR: this.in('run/acrn'), FAULTS: JSON.stringify(order) },
      },
    );
    running.add(child);
    let stderr = '';
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text;
    });
    let isHung = false;
    const patience = setTimeout(() => {
      isHung = true;
      child.kill('SIGKILL');
    }, patienceMs);
    const [status, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve) => {
      child.on('close', (code, by) => resolve([code, by]));
    });
    clearTimeout(patience);
    running.delete(child);
    return { status, signal, stderr, isHung };
  }

  /** What should not be as it is. */
  problems(outcome: Outcome, fault: Fault | undefined): string[] {
    const { status, signal, stderr, isHung } = outcome;
    const problems: string[] = [];
    if (isHung) problems.push('did not end, twice');
    else if (signal !== null) problems.push(`killed by ${signal}`);
    else if (status === 70 || status === null || status > 78) problems.push(`status ${status}`);
    if (/internal error|please report|Node\.js v|\(node:\d+\)|^ +at .*:\d+:\d+/m.test(stderr)) {
      problems.push('an error of its own was shown');
    }
    if (status !== 0 && signal === null && !stderr.includes('acrn-dm: ')) problems.push('not a word about why');
    if (fault?.errno === constants.errno.EINTR && status !== 0) problems.push('a signal was taken for an error');
    if (fault === undefined && status !== 0) problems.push(`status ${status} without a fault`);
    if (!isHung) problems.push(...this.#left(fault));
    return [...problems, ...this.#lostData()];
  }

  #left(fault: Fault | undefined): string[] {
    const problems: string[] = [];
    const call = fault?.call ?? '';
    const states = this.notes('vm');
    // What the hypervisor refuses to end is not ended.
    if (!['ioctl:PAUSE_VM', 'ioctl:DESTROY_VM'].includes(call)) {
      const lives = states.filter((s) => s === 'created').length;
      if (states.filter((s) => s === 'destroyed').length !== lives) problems.push(`VM left: ${states.join(' ')}`);
      for (const [n, state] of states.entries()) {
        if (state === 'destroyed' && states[n - 1] === 'running') problems.push('destroyed while it ran');
      }
    }
    // A file that could not be removed is there still.
    if (['rmSync', 'unlinkSync', 'writeFileSync'].includes(call)) return problems;
    for (const path of readdirSync(this.scratch, { recursive: true, encoding: 'utf8' })) {
      const stat = lstatSync(this.in(path));
      const isLeft = stat.isSocket() || stat.isSymbolicLink() || path.includes('/debt.');
      if (isLeft) problems.push(`left behind: ${relative(this.scratch, this.in(path))}`);
    }
    const pages = readFileSync(this.in('sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages'), 'utf8').trim();
    if (pages !== '0') problems.push(`${pages} huge pages were not given back`);
    return problems;
  }

  #lostData(): string[] {
    return this.notes('flushed').flatMap((line) => {
      const [disk, sector] = line.split(' ').map(Number) as [number, number];
      const image = readFileSync(this.in(`disk${disk}`));
      const found = image.subarray(sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES);
      return found.equals(sectorPattern(sector))
        ? []
        : [`sector ${sector} of disk ${disk} was acknowledged and is lost`];
    });
  }

  remove(): void {
    rmSync(this.scratch, { recursive: true, force: true });
    rmSync(join('/dev/shm', sharedName(this.scratch)), { force: true });
  }
}

/** A host with one CPU: an ACPI table of one local APIC. */
function madt(): Uint8Array {
  const table = new DataView(new ArrayBuffer(52));
  new Uint8Array(table.buffer).set(Buffer.from('APIC'));
  table.setUint32(4, table.byteLength, true);
  new Uint8Array(table.buffer).set([0, 8, 0, 0, 1, 0, 0, 0], 44);
  return new Uint8Array(table.buffer);
}

/** The calls of a run in which nothing fails, and what may become of each. */
async function faultsOf(scenario: Scenario, place: Place, random: Random): Promise<Fault[]> {
  const run = new Run(scenario, place);
  try {
    const outcome = await run.run(undefined);
    const problems = run.problems(outcome, undefined);
    if (problems.length > 0) throw new Error(`${scenario.name}: ${problems.join('; ')}\n${outcome.stderr}`);
    const counts = new Map<string, number>();
    for (const line of run.notes('census')) counts.set(line, (counts.get(line) ?? 0) + 1);
    return [...counts].flatMap(([line, count]) => {
      const [thread, call] = line.split('\t') as [string, string];
      const calls = Array.from({ length: Math.min(count, FIRST_CALLS) }, (_, n) => n + 1);
      for (let n = 0; n < PICKED_CALLS && count > FIRST_CALLS; n++) {
        calls.push(FIRST_CALLS + 1 + random.below(count - FIRST_CALLS));
      }
      return [...new Set(calls)].flatMap((nth) =>
        plausibleErrnos(call).map((errno) => ({ scenario, thread, call, nth, errno })),
      );
    });
  } finally {
    run.remove();
  }
}

/** In an order of chance, each place of the program once before one comes again with another errno; the last comes first. */
function inTurn(faults: readonly Fault[], random: Random): Fault[] {
  const seen = new Map<string, number>();
  const turns: Fault[][] = [];
  for (const fault of shuffled(faults, random)) {
    const { scenario, thread, call, nth } = fault;
    const place = `${scenario.name} ${thread} ${call} ${nth}`;
    const turn = seen.get(place) ?? 0;
    seen.set(place, turn + 1);
    (turns[turn] ??= []).push(fault);
  }
  return turns.reverse().flat();
}

function shuffled<T>(values: readonly T[], random: Random): T[] {
  const result = [...values];
  for (let n = result.length - 1; n > 0; n--) {
    const other = random.below(n + 1);
    [result[n], result[other]] = [result[other] as T, result[n] as T];
  }
  return result;
}

const describe = ({ scenario, thread, call, nth, errno }: Fault) =>
  `${scenario.name} ${thread} ${call.replaceAll(' ', '_')} ${nth} ${errnoName(errno)}`;

export interface FaultOptions {
  readonly seed: number;
  /** So long at most; missing: until all were tried. */
  readonly minutes?: number | undefined;
  /** So many at most. */
  readonly count?: number | undefined;
  /** Leave out so many of the order, which a run that was ended came to. */
  readonly from?: number | undefined;
  /** Only faults whose line has this in it: `resets main open 3 EACCES`. */
  readonly only?: string | undefined;
}

/** @throws Error with a line for each fault that did not end as it should. */
export async function fuzzFaults(options: FaultOptions): Promise<{ faults: number; of: number; reached: number }> {
  const random = new Random(options.seed);
  const folder = makeScratch('faults');
  sweepDead('/dev/shm', /^faults-(\d+)-/);
  const place = { folder, preload: join(folder, 'preload.cjs') };
  const removeAll = () => {
    // One that was killed may make a last file.
    rmSync(folder, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
    for (const name of readdirSync('/dev/shm')) if (name.startsWith(sharedPrefix)) rmSync(join('/dev/shm', name));
  };
  const findings: string[] = [];
  let [tried, reached] = [0, 0];
  const { only, minutes, from = 0 } = options;
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
    process.once(signal, () => {
      for (const child of running) child.kill('SIGKILL');
      removeAll();
      console.log(
        `ended by ${signal}: ${tried} were tried, ${findings.length} findings; --from ${from + tried} goes on`,
      );
      process.exit(128 + constants.signals[signal]);
    });
  }
  try {
    await build({
      entryPoints: [join(import.meta.dirname, 'faults/preload.ts')],
      outfile: place.preload,
      bundle: true,
      platform: 'node',
      format: 'cjs',
      logLevel: 'error',
    });
    const all: Fault[] = [];
    for (const scenario of scenarios) {
      if (only === undefined || only.startsWith(scenario.name)) all.push(...(await faultsOf(scenario, place, random)));
    }
    const queue = inTurn(
      all.filter((fault) => only === undefined || describe(fault).includes(only)),
      random,
    );
    const of = queue.length;
    queue.splice(of - from, from);
    if (options.count !== undefined) queue.splice(0, queue.length - options.count);
    const endMs = minutes === undefined ? Number.POSITIVE_INFINITY : performance.now() + minutes * 60_000;
    const work = async () => {
      for (let fault = queue.pop(); fault !== undefined && performance.now() < endMs; fault = queue.pop()) {
        let run = new Run(fault.scenario, place);
        let outcome = await run.run(fault);
        if (outcome.isHung) {
          // On a machine that has much else to do it may only have been slow.
          run.remove();
          run = new Run(fault.scenario, place);
          outcome = await run.run(fault, SLOW_MACHINE * END_PATIENCE_MS);
        }
        tried++;
        if (run.notes('hit').length > 0) reached++;
        const problems = run.problems(outcome, fault);
        if (problems.length > 0 || (only !== undefined && options.count === undefined)) {
          const said = outcome.stderr.trim().split('\n').slice(-14).join('\n    ');
          const line = `${from + tried} of ${of}: ${describe(fault)}: ${problems.join('; ') || `status ${outcome.status}`}\n    ${said}`;
          console.log(line);
          if (problems.length > 0) findings.push(line);
        }
        run.remove();
      }
    };
    await Promise.all(Array.from({ length: Math.min(2, availableParallelism()) }, work));
    if (findings.length > 0) throw new Error(`${findings.length} of ${tried} faults did not end as they should`);
    return { faults: tried, of, reached };
  } finally {
    removeAll();
  }
}
