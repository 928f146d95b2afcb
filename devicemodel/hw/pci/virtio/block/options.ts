/** Options of virtio-blk: the C device model's grammar, checked before anything on the host is touched. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { UnknownOption } from '../../../../core/options.ts';
import { isPowerOfTwo } from '../../../../core/units.ts';
import { describePciDriver } from '../../driver.ts';
import { transportOption } from '../transport/options.ts';

/** The one sector unit of the protocol (Virtio 1.2 §5.2.4); also what LBAs of `discard` count. */
export const SECTOR_BYTES = 512;
/** C keeps LBAs and counts in ints and longs; more is a typing error. */
const MAX_COUNT = 0x7fffffff;

const discardLimits = v.strictObject({
  maxSectors: v.optional(v.number()),
  maxSegments: v.optional(v.number()),
  alignmentSectors: v.optional(v.number()),
});

export const BlockOptions = v.strictObject({
  /** Empty with `nodisk`. */
  path: v.pipe(
    v.string(),
    v.metadata({ arg: '{PATH|nodisk}', help: 'image file or block device; nodisk: a disk may be plugged later' }),
  ),
  ro: v.optional(v.pipe(v.boolean(), v.metadata({ arg: 'ro', help: 'read-only', named: true })), false),
  writeback: v.optional(
    v.pipe(
      v.boolean(),
      v.metadata({
        arg: 'writeback|writethru',
        help: 'host cache until the guest flushes, or on disk at once (default)',
        named: true,
      }),
    ),
    false,
  ),
  nocache: v.optional(
    v.pipe(v.boolean(), v.metadata({ arg: 'nocache', help: 'bypass the host page cache', named: true })),
    false,
  ),
  sectorSize: v.optional(
    v.pipe(
      v.strictObject({ logical: v.number(), physical: v.number() }),
      v.check(
        (s) =>
          isPowerOfTwo(s.logical) && isPowerOfTwo(s.physical) && s.logical >= SECTOR_BYTES && s.logical <= s.physical,
        'sizes must be powers of two, 512 or more, logical not above physical',
      ),
      v.metadata({ arg: 'sectorsize=S[/P]', help: 'logical and physical sector size, bytes', named: true }),
    ),
  ),
  range: v.optional(
    v.pipe(
      v.strictObject({ startLba: v.number(), sectors: v.number() }),
      v.metadata({ arg: 'range=LBA/SECTORS', help: 'use a part of the file, in logical sectors', named: true }),
    ),
  ),
  discard: v.optional(
    v.pipe(
      discardLimits,
      v.metadata({ arg: 'discard[=SECTORS:SEGMENTS:ALIGN]', help: 'offer discard to the guest', named: true }),
    ),
  ),
  /** Undefined: io_uring where it is faster. */
  aio: v.optional(
    v.pipe(
      v.picklist(['threads', 'io_uring']),
      v.metadata({
        arg: 'aio=threads|io_uring',
        help: 'threads: never use io_uring; default: where it is faster',
        named: true,
      }),
    ),
  ),
  queues: v.optional(
    v.pipe(
      v.number(),
      v.integer(),
      v.minValue(1),
      v.metadata({ arg: 'mq=N', help: 'queues, at most one per vCPU', named: true }),
    ),
    1,
  ),
  iothread: v.optional(
    v.pipe(
      v.strictObject({ count: v.number(), cpus: v.array(v.array(v.number())) }),
      v.metadata({
        arg: 'iothread[=N[@CPU:CPU/...|*]]',
        help: 'kicks bypass the request page',
        named: true,
      }),
    ),
  ),
  transport: transportOption,
  /** What the serial number is a digest of. */
  text: v.optional(v.string(), ''),
});

export type BlockOptions = v.InferOutput<typeof BlockOptions>;

function fail(item: string, why: string): never {
  throw new ConfigError(`virtio-blk: "${item}": ${why}`);
}

function count(item: string, text: string | undefined, min = 0): number {
  const value = text !== undefined && /^\d+$/.test(text) ? Number(text) : Number.NaN;
  return value >= min && value <= MAX_COUNT ? value : fail(item, `"${text ?? ''}" is not a number of ${min} or more`);
}

