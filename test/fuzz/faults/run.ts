/** One run of the built program with calls that fail: what it is given, and what must be true of the host afterwards. */
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
import { constants } from 'node:os';
import { join, relative } from 'node:path';
import { demoGuest, repository } from '../../support/program.ts';
import { SECTOR_BYTES, sectorPattern } from './data.ts';
import type { FaultOrder } from './preload.ts';

export interface Scenario {
  readonly name: string;
  readonly options: (scratch: string) => readonly string[];
  readonly order: Pick<FaultOrder, 'hsm' | 'endings'>;
}

/** One call that fails. */
export interface Fault {
  readonly scenario: Scenario;
  readonly thread: string;
  readonly call: string;
  readonly nth: number;
  readonly errno: number;
  /** Where in the program a run without faults made this call: the same for calls from the same lines about the same thing. */
  readonly place: string;
}

export const isSignal = ({ errno }: Fault) => errno === constants.errno.EINTR;

/** Whether what is left after it is not to be told from what another left. */
export const isForItself = ({ call }: Fault) => KEEPS_VM.includes(call) || KEEPS_FILES.includes(call);

const DISK_BYTES = 64 * SECTOR_BYTES;
const DISK_SLOTS = [3, 4] as const;
const END_PATIENCE_MS = 60_000;
/** How much longer a second try may take. */
const SLOW_MACHINE = 3;
/** After one of these has failed there is more left than after others. */
const KEEPS_VM: readonly string[] = ['ioctl:PAUSE_VM', 'ioctl:DESTROY_VM'];
const KEEPS_FILES: readonly string[] = ['rmSync', 'rmdirSync', 'unlinkSync', 'writeFileSync'];
/** A link that is said to be gone is not removed. */
const isSaidGone = ({ call, errno }: Fault) => call === 'readlinkSync' && errno === constants.errno.ENOENT;

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
export const sharedPrefix = `faults-${process.pid}-`;
const sharedName = (scratch: string) => `${sharedPrefix}${scratch.slice(-6)}`;

/** In this order a call is looked for: what an earlier one of them makes need not be tried again. */
export const scenarios: readonly Scenario[] = [
  {
    name: 'polled',
    options: (scratch) => [...acrn, ...disks(scratch), ...everything(scratch), 'vm'],
    order: { hsm: 'polled', endings: ['SIGTERM'] },
  },
  {
    name: 'soft',
    options: (scratch) => [
      ...['--hypervisor', 'soft', ...machine, ...everything(scratch)],
      ...['-k', demoGuest, '-B', 'acpi=off end=s5', 'vm'],
    ],
    order: { endings: [] },
  },
  {
    name: 'small',
    options: (scratch) => [...acrn, ...disks(scratch), 'vm'],
    order: { hsm: 'blocking', endings: ['SIGINT'] },
  },
  {
    name: 'resets',
    options: (scratch) => [...acrn, ...disks(scratch), ...everything(scratch), 'vm'],
    order: { hsm: 'blocking', endings: ['system-reset', 'full-reset', 'power-off'] },
  },
];

export interface Outcome {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stderr: string;
  readonly isHung: boolean;
}

/** Where all runs are, and what is loaded before the program. */
export interface RunFolder {
  readonly folder: string;
  readonly preload: string;
}

/** Programs that run: whoever ends this one takes them along. */
export const running = new Set<ChildProcess>();

export class Run {
  readonly scratch: string;
  readonly #scenario: Scenario;
  readonly #preload: string;

  constructor(scenario: Scenario, { folder, preload }: RunFolder) {
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

  /** The faults that came to pass: their index, and the place, in order. */
  hits(): { readonly index: number; readonly place: string }[] {
    return this.notes('hit').map((line) => {
      const [index, place] = line.split('\t') as [string, string];
      return { index: Number(index), place };
    });
  }

  /** @param faults none: every call is written down. */
  async run(faults: readonly Fault[], patienceMs = END_PATIENCE_MS): Promise<Outcome> {
    const order: FaultOrder = {
      repository,
      scratch: this.scratch,
      disks: DISK_SLOTS,
      ...this.#scenario.order,
      ...(faults.length === 0
        ? { isCensus: true }
        : { faults: faults.map(({ thread, call, nth, errno }) => ({ thread, call, nth, errno })) }),
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
  problems(outcome: Outcome, faults: readonly Fault[]): string[] {
    const { status, signal, stderr, isHung } = outcome;
    const problems: string[] = [];
    if (isHung) problems.push('did not end, twice');
    else if (signal !== null) problems.push(`killed by ${signal}`);
    else if (status === 70 || status === null || status > 78) problems.push(`status ${status}`);
    if (/internal error|please report|Node\.js v|\(node:\d+\)|^ +at .*:\d+:\d+/m.test(stderr)) {
      problems.push('an error of its own was shown');
    }
    if (status !== 0 && signal === null && !stderr.includes('acrn-dm: ')) problems.push('not a word about why');
    if (faults.some(isSignal) && status !== 0) problems.push('a signal was taken for an error');
    if (faults.length === 0 && status !== 0) problems.push(`status ${status} without a fault`);
    if (!isHung) problems.push(...this.#left(faults));
    for (const disk of this.notes('silent')) problems.push(`disk ${disk} did not answer`);
    return [...problems, ...this.#lostData()];
  }

  #left(faults: readonly Fault[]): string[] {
    const problems: string[] = [];
    const states = this.notes('vm');
    // What the hypervisor refuses to end is not ended.
    if (!faults.some(({ call }) => KEEPS_VM.includes(call))) {
      const lives = states.filter((s) => s === 'created').length;
      if (states.filter((s) => s === 'destroyed').length !== lives) problems.push(`VM left: ${states.join(' ')}`);
      for (const [n, state] of states.entries()) {
        if (state === 'destroyed' && states[n - 1] === 'running') problems.push('destroyed while it ran');
      }
    }
    // A file that could not be removed is there still.
    if (faults.some((fault) => KEEPS_FILES.includes(fault.call) || isSaidGone(fault))) return problems;
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

/** @returns the run and how it ended; of one that seemed to hang the second, longer try. The caller removes it. */
export async function runPatiently(faults: readonly Fault[], scenario: Scenario, place: RunFolder) {
  const run = new Run(scenario, place);
  const outcome = await run.run(faults);
  if (!outcome.isHung) return { run, outcome };
  // On a machine that has much else to do it may only have been slow.
  run.remove();
  const again = new Run(scenario, place);
  return { run: again, outcome: await again.run(faults, SLOW_MACHINE * END_PATIENCE_MS) };
}

/** A host with one CPU: an ACPI table of one local APIC. */
function madt(): Uint8Array {
  const table = new DataView(new ArrayBuffer(52));
  new Uint8Array(table.buffer).set(Buffer.from('APIC'));
  table.setUint32(4, table.byteLength, true);
  new Uint8Array(table.buffer).set([0, 8, 0, 0, 1, 0, 0, 0], 44);
  return new Uint8Array(table.buffer);
}
