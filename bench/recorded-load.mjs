/**
 * What loads of devices under the recorder have in common (virtio.mjs, ahci.mjs): one run of one program with a guest's
 * driver played from outside, and two programs' figures side by side.
 *
 *   BENCH_ROUNDS=5        rounds; both programs run in turns, and a ratio is the median of the rounds' ratios
 *   BENCH_SECONDS=0.6     a row's time
 *   BENCH_CONFIG=TEXT     only configurations that begin like this
 *   BENCH_KEEP=1          leave the scripts and traces
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { makeScratch } from '../tools/scratch.mjs';

export const ROUNDS = Number(process.env.BENCH_ROUNDS ?? 5);
export const SECONDS = Number(process.env.BENCH_SECONDS ?? 0.6);
export const DISK_BYTES = 256 * 1024 * 1024;

const MARK_GPA = 0x3ff0000;
const MARK = 'guest-load: guest RAM begins 0x3ff0000 below';
/** The step of a script by which a load finds the guest's RAM (guest-load.h). */
export const markRam = { op: 'mem_write', gpa: String(MARK_GPA), hex: Buffer.from(MARK).toString('hex') };

export const chosen = (configs) => configs.filter(({ name }) => name.startsWith(process.env.BENCH_CONFIG ?? ''));
export const median = (values) => [...values].sort((a, b) => a - b)[values.length >> 1];

/**
 * Build the load and its two images, and have `run(tools)` measure with them.
 * @param load `source` in this directory; `script(config, program, result)`: steps; `within`: a command that runs others.
 */
export function withTools({ recorder, kernel, load }, run) {
  const name = basename(load.source, '.c');
  const work = makeScratch(name);
  const memory = join(makeScratch(name, '/dev/shm'), 'disk');
  const tools = { work, recorder, kernel, load, memory, program: join(work, name), disk: join(work, 'disk') };
  try {
    const source = join(import.meta.dirname, load.source);
    if (spawnSync('gcc', ['-O2', '-o', tools.program, source], { stdio: 'inherit' }).status !== 0) {
      throw new Error(`${load.source} could not be built`);
    }
    // On the medium before anything is measured: a sync of the first row would wait for all of it.
    writeFileSync(tools.disk, Buffer.alloc(DISK_BYTES, 7), { flush: true });
    writeFileSync(memory, Buffer.alloc(DISK_BYTES, 7));
    return run(tools);
  } finally {
    rmSync(memory, { force: true });
    if (process.env.BENCH_KEEP === undefined) rmSync(work, { recursive: true, force: true });
    else console.log(work);
  }
}

/**
 * One run of one program; another try when the recorder and the load did not get together.
 * @param config `slot`: words of a device, with `@MEMORY@` or `@DISK@` for its image; `rows` that are to be measured.
 * @returns figures by row.
 */
export function measure(command, config, tools) {
  for (let tries = 3; ; tries--) {
    try {
      return measureOnce(command, config, tools);
    } catch (error) {
      if (tries === 1) throw error;
      console.log(`${error.message.split('\n')[0]}: once more`);
    }
  }
}

function measureOnce(command, config, tools) {
  const { work, load } = tools;
  const result = join(work, 'result');
  rmSync(result, { force: true });
  // Nobody is to wait for what the one before has written.
  spawnSync('sync', [tools.disk]);
  const actions = load.script(config, tools.program, result);
  const script = { config: { stdin: 'null', timeout_ms: 120000, unstick_ms: 700, vfs: {} }, actions };
  writeFileSync(join(work, 'script.json'), JSON.stringify(script));
  const slot = config.slot.replace('@DISK@', tools.disk).replace('@MEMORY@', tools.memory);
  const vm = ['-m', '256M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-s', `3,${slot}`];
  const boot = ['-k', tools.kernel, '-B', 'console=ttyS0', '--cpu_affinity', '0,1', 'bench'];
  const recorder = [tools.recorder, '--script', join(work, 'script.json'), '--out', join(work, 'trace.jsonl')];
  const streams = ['--stdout', join(work, 'stdout'), '--stderr', join(work, 'stderr')];
  const [program, ...args] = [...(load.within ?? []), ...recorder, ...streams, '--', ...command, ...vm, ...boot];
  spawnSync(program, args, { stdio: ['ignore', 'inherit', 'inherit'] });
  const rows = new Map();
  const lines = existsSync(result) ? readFileSync(result, 'utf8').split('\n') : [];
  for (const line of lines.filter((each) => each.endsWith('}'))) {
    const row = JSON.parse(line);
    if (row.error !== undefined) throw new Error(`${command.join(' ')}: ${row.error}`);
    rows.set(row.row, row);
  }
  if (rows.size < config.rows.length) {
    const log = join(work, 'stderr');
    const tail = existsSync(log) ? readFileSync(log, 'utf8').trimEnd().split('\n').slice(-6).join('\n') : '';
    throw new Error(`${command.join(' ')}: ${rows.size} of ${config.rows.length} rows\n${tail}`);
  }
  return rows;
}

/** @param value undefined: not known. */
export const column = (value, digits, width) => (value === undefined ? '-' : value.toFixed(digits)).padStart(width);

/** Half of the values lie between these. */
function quartiles(values) {
  const sorted = [...values].sort((a, b) => a - b);
  return [0.25, 0.75].map((part) => sorted[Math.round(part * (sorted.length - 1))]);
}

/** Print a table: medians of both programs' runs, and of the rounds' ratios, with the quartiles of the throughput's. */
export function compare(config, ours, reference) {
  console.log(
    `\n${config.name.padEnd(22)}     per s   p50 us   p99 us | reference   p50 us   p99 us | throughput (quartiles)      p50`,
  );
  for (const name of config.rows) {
    const of = (runs, field) => (runs.length === 0 ? undefined : median(runs.map((run) => run.get(name)?.[field])));
    const ratios = (field) =>
      ours.map((run, i) => run.get(name)[field] / reference[Math.min(i, reference.length - 1)].get(name)[field]);
    const ratio = (field) => (reference.length === 0 ? undefined : median(ratios(field)));
    const [low, high] = reference.length === 0 ? [] : quartiles(ratios('perSecond'));
    const side = (runs) =>
      `${column(of(runs, 'perSecond'), 0, 9)} ${column(of(runs, 'p50Us'), 1, 8)} ${column(of(runs, 'p99Us'), 1, 8)}`;
    const p50 = ours[0].get(name).p50Us === undefined ? undefined : ratio('p50Us');
    const spread = `(${column(low, 2, 4)}-${column(high, 2, 4)})`;
    console.log(
      `${name.padEnd(22)} ${side(ours)} | ${side(reference)} | ${column(ratio('perSecond'), 2, 10)} ${spread.padEnd(11)} ${column(p50, 2, 8)}`,
    );
  }
}
