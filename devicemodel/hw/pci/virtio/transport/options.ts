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
    v.metadata({ arg: 'transport=legacy|transitional|modern', help: 'register interface', named: true }),
  ),
  'legacy',
);

export const RngOptions = v.strictObject({ transport: transportOption });

/** Compat: anything else is passed over, as with C; so is `kernel=on`, whose back end is no more. */
export function parseRngText(text: string): Record<string, unknown> {
  const transport = text.split(',').findLast((item) => item.startsWith('transport='));
  return transport === undefined ? {} : { transport: transport.slice('transport='.length) };
}

export const rngInfo = describePciDriver({
  name: 'virtio-rnd',
  summary: 'entropy from the host',
  options: RngOptions,
  parseText: parseRngText,
});
