/**
 * npm run bench -- virtio: disks and networks under the recorder, beside the C device model where one is there
 * (ACRN_DM_REFERENCE=PATH, else figures recorded with it on another day). virtio-load.c plays the driver; see there what
 * is measured. As root, with gcc.
 *
 *   BENCH_ROUNDS, BENCH_SECONDS, BENCH_CONFIG  as in recorded-load.mjs; a configuration is also `heap`
 *   BENCH_RECORD=FILE     write the reference's figures there
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { chosen, compare, DISK_BYTES, markRam, measure, median, ROUNDS, SECONDS, withTools } from './recorded-load.mjs';

const here = import.meta.dirname;
const RECORDED = join(here, 'virtio-reference.json');
const TAP = 'vload0';
/** Kicks the script carries out for the networks, which the C device model has no eventfd for. */
const SCRIPT_KICKS = 24_000;
const RING_GPA = 0x4000000;
const RING_STRIDE = 0x20000;

const cachedRows = [
  'rr4096@1',
  'rr4096@32',
  'wr4096@1',
  'wr4096@32',
  'rs131072@1',
  'rs131072@32',
  'ws131072@1',
  'ws131072@32',
];
/**
 * What runs: a device, and the rows measured on it. `@MEMORY@` is an image in /dev/shm: what is measured is the device
 * model alone; `@DISK@` is one in the file system of the temporary directory. Disks kick by ioeventfd in both programs
 * (`iothread`). A network of the C device model has no such thing: its kicks are the script's, and so are this program's
 * in the same row.
 */
const configs = [
  { name: 'disk, host cache', slot: 'virtio-blk,iothread,@MEMORY@,writeback', rows: cachedRows },
  { name: 'disk, written through', slot: 'virtio-blk,iothread,@DISK@', rows: ['wr4096@1', 'wr4096@32'] },
  {
    name: 'disk, nocache',
    slot: 'virtio-blk,iothread,@DISK@,nocache,writeback',
    rows: ['rr4096@1', 'rr4096@32', 'wr4096@32', 'rs131072@32'],
  },
  { name: 'network', slot: `virtio-net,tap=${TAP},mac_seed=bench`, rows: ['rtt', 'tx', 'rx'] },
];
/** Heap of the data thread: with a small young generation, each megabyte allocated is a line of the collector's. */
const heapFlags = ['--trace-gc', '--max-semi-space-size=1'];
const heapConfigs = [
  { name: 'disk', slot: 'virtio-blk,iothread,@MEMORY@,writeback', rows: ['rr4096@32', 'wr4096@32'] },
  { name: 'network', slot: `virtio-net,tap=${TAP},mac_seed=bench`, rows: ['rtt', 'tx', 'rx'] },
];

/** Steps of a script that brings a legacy device up: MSI-X on, features, rings, DRIVER_OK. */
function bringUp(queues, dropFeatures) {
  const steps = [
    { op: 'cfg_read', bdf: '0:3.0', reg: '0x10', size: 4, as: 'bio' },
    { op: 'cfg_read', bdf: '0:3.0', reg: '0x14', size: 4, as: 'bms' },
  ];
  const write = (offset, size, value) =>
    steps.push({ op: 'pio_write', port: `($bio&~3)+${offset}`, size, value: String(value) });
  for (let vector = 0; vector <= queues; vector++) {
    for (const [i, value] of [0xfee00000, 0, 0x40 + vector, 0].entries()) {
      steps.push({ op: 'mmio_write', addr: `($bms&~15)+${vector * 16 + i * 4}`, size: 4, value: String(value) });
    }
  }
  steps.push({ op: 'cfg_write', bdf: '0:3.0', reg: '0x42', size: 2, value: '0x8000' });
  for (const status of [0, 1, 3]) write(0x12, 1, status);
  steps.push({ op: 'pio_read', port: '($bio&~3)', size: 4, as: 'features' });
  steps.push({ op: 'pio_write', port: '($bio&~3)+4', size: 4, value: `$features&~${dropFeatures}` });
  for (let queue = 0; queue < queues; queue++) {
    const gpa = RING_GPA + queue * RING_STRIDE;
    write(0x0e, 2, queue);
    steps.push({ op: 'mem_fill', gpa: String(gpa), len: RING_STRIDE, byte: 0 });
    write(0x16, 2, queue + 1);
    write(0x08, 4, gpa / 4096);
  }
  write(0x12, 1, 7);
  steps.push(markRam);
  return steps;
}

