/**
 * npm run bench -- large-request: the console beside one disk request of 4 GiB of descriptors over the same guest RAM, in
 * the whole program under the recorder. Round trips of COM1's line status while the request is served, by a data thread,
 * by the device thread on an image in memory, and beside it on one of the file system. The target is 20 ms at most.
 */
import { spawnSync } from 'node:child_process';
import { openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { makeScratch } from '../tools/scratch.mjs';

const LIMIT_US = 20_000;
const GiB = 2 ** 30;
const RING = 0x4000000;
const HEADER = 0x4100000;
const STATUS = 0x4110000;
const DATA = 0x5000000;
const QUEUE_SIZE = 64;
/** Two descriptors are the header's and the status's. */
const PIECES = QUEUE_SIZE - 2;
/** A chain of 4 GiB or more would be the driver's mistake (Virtio 1.2 §2.7.5.2). */
const PIECE_BYTES = Math.floor((4 * GiB - 4096) / PIECES / 4096) * 4096;
const BLOCKS = 1000;
const BLOCK_COUNT = 20;

const configs = [
  { name: 'data thread', slot: 'virtio-blk,iothread,@MEMORY@' },
  { name: 'device thread, image in memory', slot: 'virtio-blk,@MEMORY@' },
  { name: 'device thread, image in a file system', slot: 'virtio-blk,@DISK@' },
];

function hexOf(...fields) {
  const bytes = Buffer.alloc(16);
  bytes.writeBigUInt64LE(BigInt(fields[0]), 0);
  bytes.writeUInt32LE(fields[1], 8);
  bytes.writeUInt16LE(fields[2], 12);
  bytes.writeUInt16LE(fields[3], 14);
  return bytes.toString('hex');
}

function script() {
  const out = (offset, size, value) => ({ op: 'pio_write', port: `($bio&~3)+${offset}`, size, value: `${value}` });
  const ring = [hexOf(HEADER, 16, 1, 1)];
  for (let i = 0; i < PIECES; i++) ring.push(hexOf(DATA, PIECE_BYTES, 3, i + 2));
  ring.push(hexOf(STATUS, 1, 2, 0));
  const avail = RING + 16 * QUEUE_SIZE;
  const used = RING + 0x1000;
  const blocks = Array.from({ length: BLOCKS }, (_, i) => [
    { op: 'bench', name: `${i}`, req: { op: 'pio_read', port: '0x3fd', size: 1 }, count: BLOCK_COUNT },
    { op: 'mem_read', gpa: `${used + 2}`, len: 2 },
  ]).flat();
  return {
    config: { stdin: 'null', unstick_ms: 1500, timeout_ms: 120_000, vcpu_num: 2 },
    actions: [
      { op: 'cfg_read', bdf: '0:3.0', reg: '0x10', size: 4, as: 'bio' },
      ...[0, 1, 3].map((status) => out(0x12, 1, status)),
      { op: 'pio_read', port: '($bio&~3)', size: 4, as: 'feat' },
      out(4, 4, '$feat'),
      out(0x0e, 2, 0),
      { op: 'mem_fill', gpa: `${RING}`, len: 8192, byte: 0 },
      out(8, 4, RING / 4096),
      out(0x12, 1, 7),
      { op: 'mem_write', gpa: `${HEADER}`, hex: '00'.repeat(16) },
      { op: 'mem_write', gpa: `${STATUS}`, hex: 'ee' },
      { op: 'mem_write', gpa: `${RING}`, hex: ring.join('') },
      { op: 'mem_write', gpa: `${avail + 4}`, hex: '0000' },
      { op: 'mem_write', gpa: `${avail + 2}`, hex: '0100' },
      out(0x10, 2, 0),
      ...blocks,
      { op: 'poll_mem', gpa: `${used + 2}`, size: 2, want: 1, timeout_ms: 60_000 },
      { op: 'mem_read', gpa: `${STATUS}`, len: 1 },
    ],
  };
}

/** @returns 0, or 1 when somebody waited for longer than the limit, or nothing could be measured. */
export function benchLargeRequest({ dm, recorder, kernel }) {
  const memory = makeScratch('large-request', '/dev/shm');
  const work = makeScratch('large-request');
  try {
    const image = (directory) => {
      const path = join(directory, 'disk');
      openSync(path, 'w');
      truncateSync(path, 5 * GiB);
      return path;
    };
    const images = { '@MEMORY@': image(memory), '@DISK@': image(work) };
    let status = 0;
    for (const { name, slot } of configs)
      status = measure(name, slot, images, { dm, recorder, kernel, work }) || status;
    return status;
  } finally {
    rmSync(memory, { recursive: true });
    rmSync(work, { recursive: true });
  }
}

function measure(name, slot, images, { dm, recorder, kernel, work }) {
  const words = Object.entries(images).reduce((text, [key, path]) => text.replace(key, path), slot);
  writeFileSync(join(work, 'script.json'), JSON.stringify(script()));
  const trace = join(work, 'trace.jsonl');
  const vm = ['-m', '256M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,null', '-s', `3,${words}`];
  const argv = ['--script', join(work, 'script.json'), '--out', trace, '--', ...dm, ...vm];
  const run = spawnSync(recorder, [...argv, '-k', kernel, '--cpu_affinity', '0,1', 'vm1'], { encoding: 'utf8' });
  const events = readFileSync(trace, 'utf8')
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line));
  const blocks = [];
  let isServed = false;
  for (const event of events) {
    if (event.ev === 'bench' && !isServed) blocks.push(event);
    if (event.ev === 'guest' && event.op === 'mem_read' && event.hex === '0100') isServed = true;
  }
  const last = events.filter((event) => event.op === 'mem_read').at(-1);
  if (blocks.length < 2 || last?.hex !== '00') {
    console.log(`${name}: not measured (${blocks.length} blocks, status ${last?.hex}) ${run.stderr.slice(-400)}`);
    return 1;
  }
  const worst = (key) => Math.max(...blocks.map((block) => block[key]));
  const median = blocks.map((block) => block.p50_us).sort((a, b) => a - b)[blocks.length >> 1];
  const maxUs = worst('max_us');
  const figures = `median ${median.toFixed(0)} us, 99 % ${worst('p99_us').toFixed(0)} us, max ${(maxUs / 1000).toFixed(2)} ms`;
  console.log(`${name}: ${figures} (${blocks.length * BLOCK_COUNT} round trips while the request was served)`);
  return maxUs > LIMIT_US ? 1 : 0;
}
