/** Options of a disk image, the same words for every kind of disk. */
import * as v from 'valibot';
import { ConfigError } from '../../core/errors.ts';
import { UnknownOption } from '../../core/options.ts';
import { isPowerOfTwo } from '../../core/units.ts';

/** What disks of all kinds count in, whatever their sectors are. */
export const SECTOR_BYTES = 512;
/** C keeps counts in ints; more is a typing error. */
const MAX_COUNT = 0x7fffffff;
/** C keeps LBAs in longs. Far beyond any storage, and exact in bytes as well. */
const MAX_LBA = 2 ** 40;

const discardLimits = v.strictObject({
  maxSectors: v.optional(v.number()),
  maxSegments: v.optional(v.number()),
  alignmentSectors: v.optional(v.number()),
});

const FLAGS = ['ro', 'nocache', 'writeback', 'writethru'] as const;

/** For the schema of a disk: spread into its own. */
export const imageOptions = {
  ro: v.optional(v.pipe(v.boolean(), v.metadata({ arg: 'ro', help: 'read-only', named: true })), false),
  writeback: v.optional(
    v.pipe(
      v.boolean(),
      v.metadata({
        arg: 'writeback|writethru',
        help: 'writes stay in the host cache until the guest flushes, or are on disk at once (default)',
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
      v.metadata({ arg: 'sectorsize=S[/P]', help: 'logical and physical sector size in bytes', named: true }),
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
      v.metadata({
        arg: 'discard[=SECTORS:SEGMENTS:ALIGN]',
        help: 'offer discard: at most so many sectors and segments a request, aligned to ALIGN sectors',
        named: true,
      }),
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
};

const ImageOptionsSchema = v.strictObject(imageOptions);
export type ImageOptions = v.InferOutput<typeof ImageOptionsSchema>;

/** `key=value` at the first `=`. */
export function splitItem(item: string): [key: string, value: string | undefined] {
  const at = item.indexOf('=');
  return at < 0 ? [item, undefined] : [item.slice(0, at), item.slice(at + 1)];
}

/** @throws ConfigError */
export function refuseItem(where: string, item: string, why: string): never {
  throw new ConfigError(`${where}: "${item}": ${why}`);
}

/** A number of an option. @param where the device, for messages. @throws ConfigError */
export function parseCount(where: string, item: string, text: string | undefined, min = 0, max = MAX_COUNT): number {
  if (text === undefined || !/^\d+$/.test(text)) {
    return refuseItem(where, item, `"${text ?? ''}" is not a number of ${min} or more`);
  }
  const value = Number(text);
  if (value >= min && value <= max) return value;
  return refuseItem(where, item, `${text} is too ${value < min ? 'small' : 'large'}, it is ${min} to ${max}`);
}

/**
 * One option as on the command line.
 * @param where the device, for messages.
 * @returns false when the option is none of an image's. @throws ConfigError
 */
export function parseImageItem(where: string, item: string, options: Record<string, unknown>): boolean {
  const [key, value] = splitItem(item);
  const count = (text: string | undefined, min?: number) => parseCount(where, item, text, min);
  switch (key) {
    case 'writeback':
    case 'writethru':
      if (value !== undefined) throw new UnknownOption(item, where, FLAGS);
      if ((options['writeback'] ?? key === 'writeback') !== (key === 'writeback')) {
        refuseItem(where, item, 'writeback and writethru contradict each other');
      }
      options['writeback'] = key === 'writeback';
      return true;
    case 'ro':
    case 'nocache':
      if (value !== undefined) throw new UnknownOption(item, where, FLAGS);
      options[key] = true;
      return true;
    case 'aio':
      // Compat: without a value it says nothing.
      if (value !== undefined) options['aio'] = value;
      return true;
    case 'discard':
      options['discard'] = parseDiscard(where, item, value);
      return true;
    case 'sectorsize': {
      const [logical, physical] = (value ?? '').split('/');
      const size = count(logical);
      const sizes = { logical: size, physical: physical === undefined ? size : count(physical) };
      // Compat: 0 asks for the default.
      if (size !== 0) options['sectorSize'] = sizes;
      return true;
    }
    case 'range': {
      const [start, sectors, ...more] = (value ?? '').split('/');
      if (sectors === undefined || more.length > 0)
        refuseItem(where, item, 'write range=LBA/SECTORS, as in range=0/2048');
      options['range'] = {
        startLba: parseCount(where, item, start, 0, MAX_LBA),
        sectors: parseCount(where, item, sectors, 1, MAX_LBA),
      };
      return true;
    }
    default:
      return false;
  }
}

function parseDiscard(where: string, item: string, value: string | undefined): Record<string, number> {
  if (value === undefined) return {};
  const [sectors, segments, alignment, ...more] = value.split(':');
  if (more.length > 0) refuseItem(where, item, 'SECTORS:SEGMENTS:ALIGN');
  return {
    maxSectors: parseCount(where, item, sectors),
    maxSegments: parseCount(where, item, segments),
    alignmentSectors: parseCount(where, item, alignment),
  };
}
