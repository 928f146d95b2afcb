/** Options of virtio-input. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { describePciDriver } from '../../driver.ts';

export const InputOptions = v.strictObject({
  path: v.pipe(
    v.string(),
    v.metadata({ arg: '/dev/input/eventX', help: 'input device of the host, taken exclusively' }),
  ),
  serial: v.optional(
    v.pipe(
      v.string(),
      v.maxLength(127, 'at most 127 bytes'),
      v.metadata({ arg: 'SERIAL', help: 'serial number the guest sees' }),
    ),
  ),
});

/** Compat: as with C everything after the first comma is the serial number. @throws ConfigError */
export function parseInputText(text: string): Record<string, unknown> {
  const comma = text.indexOf(',');
  const path = comma < 0 ? text : text.slice(0, comma);
  if (path === '') throw new ConfigError('virtio-input: which device? /dev/input/eventX');
  return comma < 0 ? { path } : { path, serial: text.slice(comma + 1) };
}

export const inputInfo = describePciDriver({
  name: 'virtio-input',
  summary: 'input device of the host',
  options: InputOptions,
  parseText: parseInputText,
  hostPaths: ({ path }) => [path],
});
