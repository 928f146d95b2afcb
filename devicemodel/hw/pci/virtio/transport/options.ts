/** Options several virtio devices share, and those of the devices that have no others. */
import * as v from 'valibot';
import { describePciDriver } from '../../driver.ts';

/** Which register interface a device shows: legacy is what guests of the C device model expect, and the default. */
export const transportModes = ['legacy', 'transitional', 'modern'] as const;
export type TransportMode = (typeof transportModes)[number];

/** `transport=` */
export const transportOption = v.optional(
  v.pipe(
    v.picklist(transportModes),
    v.metadata({
      arg: 'transport=legacy|transitional|modern',
      help: 'registers of virtio 0.9, of both, or of 1.x (default legacy)',
      named: true,
    }),
  ),
  'legacy',
);

export const RngOptions = v.strictObject({
  transport: transportOption,
  /** Words that are no option. */
  unknown: v.optional(v.pipe(v.array(v.string()), v.metadata({ isHidden: true, named: true }))),
});

/** Compat: anything else is passed over, with a warning; C says nothing. So is `kernel=on`, whose back end is no more. */
export function parseRngText(text: string): Record<string, unknown> {
  const words = text === '' ? [] : text.split(',');
  const isTransport = (word: string) => word.startsWith('transport=');
  const transport = words.findLast(isTransport)?.slice('transport='.length);
  const unknown = words.filter((word) => !isTransport(word));
  return { ...(transport === undefined ? {} : { transport }), ...(unknown.length === 0 ? {} : { unknown }) };
}

export const rngInfo = describePciDriver({
  name: 'virtio-rnd',
  summary: 'entropy from the host',
  options: RngOptions,
  parseText: parseRngText,
  passedOver: ({ unknown = [] }) => unknown.map((word) => `"${word}" is no option of virtio-rnd and is ignored`),
});
