/** The address of a PCI function of the host: domain, bus, device, function, as sysfs names it. */
import type { Bdf } from '../../../core/address.ts';
import { ConfigError } from '../../../core/errors.ts';
import { sysfsPciName } from '../../../core/host/sysfs-pci.ts';

export interface HostAddress extends Bdf {
  /** PCI segment group; 0 on most machines, 0x10000 and up behind an Intel VMD. */
  readonly domain: number;
}

const MAX_BUS = 0xff;
const MAX_DEVICE = 0x1f;
const MAX_FUNCTION = 7;

const hint = 'write it in hexadecimal as BUS/DEVICE/FUNCTION, DEVICE/FUNCTION or as lspci -D does: 0000:02:00.0';

/** `0000:02:00.0`, the name of its directory in /sys/bus/pci/devices. */
export function formatHostAddress(at: HostAddress): string {
  return sysfsPciName(at, at.domain);
}

/** The address without a domain of 0, for messages. */
export function shortHostAddress(at: HostAddress): string {
  const text = formatHostAddress(at);
  return at.domain === 0 ? text.slice('0000:'.length) : text;
}

/**
 * Numbers are hexadecimal and separated by `/`, `:` or `.`: a device of bus 0, with a function, with a bus, with a domain.
 * Compat: C drops a fourth number, so that 0000:00:02.0 is bus 0 device 0 function 2 there.
 * @throws ConfigError
 */
export function parseHostAddress(text: string): HostAddress {
  const words = text.trim().split(/[/:.]/);
  if (words.length === 1) words.push('0');
  if (words.length > 4 || !words.every((word) => /^(0x)?[0-9a-f]{1,8}$/i.test(word))) {
    throw new ConfigError(`"${text}" is not the address of a PCI function`, { hint });
  }
  const numbers = words.map((word) => Number.parseInt(word, 16));
  const [domain, bus, device, fn] = [...new Array<number>(4 - numbers.length).fill(0), ...numbers] as [
    number,
    number,
    number,
    number,
  ];
  const checks = [
    ['bus', bus, MAX_BUS],
    ['device', device, MAX_DEVICE],
    ['function', fn, MAX_FUNCTION],
  ] as const;
  for (const [what, value, max] of checks) {
    if (value > max) {
      throw new ConfigError(`"${text}": ${what} ${value.toString(16)} does not exist, it is 0 to ${max.toString(16)}`, {
        hint,
      });
    }
  }
  return { domain, bus, device, function: fn };
}
