/** Options of virtio-input. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { inspectCharDevice } from '../../../../core/host/char-device.ts';
import { fileKey } from '../../../../core/host-claims.ts';
import { describePciDriver } from '../../driver.ts';

export const InputOptions = v.strictObject({
  path: v.pipe(
    v.string(),
    v.metadata({
      arg: '/dev/input/eventX|display:keyboard|display:tablet',
      help: 'input device of the host, taken exclusively; or what is at the viewer of --display',
    }),
  ),
  serial: v.optional(
    v.pipe(
      v.string(),
      v.maxLength(127, 'at most 127 bytes'),
      v.metadata({ arg: 'SERIAL', help: 'serial number the guest sees' }),
    ),
  ),
});

const DISPLAY = 'display:';
const KINDS = ['keyboard', 'tablet'] as const;

/** What at the display it is; undefined: a device of the host. */
export function displayKindOf(path: string): (typeof KINDS)[number] | undefined {
  return KINDS.find((kind) => path === `${DISPLAY}${kind}`);
}

/** Compat: as with C everything after the first comma is the serial number. @throws ConfigError */
export function parseInputText(text: string): Record<string, unknown> {
  const comma = text.indexOf(',');
  const path = comma < 0 ? text : text.slice(0, comma);
  if (path === '') throw new ConfigError('virtio-input: which device? /dev/input/eventX');
  if (path.startsWith(DISPLAY) && displayKindOf(path) === undefined) {
    throw new ConfigError(
      `virtio-input: a display has no "${path.slice(DISPLAY.length)}", it has ${KINDS.join(' and ')}`,
    );
  }
  return comma < 0 ? { path } : { path, serial: text.slice(comma + 1) };
}

export const inputInfo = describePciDriver({
  name: 'virtio-input',
  summary: 'input device of the host, or of a viewer',
  options: InputOptions,
  parseText: parseInputText,
  hostPaths: ({ path }) => (displayKindOf(path) === undefined ? [path] : []),
  claims: ({ path }) => (displayKindOf(path) === undefined ? [{ what: path, key: fileKey(path) }] : []),
  inspectHost: ({ path }) => {
    if (displayKindOf(path) === undefined) inspectCharDevice(path, 'input', 'not an input device');
  },
});
