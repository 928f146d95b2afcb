/** Options of virtio-blk: the C device model's grammar, checked before anything on the host is touched. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { UnknownOption } from '../../../../core/options.ts';
import { imageOptions, parseCount, parseImageItem, refuseItem, splitItem } from '../../../storage/image-options.ts';
import { imageClaim, inspectImage } from '../../../storage/image-size.ts';
import { describePciDriver } from '../../driver.ts';
import { transportOption } from '../transport/options.ts';

const NAME = 'virtio-blk';

export const BlockOptions = v.strictObject({
  /** Empty with `nodisk`. */
  path: v.pipe(
    v.string(),
    v.metadata({ arg: '{PATH|nodisk}', help: 'image file or block device; nodisk: blkrescan brings one later' }),
  ),
  ...imageOptions,
  queues: v.optional(
    v.pipe(
      v.number(),
      v.integer(),
      v.minValue(1),
      v.metadata({ arg: 'mq=N', help: 'queues (default 1), at most one per vCPU', named: true }),
    ),
    1,
  ),
  iothread: v.optional(
    v.pipe(
      v.strictObject({ count: v.number(), cpus: v.array(v.array(v.number())) }),
      v.metadata({
        arg: 'iothread[=N[@CPU:CPU/...|*]]',
        help: 'N threads (default 1), on these CPUs, serve the queues from the start; else one does when there is much to do',
        named: true,
      }),
    ),
  ),
  transport: transportOption,
  /** What the serial number is a digest of. */
  text: v.optional(v.pipe(v.string(), v.metadata({ isHidden: true })), ''),
});

export type BlockOptions = v.InferOutput<typeof BlockOptions>;

const fail = (item: string, why: string) => refuseItem(NAME, item, why);
const count = (item: string, text: string | undefined, min?: number) => parseCount(NAME, item, text, min);

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

/** What in front of the path is none. */
const LEADING_ITEM = /^(iothread$|(iothread|mq|range|sectorsize|discard|aio|transport)=)/;

/**
 * Everything after `virtio-blk,` without the boot marker: `[iothread[=…],][mq=N,]PATH[,option…]`. Options that have a value
 * may stand before the path or behind it; in C the first two before it, and the others behind it.
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
  const next = items.findIndex((item) => !LEADING_ITEM.test(item));
  const path = items[next];
  if (path === undefined || path === '') throw new ConfigError('virtio-blk: which image file, or nodisk?');
  options['path'] = path;
  items.splice(next, 1);
  for (const item of items) if (!parseQueueItem(item, options)) parseItem(item, options);
  return options;
}

function parseQueueItem(item: string, options: Record<string, unknown>): boolean {
  const [key, value] = splitItem(item);
  if (key === 'iothread') options['iothread'] = parseIothread(item, value);
  else if (key === 'mq') options['queues'] = count(item, value, 1);
  else return false;
  return true;
}

function parseItem(item: string, options: Record<string, unknown>): void {
  if (parseImageItem(NAME, item, options)) return;
  const [key, value] = splitItem(item);
  switch (key) {
    case 'no_bst_block':
      // Consecutive requests are served in order here in any case; the C device model can be told not to.
      break;
    case 'transport':
      if (value !== undefined) options[key] = value;
      break;
    default:
      throw new UnknownOption(item, NAME);
  }
}

/** `nodisk` and the transport are all that is looked at then. */
function meaningless({ path, text }: BlockOptions): string[] {
  if (path !== '') return [];
  const words = text.split(',').filter((word) => word !== '' && word !== 'nodisk' && !word.startsWith('transport='));
  return words.length === 0 ? [] : [`with nodisk "${words.join(',')}" means nothing`];
}

export const blockInfo = describePciDriver({
  name: 'virtio-blk',
  summary: 'disk on an image file or a block device',
  options: BlockOptions,
  parseText: parseBlockText,
  passedOver: meaningless,
  hostPaths: ({ path }) => (path === '' ? [] : [path]),
  claims: (options) => (options.path === '' ? [] : [imageClaim(options.path, options)]),
  inspectHost: (options) => {
    if (options.path !== '') inspectImage(options.path, options);
  },
});