/** `N[@0:1/2/*]`: threads, and the Service VM CPUs of each. */
function parseIothread(item: string, value: string | undefined): { count: number; cpus: number[][] } {
  if (value === undefined) return { count: 1, cpus: [] };
  const [number, sets, ...more] = value.split('@');
  if (more.length > 0) fail(item, 'one @ at most');
  const threads = count(item, number, 1);
  const cpus = (sets ?? '')
    .split('/')
    .slice(0, threads)
    .map((set) => (set === '' || set.startsWith('*') ? [] : set.split(':').map((cpu) => count(item, cpu))));
  return { count: threads, cpus: sets === undefined ? [] : cpus };
}

/**
 * Everything after `virtio-blk,` without the boot marker: `[iothread[=…],][mq=N,]PATH[,option…]`; the first two may also
 * come behind the path.
 * @throws ConfigError
 */
export function parseBlockText(text: string): Record<string, unknown> {
  const items = text === '' ? [] : text.split(',');
  const options: Record<string, unknown> = { text };
  if (items.length === 0) throw new ConfigError('virtio-blk: which image file, or nodisk?');
  if (items.includes('nodisk')) {
    // Compat: as in the C device model everything else is then without meaning; only the transport is looked at.
    for (const item of items) if (item.startsWith('transport=')) options['transport'] = item.slice('transport='.length);
    return { ...options, path: '' };
  }
  let next = 0;
  while (next < items.length && parseQueueItem(items[next] as string, options)) next++;
  const path = items[next];
  if (path === undefined || path === '') throw new ConfigError('virtio-blk: which image file, or nodisk?');
  options['path'] = path;
  for (const item of items.slice(next + 1)) if (!parseQueueItem(item, options)) parseItem(item, options);
  return options;
}

/** @returns whether the item is one of those that C takes in front of the path only. */
function parseQueueItem(item: string, options: Record<string, unknown>): boolean {
  const [key, value] = split(item);
  if (key === 'iothread') options['iothread'] = parseIothread(item, value);
  else if (key === 'mq') options['queues'] = count(item, value, 1);
  else return false;
  return true;
}

/** `key=value` at the first `=`. */
function split(item: string): [string, string | undefined] {
  const at = item.indexOf('=');
  return at < 0 ? [item, undefined] : [item.slice(0, at), item.slice(at + 1)];
}

function parseItem(item: string, options: Record<string, unknown>): void {
  const [key, value] = split(item);
  switch (key) {
    case 'writeback':
    case 'writethru':
      if (value !== undefined) throw new UnknownOption(item, 'virtio-blk');
      if ((options['writeback'] ?? key === 'writeback') !== (key === 'writeback')) {
        fail(item, 'writeback and writethru contradict each other');
      }
      options['writeback'] = key === 'writeback';
      break;
    case 'ro':
    case 'nocache':
      if (value !== undefined) throw new UnknownOption(item, 'virtio-blk');
      options[key] = true;
      break;
    case 'no_bst_block':
      // Consecutive requests are served in order here in any case; the C device model can be told not to.
      break;
    case 'discard':
      options['discard'] = parseDiscard(item, value);
      break;
    case 'sectorsize': {
      const [logical, physical] = (value ?? '').split('/');
      const size = count(item, logical);
      const sizes = { logical: size, physical: physical === undefined ? size : count(item, physical) };
      // Compat: 0 asks for the default.
      if (size !== 0) options['sectorSize'] = sizes;
      break;
    }
    case 'range': {
      const [start, sectors] = (value ?? '').split('/');
      options['range'] = { startLba: count(item, start), sectors: count(item, sectors, 1) };
      break;
    }
    case 'aio':
    case 'transport':
      if (value !== undefined) options[key] = value;
      break;
    default:
      throw new UnknownOption(item, 'virtio-blk');
  }
}

function parseDiscard(item: string, value: string | undefined): Record<string, number> {
  if (value === undefined) return {};
  const [sectors, segments, alignment, ...more] = value.split(':');
  if (more.length > 0) fail(item, 'SECTORS:SEGMENTS:ALIGN');
  return {
    maxSectors: count(item, sectors),
    maxSegments: count(item, segments),
    alignmentSectors: count(item, alignment),
  };
}

export const blockInfo = describePciDriver({
  name: 'virtio-blk',
  summary: 'disk on an image file or a block device',
  options: BlockOptions,
  parseText: parseBlockText,
  hostPaths: ({ path }) => (path === '' ? [] : [path]),
});
