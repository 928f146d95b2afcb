/** Options of ahci, ahci-hd and ahci-cd: the C device model's grammar, checked before anything on the host is touched. */
import * as v from 'valibot';
import { ConfigError } from '../../../core/errors.ts';
import { optionWords, repeatedOptions, UnknownOption } from '../../../core/options.ts';
import { imageOptions, parseImageItem, refuseItem } from '../../storage/image-options.ts';
import { imageClaim, inspectImage } from '../../storage/image-size.ts';
import { describePciDriver } from '../driver.ts';
import { MAX_PORTS } from './registers.ts';

/** In the place of a path: a CD drive without a medium. */
const NO_MEDIUM = 'nodisk';

const driveKind = v.picklist(['hd', 'cd']);
export type DriveKind = v.InferOutput<typeof driveKind>;

const imageOnly = v.strictObject(imageOptions);

/** An image as a drive takes it. */
export const ImageSchema = v.strictObject({
  path: v.pipe(v.string(), v.nonEmpty()),
  ...imageOptions,
});
export type DriveImage = v.InferOutput<typeof ImageSchema>;

const portSchema = v.strictObject({
  /** Undefined: nothing is connected. */
  drive: v.optional(driveKind),
  /** Undefined: no medium. */
  image: v.optional(ImageSchema),
  /** What the serial number is a digest of. */
  text: v.optional(v.string(), ''),
});
export type PortOptions = v.InferOutput<typeof portSchema>;

export const AhciOptions = v.strictObject({
  ports: v.optional(
    v.pipe(
      v.array(portSchema),
      v.maxLength(MAX_PORTS, `at most ${MAX_PORTS} ports`),
      v.check(
        (ports) => ports.every(({ drive, image }) => drive !== 'hd' || image !== undefined),
        'a disk needs an image: only a CD drive can be without',
      ),
      v.metadata({
        arg: '[hd:|cd:]PATH[,OPTION…][,{hd:|cd:}PATH…]',
        help:
          'a port for each; OPTION: ro, writeback|writethru, nocache, sectorsize=S[/P], range=LBA/SECTORS, ' +
          'discard[=SECTORS:SEGMENTS:ALIGN], aio=threads|io_uring as of virtio-blk; `cd:nodisk`: a drive without a medium',
      }),
    ),
    [],
  ),
});
export type AhciOptions = v.InferOutput<typeof AhciOptions>;

/** `PATH[,option…]` of one port. @throws ConfigError */
export function parseDriveImage(name: string, text: string): Record<string, unknown> {
  const [path, ...items] = text.split(',');
  const image: Record<string, unknown> = { path };
  for (const item of items) {
    if (parseImageItem(name, item, image)) continue;
    if (/^(mq|iothread)(=|$)/.test(item)) refuseItem(name, item, 'is an option of virtio-blk');
    // Compat: C takes it, and serves consecutive requests in order; so does this program.
    if (item !== 'no_bst_block') throw new UnknownOption(item, name, optionWords(imageOnly));
  }
  return image;
}

/**
 * Ports, each `[hd:|cd:]PATH[,option…]`, cut where `,hd:` or `,cd:` begins the next.
 * Compat: a prefix also counts for ports after it that have none; an empty path is a port with nothing behind it.
 * @param first what a port without a prefix is. @throws ConfigError
 */
export function parseAhciText(name: string, first: DriveKind, text: string): Record<string, unknown> {
  if (text === '') return { ports: [] };
  let kind = first;
  const ports = text.split(/,(?=(?:hd|cd):)/).map((part) => {
    const prefix = /^(hd|cd):/.exec(part);
    if (prefix !== null) kind = prefix[1] as DriveKind;
    const rest = part.slice(prefix?.[0].length ?? 0);
    if (rest === '') return {};
    if (rest === NO_MEDIUM && kind === 'cd') return { drive: kind, text: rest };
    if (rest.startsWith(',')) throw new ConfigError(`${name}: port "${part}": the path is missing`);
    return { drive: kind, image: parseDriveImage(name, rest), text: rest };
  });
  return { ports };
}

function describe(name: string, first: DriveKind, summary: string, aliases: readonly string[] = []) {
  const images = ({ ports }: AhciOptions) => ports.flatMap(({ image }) => image ?? []);
  return describePciDriver({
    name,
    aliases,
    summary,
    options: AhciOptions,
    parseText: (text) => parseAhciText(name, first, text),
    hostPaths: (options) => images(options).map(({ path }) => path),
    // A CD is only read, as its lock says.
    claims: ({ ports }) =>
      ports.flatMap(({ drive, image }) =>
        image === undefined ? [] : [imageClaim(image.path, { ...image, ro: image.ro || drive === 'cd' })],
      ),
    passedOver: ({ ports }) => ports.flatMap(({ text }) => repeatedOptions(imageOnly, text)),
    inspectHost: (options) => {
      for (const image of images(options)) inspectImage(image.path, image);
    },
  });
}

export const ahciInfo = describe('ahci', 'hd', 'SATA host controller with disks and CD drives', ['ahci-hd']);
export const ahciCdInfo = describe('ahci-cd', 'cd', 'as ahci, but ports without a prefix are CD drives');
