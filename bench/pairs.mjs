/**
 * npm run bench -- pairs: this checkout beside another one, in one run (ACRN_DM_BASELINE=DIRECTORY, built). What the
 * machine does beside it hits both alike: the two take turns, and a figure is the median of the pairs' ratios. The spread
 * of the baseline against itself (the same, once more) says what a ratio is worth. As root, with the recorder.
 *
 *   BENCH_PAIRS=30       pairs of each figure
 */
import { spawnSync } from 'node:child_process';
import { existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { makeScratch } from '../tools/scratch.mjs';

const PAIRS = Number(process.env.BENCH_PAIRS ?? 30);
/** Requests of a round trip figure in one turn; the recorder's own script takes ten times as many. */
const ROUND_TRIPS = 3000;
const WARM_UP = 'warm-up';

const roundTrips = [
  ['UART line status', { op: 'pio_read', port: '0x3fd', size: 1 }],
  ['UART scratch write', { op: 'pio_write', port: '0x3ff', size: 1, value: '0x5a' }],
  ['PM1 status', { op: 'pio_read', port: '0x400', size: 2 }],
  ['HPET counter', { op: 'mmio_read', addr: '0xfed000f0', size: 4 }],
  ['PCI config id', { op: 'cfg_read', bdf: '0:1.0', reg: 0, size: 4 }],
  ['ECAM id', { op: 'mmio_read', addr: '0xe0008000', size: 4 }],
];

const vmOptions = (kernel) => [
  ...'-m 256M -s 0:0,hostbridge -s 1:0,lpc -l com1 -s 6,ivshmem,hv:/shm_region_0,2 -s 7,uart,vuart_idx:1'.split(' '),
  ...['-k', kernel, '-B', 'console=ttyS0', '--cpu_affinity', '0,1', 'bench'],
];

/**
 * One turn of one program under the recorder. Every round trip is asked for once before it counts: the first requests of
 * a life meet code that is not compiled yet. What comes first changes from turn to turn.
 * @returns figures by name
 */
function recorded(program, { recorder, kernel, work, turn }) {
  const order = roundTrips.map((_, i) => roundTrips[(i + turn) % roundTrips.length]);
  const bench = ([name, req]) => ({ op: 'bench', name, req, count: ROUND_TRIPS });
  const actions = [...order.map(([, req]) => bench([WARM_UP, req])), ...order.map(bench)];
  const [script, out] = [join(work, 'pairs.json'), join(work, 'pairs.jsonl')];
  writeFileSync(
    script,
    JSON.stringify({ config: { stdin: 'null', unstick_ms: 1500 }, actions: [...actions, { op: 'rss' }] }),
  );
  const args = ['--script', script, '--times', '--out', out, '--', process.execPath, program, ...vmOptions(kernel)];
  const { status } = spawnSync(recorder, args, { stdio: 'ignore' });
  if (status !== 0) throw new Error(`${program} ended with status ${status} under the recorder`);
  const figures = {};
  for (const line of readFileSync(out, 'utf8').trim().split('\n')) {
    const event = JSON.parse(line);
    if (event.ev === 'ready') figures['exec to first ATTACH, ms'] = event.startup_us / 1000;
    if (event.ev === 'bench' && event.name !== WARM_UP) figures[`${event.name}, p50 us`] = event.p50_us;
    if (event.ev === 'exit') figures['peak RSS, MB'] = event.peak_rss_kB / 1024;
  }
  return figures;
}

/** Wall time of a command that needs no hypervisor. */
function timed(program, args) {
  const startMs = performance.now();
  const { status } = spawnSync(process.execPath, [program, ...args], { stdio: 'ignore' });
  if (status !== 0) throw new Error(`${program} ${args.join(' ')} ended with status ${status}`);
  return performance.now() - startMs;
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];

/** @param tools `recorder`, `kernel`: paths. @returns 0, or 1 without a baseline */
export function benchPairs(root, { recorder, kernel }) {
  const baseline = process.env.ACRN_DM_BASELINE;
  if (baseline === undefined || !existsSync(join(baseline, 'dist/acrn-dm.js'))) {
    console.log('pairs: skipped (ACRN_DM_BASELINE names no built checkout)');
    return 0;
  }
  const work = makeScratch('pairs');
  const measure = (checkout, turn) => {
    const program = join(checkout, 'dist/acrn-dm.js');
    return {
      ...recorded(program, { recorder, kernel, work, turn }),
      '--version, ms': timed(program, ['--version']),
      '--dry-run, ms': timed(program, ['--dry-run', ...vmOptions(kernel)]),
    };
  };
  const rows = new Map();
  try {
    for (let pair = 0; pair <= PAIRS; pair++) {
      // Who comes first changes: the machine is warmer for the second.
      const order = pair % 2 === 0 ? [baseline, root, baseline] : [baseline, baseline, root];
      const results = order.map((checkout) => measure(checkout, pair));
      if (pair === 0) continue; // warm-up
      const mine = results[order.indexOf(root)];
      const [first, again] = results.filter((_, i) => order[i] !== root);
      for (const name of Object.keys(mine)) {
        const row = rows.get(name) ?? { mine: [], base: [], ratio: [], self: [] };
        row.mine.push(mine[name]);
        row.base.push(first[name]);
        row.ratio.push(mine[name] / first[name]);
        row.self.push(again[name] / first[name]);
        rows.set(name, row);
      }
    }
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
  console.log(`medians of ${PAIRS} interleaved pairs; ratio: this checkout / baseline; self: baseline / baseline`);
  for (const [name, row] of rows) {
    const spread = row.self.map((r) => Math.abs(r - 1));
    const cells = [median(row.mine), median(row.base)].map((value) => value.toFixed(2).padStart(9));
    const ratios = [median(row.ratio), median(row.self)].map((value) => value.toFixed(3));
    console.log(
      `${name.padEnd(28)} ${cells.join(' ')}   ratio ${ratios[0]}   self ${ratios[1]} (half within ${(100 * median(spread)).toFixed(1)} %)`,
    );
  }
  return 0;
}
