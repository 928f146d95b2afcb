/**
 * npm run bench -- ahci: disks of AHCI under the recorder, in turns with the C device model where one is there
 * (--reference PATH or ACRN_DM_REFERENCE=PATH). ahci-load.c plays the driver; see there what is measured: queued commands
 * at two depths, and READ and WRITE DMA EXT, which are one at a time. As root, with gcc.
 *
 * Each request is one exit (PxCI), a queued one two (PxSACT before it), and an exit goes through the recorder, which takes
 * most of the time of one request at a time. So there are rows of the same exits that ask for nothing, and a second table
 * has what the median request takes longer: that is the disk's. (Under the recorder this program waits for the guest by
 * another thread, which it need not where the kernel has the HSM: hypervisor/acrn/polled-attach.ts.)
 *
 * What counts is a life that goes on: two thirds of a row's kicks come before it is measured (ahci-load.c). Of a program's
 * first 4,000 requests one in a hundred takes this one 0.5 to 1.5 ms, while its code is compiled.
 *
 *   BENCH_ROUNDS, BENCH_SECONDS, BENCH_CONFIG  as in recorded-load.mjs
 *   BENCH_ROW=TEXT        only rows that begin like this, and the exits
 */
import {
  chosen,
  column,
  compare,
  DISK_BYTES,
  markRam,
  measure,
  median,
  ROUNDS,
  SECONDS,
  withTools,
} from './recorded-load.mjs';

/** Where the driver has its structures; ahci-load.c knows them, too. */
const LIST_GPA = 0x4000000;
const FRAMES_GPA = 0x4001000;
const WENT_ON_GPA = 0x4002000;
const ISSUE_GPA = 0x4010000;
/** Kicks of a run, each of which is some steps of the script: what is at the end of a long script takes it longer. */
const KICKS = 9000;

/** Port 0 (AHCI 1.3.1 §3.3). */
const Port = { Clb: 0x100, Clbu: 0x104, Fb: 0x108, Fbu: 0x10c, Ie: 0x114, Cmd: 0x118, Sctl: 0x12c, Serr: 0x130 };
const SACT = 0x134;
const CI = 0x138;

const queued = ['kick', 'rr4096', 'wr4096', 'rs131072', 'ws131072'].flatMap((row) =>
  row === 'kick' ? row : [`${row}@1`, `${row}@32`],
);
const single = ['kick', 'rr4096@1', 'wr4096@1', 'rs131072@1', 'ws131072@1'].map((row) => `${row},dma`);
/** `@MEMORY@` is an image in /dev/shm, `@DISK@` one in the temporary directory's file system, and in the host's cache. */
const configs = [
  { name: 'image in memory', slot: 'ahci,hd:@MEMORY@,writeback', rows: [...queued, ...single] },
  { name: 'file, host cache', slot: 'ahci,hd:@DISK@,writeback', rows: [...queued, ...single] },
];

const write = (offset, value) => ({ op: 'mmio_write', addr: `$regs+${offset}`, size: 4, value: String(value) });

/** Steps that start port 0, with no interrupt on. */
function bringUp() {
  return [
    { op: 'cfg_read', bdf: '0:3.0', reg: '0x24', size: 4, as: 'abar' },
    { op: 'set', var: 'regs', value: '$abar&~15' },
    { op: 'cfg_write', bdf: '0:3.0', reg: '0x4', size: 2, value: '0x6' },
    write(4, 0x80000000),
    { op: 'mem_fill', gpa: String(LIST_GPA), len: 0x10000, byte: 0 },
    { op: 'mem_fill', gpa: String(ISSUE_GPA), len: 4 * KICKS, byte: 0 },
    write(Port.Cmd, 0x06),
    write(Port.Clb, LIST_GPA),
    write(Port.Clbu, 0),
    write(Port.Fb, FRAMES_GPA),
    write(Port.Fbu, 0),
    write(Port.Ie, 0),
    write(Port.Cmd, 0x16),
    write(Port.Sctl, 1),
    write(Port.Sctl, 0),
    write(Port.Serr, 0xffffffff),
    write(Port.Cmd, 0x17),
    markRam,
  ];
}

function script(config, program, result) {
  const actions = bringUp();
  const cmd = `exec ${program} ${result} ${SECONDS} ${DISK_BYTES} ${KICKS} ${config.rows.join(' ')}`;
  actions.push({ op: 'exec', cmd, background: true });
  const isQueued = !config.rows[0].endsWith(',dma');
  for (let kick = 0; kick < KICKS; kick++) {
    actions.push({ op: 'wait_stdout', text: `#${kick};`, timeout_ms: 60000 });
    actions.push({ op: 'mem_read', gpa: String(ISSUE_GPA + 4 * kick), len: 4, as: 'slots' });
    if (isQueued) actions.push(write(SACT, '$slots'));
    actions.push(write(CI, '$slots'));
    actions.push({ op: 'mem_write', gpa: String(WENT_ON_GPA), size: 4, value: kick + 1 });
  }
  return actions;
}

/** Print what requests take beyond their exits, by the medians of each round. */
function compareDisks(rows, ours, reference) {
  console.log('\nbeyond its exits          us | reference | ratio');
  for (const name of rows.filter((row) => !row.startsWith('kick'))) {
    const kick = name.endsWith(',dma') ? 'kick,dma' : 'kick';
    const beyond = (runs) => runs.map((run) => run.get(name).p50Us - run.get(kick).p50Us);
    const [mine, theirs] = [ours, reference].map((runs) => (runs.length === 0 ? undefined : median(beyond(runs))));
    const ratio = theirs === undefined ? undefined : mine / theirs;
    console.log(`${name.padEnd(19)} ${column(mine, 1, 8)} | ${column(theirs, 1, 9)} | ${column(ratio, 2, 5)}`);
  }
}

const load = { source: 'ahci-load.c', script };

/**
 * @param dm the command that is measured.
 * @param recorder and kernel: paths.
 */
export function benchAhci({ dm, recorder, kernel }) {
  return withTools({ recorder, kernel, load }, (tools) => {
    const reference = process.env.ACRN_DM_REFERENCE;
    console.log(reference === undefined ? 'no reference' : `reference: ${reference}, in turns`);
    for (const config of chosen(configs)) {
      const rows = config.rows.filter((row) => row.startsWith('kick') || row.startsWith(process.env.BENCH_ROW ?? ''));
      const ours = [];
      const theirs = [];
      for (let round = 0; round < ROUNDS; round++) {
        const sides = [{ command: dm, runs: ours, figures: new Map() }];
        if (reference !== undefined) sides.push({ command: [reference], runs: theirs, figures: new Map() });
        // Row by row, and who comes first changes: what else the machine does hits both alike.
        if (round % 2 === 1) sides.reverse();
        for (const row of rows) {
          for (const { command, figures } of sides)
            figures.set(row, measure(command, { ...config, rows: [row] }, tools).get(row));
        }
        for (const { runs, figures } of sides) runs.push(figures);
      }
      compare({ ...config, rows }, ours, theirs);
      compareDisks(rows, ours, theirs);
    }
    return 0;
  });
}