function script(config, load, result) {
  const isNet = config.slot.startsWith('virtio-net');
  // VIRTIO_F_NOTIFY_ON_EMPTY would interrupt a driver that asked for none.
  const actions = bringUp(isNet ? 2 : 1, 1 << 24);
  const seconds = config.seconds ?? SECONDS;
  if (isNet) {
    const cmd = `exec ${load} net ${result} ${seconds} ${TAP} ${SCRIPT_KICKS} ${config.rows.join(' ')}`;
    actions.push({ op: 'exec', cmd, background: true });
    for (let kick = 0; kick < SCRIPT_KICKS; kick++) {
      actions.push({ op: 'wait_stdout', text: `#${kick};`, timeout_ms: 60000 });
      actions.push({ op: 'pio_write', port: '($bio&~3)+0x10', size: 2, value: kick === 0 ? '0' : '1' });
    }
  } else {
    const cmd = `exec ${load} blk ${result} ${seconds} ${DISK_BYTES} ${config.rows.join(' ')}`;
    actions.push({ op: 'exec', cmd, timeout_ms: 110000 });
  }
  return actions;
}

/** Everything in the namespace is gone with it. */
const inNamespace =
  `ip link set lo up; ip tuntap add dev ${TAP} mode tap && ip link set ${TAP} txqueuelen 2000 && ` +
  `sysctl -q net.ipv6.conf.${TAP}.disable_ipv6=1; ip link set ${TAP} up; exec "$@"`;
const within = ['unshare', '-n', 'sh', '-c', inNamespace, 'sh'];
const load = { source: 'virtio-load.c', script, within };

/** JavaScript heap a request takes in steady state: what a longer run has collected more often than a short one. */
function heapUse(command, tools) {
  console.log('\nheap');
  for (const config of heapConfigs) {
    const [short, long] = [SECONDS, 3 * SECONDS].map((seconds) => {
      const rows = measure([command[0], ...heapFlags, ...command.slice(1)], { ...config, seconds }, tools);
      const requests = [...rows.values()].reduce((sum, row) => sum + row.count, 0);
      return { requests, collections: readFileSync(join(tools.work, 'stdout'), 'utf8').split('Scavenge').length - 1 };
    });
    const requests = long.requests - short.requests;
    const collections = Math.max(0, long.collections - short.collections);
    const bytes = ((collections * 1024 * 1024) / requests).toFixed(1);
    console.log(
      `${config.name.padEnd(22)} ${requests} more requests, ${collections} more collections of 1 MiB: ${bytes} bytes a request`,
    );
  }
}

/**
 * @param dm the command that is measured.
 * @param recorder and kernel: paths.
 */
export function benchVirtio({ dm, recorder, kernel }) {
  return withTools({ recorder, kernel, load }, (tools) => {
    const reference = process.env.ACRN_DM_REFERENCE;
    const recorded = JSON.parse(readFileSync(RECORDED, 'utf8'));
    console.log(reference === undefined ? `reference: ${recorded.about}` : `reference: ${reference}, in turns`);
    const record = {};
    for (const config of chosen(configs)) {
      const ours = [];
      const theirs = [];
      for (let round = 0; round < ROUNDS; round++) {
        ours.push(measure(dm, config, tools));
        if (reference !== undefined) theirs.push(measure([reference], config, tools));
      }
      const rows = reference === undefined ? recorded.configs[config.name] : undefined;
      if (rows !== undefined) theirs.push(new Map(rows.map((row) => [row.row, row])));
      compare(config, ours, theirs);
      record[config.name] = config.rows.map((name) => {
        const of = (field) => median(theirs.map((run) => run.get(name)?.[field] ?? 0));
        return {
          row: name,
          perSecond: of('perSecond'),
          p50Us: of('p50Us') || undefined,
          p99Us: of('p99Us') || undefined,
        };
      });
    }
    if (chosen([{ name: 'heap' }]).length > 0) heapUse(dm, tools);
    if (process.env.BENCH_RECORD !== undefined) {
      writeFileSync(
        process.env.BENCH_RECORD,
        `${JSON.stringify({ about: recorded.about, configs: record }, null, 2)}\n`,
      );
    }
    return 0;
  });
}
