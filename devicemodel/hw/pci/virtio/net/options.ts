/** Options of virtio-net: the C device model's grammar. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { describePciDriver } from '../../driver.ts';
import { transportOption } from '../transport/options.ts';

const MAC =
  /^([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2}):([0-9a-fA-F]{1,2})$/;

const FLAGS: ReadonlySet<string> = new Set(['vhost', 'offload']);
/** IFNAMSIZ without the NUL. */
const MAX_NAME_BYTES = 15;

/** What the kernel takes [dev_valid_name]; it lets control characters through. */
function isInterfaceName(name: string): boolean {
  return Buffer.byteLength(name) <= MAX_NAME_BYTES && !/^\.\.?$|[/:\s\p{Cc}]/u.test(name);
}

export const NetOptions = v.strictObject({
  tap: v.optional(
    v.pipe(
      v.string(),
      v.minLength(1, 'the name is missing'),
      v.check(isInterfaceName, `must be an interface name: at most ${MAX_NAME_BYTES} bytes, without / : and blanks`),
      v.metadata({
        arg: 'tap=NAME',
        help: 'tap or macvtap interface; a tap is made if there is none',
        named: true,
        firstCounts: true,
      }),
    ),
  ),
  vhost: v.optional(
    v.pipe(v.boolean(), v.metadata({ arg: 'vhost', help: 'let the kernel move the frames', named: true })),
    false,
  ),
  mac: v.optional(
    v.pipe(
      v.string(),
      v.regex(MAC, 'must be XX:XX:XX:XX:XX:XX'),
      v.transform((text) => (MAC.exec(text) as RegExpExecArray).slice(1).map((part) => Number.parseInt(part, 16))),
      v.check((mac) => ((mac[0] as number) & 1) === 0 && mac.some((b) => b !== 0), 'must be a unicast address'),
      v.metadata({
        arg: 'mac=XX:XX:XX:XX:XX:XX',
        help: 'address of the guest (default: made from slot, function and seed)',
        named: true,
      }),
    ),
  ),
  macSeed: v.optional(
    v.pipe(
      v.string(),
      v.metadata({
        arg: 'mac_seed=TEXT',
        help: 'seed of that address: right after tap=NAME, up to the end',
        named: true,
        takesRest: true,
      }),
    ),
  ),
  offload: v.optional(
    v.pipe(v.boolean(), v.metadata({ arg: 'offload', help: 'checksum and segmentation offloads', named: true })),
    false,
  ),
  transport: transportOption,
  /** Words that are no option. */
  unknown: v.optional(v.pipe(v.array(v.string()), v.metadata({ isHidden: true, named: true })), []),
});
export type NetOptions = v.InferOutput<typeof NetOptions>;

/**
 * `tap=NAME[,mac_seed=TEXT]` or `tap=NAME[,vhost][,mac=…]…`.
 * Compat: a seed counts only right after the interface, or first where there is none, and takes the rest of the text,
 * commas included, as in C: the guest's address is made from it. Anything unknown is passed over with a warning. Options
 * may come in any order; C takes the interface first. A first item that is a
 * bare name is the form of old releases, which libvirt and Kata still write (`virtio-net,tap0_kata,mac=…`): it names the
 * tap; C 3.x starts such a VM without a link.
 */
export function parseNetText(text: string, isGiven = text !== ''): Record<string, unknown> {
  if (!isGiven) throw new ConfigError('virtio-net: which interface? tap=NAME');
  const [first, ...items] = text.split(',') as [string, ...string[]];
  const options: Record<string, unknown> = {};
  if (first.startsWith('tap=')) options['tap'] = first.slice('tap='.length);
  else if (first !== '' && !first.includes('=') && !FLAGS.has(first)) options['tap'] = first;
  const rest = first.startsWith('tap') ? text.slice(first.length + 1) : text;
  if (rest.startsWith('mac_seed') && rest.includes('=')) options['macSeed'] = rest.slice(rest.indexOf('=') + 1);
  if (options['tap'] === undefined) items.unshift(first);
  const unknown: string[] = [];
  let isSeed = false;
  for (const item of items) {
    isSeed ||= item.startsWith('mac_seed=') && options['macSeed'] !== undefined;
    // Compat: the seed is the rest of the text, whatever it looks like; C takes these two out of it as well.
    if (isSeed && item !== 'vhost' && !item.startsWith('mac=')) continue;
    const [, key, value] = /^(mac|transport|tap)=(.*)$/s.exec(item) ?? [];
    if (FLAGS.has(item)) options[item] = true;
    else if (key !== undefined && (key !== 'tap' || options['tap'] === undefined)) options[key] = value;
    // A second interface is told from what is no option at all.
    else if (key !== 'tap' && item !== '') unknown.push(item);
  }
  return { ...options, unknown };
}

export const netInfo = describePciDriver({
  name: 'virtio-net',
  summary: 'network interface on a tap or macvtap',
  options: NetOptions,
  parseText: parseNetText,
  claims: ({ tap, mac }) => [
    ...(tap === undefined
      ? []
      : [{ what: `the interface ${tap}`, key: `tap ${tap}`, consequence: 'only one of them has a link' }]),
    ...(mac === undefined
      ? []
      : [
          {
            what: `the address ${mac.map((byte) => byte.toString(16).padStart(2, '0')).join(':')}`,
            key: `mac ${mac.join(':')}`,
            consequence: 'in one network frames reach only one of them',
          },
        ]),
  ],
  passedOver: ({ tap, macSeed, unknown }) => [
    ...unknown.map((word) => `"${word}" is no option of virtio-net and is ignored`),
    ...(tap === undefined && macSeed === undefined ? ['without tap=NAME the guest has no link'] : []),
  ],
});
