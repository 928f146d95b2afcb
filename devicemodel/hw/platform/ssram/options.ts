/** Options of `--ssram`. */
import * as v from 'valibot';
import { ConfigError } from '../../../core/errors.ts';
import { KiB, MiB } from '../../../core/units.ts';

/** Software SRAM one VM may have in all. [VSSRAM_MAX_SIZE] */
export const MAX_SSRAM_BYTES = 8 * MiB;
const PAGE_BYTES = 4 * KiB;
export const USAGE = '{L2|L3},vcpu=N,size=SIZE[;...]';

const Region = v.strictObject({
  cacheLevel: v.picklist([2, 3]),
  vcpus: v.union([v.literal('all'), v.array(v.number())]),
  sizeBytes: v.number(),
});

export const SsramOptions = v.strictObject({
  regions: v.pipe(
    v.array(Region),
    // Compat: C counts each by itself, and puts what is more on the guest's RAM and on its PCI devices.
    v.check(
      (regions) => regions.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0) <= MAX_SSRAM_BYTES,
      'all regions together have at most 8m',
    ),
    v.metadata({ arg: USAGE, help: 'a region in the cache of these vCPUs (all, or numbers); SIZE with k or m' }),
  ),
});
export type SsramOptions = v.InferOutput<typeof SsramOptions>;
type Regions = SsramOptions['regions'];

/** `L2,vcpu=0,1,size=4K;L3,vcpu=all,size=2M`; nothing at all is an empty list. */
export function parseSsramText(text: string): Record<string, unknown> {
  const hint = 'write {L2|L3},vcpu=N[,N...],size=SIZE with k or m, several separated by ;';
  const regions: Regions = [];
  for (const element of text.split(';')) {
    if (element === '') continue;
    const match = /^[lL]([23]),vcpu=(all|ALL|\d{1,2}(?:,\d{1,2})*),size=(\d{1,9})([kKmM])$/.exec(element);
    if (match === null) throw new ConfigError(`"${element}" is not a cache region`, { hint });
    const sizeBytes = Number(match[3]) * (match[4]?.toLowerCase() === 'm' ? MiB : KiB);
    if (sizeBytes === 0 || sizeBytes % PAGE_BYTES !== 0 || sizeBytes > MAX_SSRAM_BYTES) {
      throw new ConfigError(`size ${match[3]}${match[4]} is not a multiple of 4k up to 8m in "${element}"`);
    }
    const vcpus = match[2]?.toLowerCase() === 'all' ? 'all' : (match[2] as string).split(',').map(Number);
    regions.push({ cacheLevel: match[1] === '2' ? 2 : 3, vcpus, sizeBytes });
  }
  return { regions };
}
