/** Options of xhci. */
import { existsSync, readFileSync } from 'node:fs';
import * as v from 'valibot';
import { ConfigError } from '../../../core/errors.ts';
import { UnknownOption } from '../../../core/options.ts';
import { describePciDriver } from '../driver.ts';

const BUSES = '/sys/bus/usb/devices';

export const XhciOptions = v.strictObject({
  ports: v.optional(
    v.pipe(
      v.array(v.pipe(v.string(), v.regex(/^\d{1,3}-\d{1,3}$/, 'must be BUS-PORT, as in 1-2'))),
      v.metadata({
        arg: 'BUS-PORT[:BUS-PORT…]',
        help: "ports of the host: what is plugged in there, or into a hub there, is the guest's",
      }),
    ),
    [],
  ),
  tablet: v.optional(
    v.pipe(
      v.boolean(),
      v.metadata({ arg: 'tablet', named: true, help: 'a tablet that follows the pointer of --display' }),
    ),
    false,
  ),
  log: v.optional(
    v.pipe(
      v.string(),
      v.metadata({
        arg: 'log=F|W|I|D|V',
        named: true,
        help: 'D, V: commands of the guest are logged as debug messages',
      }),
    ),
  ),
  cap: v.optional(
    v.pipe(
      v.picklist(['apl'], 'must be apl'),
      v.metadata({
        arg: 'cap=apl',
        named: true,
        help: "ids and role switch (host or device) of Intel Apollo Lake; the switch is the host's",
      }),
    ),
  ),
  /** What means nothing, one line each. */
  unknown: v.optional(v.pipe(v.array(v.string()), v.metadata({ isHidden: true, named: true })), []),
});
export type XhciOptions = v.InferOutput<typeof XhciOptions>;

const HINT = 'as in -s 8,xhci,1-2:2-2:tablet:log=D:cap=apl';

/**
 * Items are separated by `,` or `:`. Compat: C reports a `tablet`, `log` or `cap` that is not well formed and goes on
 * without, or crashes; here it is refused, but for `log` and `cap` alone, and what begins with `apl`, which C takes.
 * @throws ConfigError
 */
export function parseXhciText(text: string, isGiven = text !== ''): Record<string, unknown> {
  const items = text.split(/[,:]/).filter((item) => item !== '');
  // Compat: an empty text (`-s 8,xhci,`) is a controller without devices, as in C.
  if (!isGiven) throw new ConfigError('which ports of the host, or a tablet?', { hint: HINT });
  const ports: string[] = [];
  const unknown: string[] = [];
  const out: Record<string, unknown> = {};
  for (const item of items) {
    const [key, value] = item.split('=', 2) as [string, string | undefined];
    if (/^\d/.test(item)) {
      if (!/^\d{1,3}-\d{1,3}$/.test(item)) {
        throw new ConfigError(`"${item}" is not BUS-PORT in decimal, as in 1-2`, {
          hint: 'lsusb -t shows buses and ports',
        });
      }
      if (ports.includes(item)) unknown.push(`"${item}" is given twice`);
      else ports.push(item);
    } else if (item === 'tablet') {
      out['tablet'] = true;
    } else if (key === 'log' || key === 'cap') {
      if (value === undefined) unknown.push(`"${item}" has no value and is ignored`);
      else out[key] = key === 'cap' && value.startsWith('apl') ? 'apl' : value;
    } else {
      throw new UnknownOption(item);
    }
  }
  return { ...out, ports, unknown };
}

/** @throws ConfigError for a port that no bus of this machine has. */
function checkPort(busPort: string): void {
  const [bus, port] = busPort.split('-').map(Number) as [number, number];
  const path = `${BUSES}/usb${bus}`;
  if (!existsSync(path)) {
    const hint = 'lsusb -t shows buses and ports';
    throw new ConfigError(`${busPort}: this machine has no USB bus ${bus}`, { hint });
  }
  const ports = Number.parseInt(readFileSync(`${path}/maxchild`, 'utf8'), 10);
  if (port < 1 || port > ports) throw new ConfigError(`${busPort}: USB bus ${bus} has ports 1 to ${ports}`);
}

export const xhciInfo = describePciDriver({
  name: 'xhci',
  summary: 'USB 3 host controller with devices of the host, and a tablet',
  options: XhciOptions,
  isSingle: true,
  parseText: parseXhciText,
  itemSeparator: /[,:]/,
  passedOver: ({ log, unknown }) => [
    ...(log === undefined || /^[fwidv]/i.test(log) ? [] : [`log=${log} is none of F, W, I, D and V and is ignored`]),
    ...unknown,
  ],
  hangingCalls: ({ ports }) => ports.length,
  inspectHost: ({ ports }) => {
    for (const busPort of ports) checkPort(busPort);
  },
});
