/** Options of virtio-heci: `[BUS/DEVICE/FUNCTION][,dN]`. */
import * as v from 'valibot';
import { UnknownOption } from '../../../../core/options.ts';
import { describePciDriver } from '../../driver.ts';

export const HeciOptions = v.strictObject({
  address: v.optional(
    v.pipe(
      v.string(),
      v.metadata({
        arg: 'BUS/DEVICE/FUNCTION',
        help: 'the interface of the host (hexadecimal); default: the first, mei0',
        named: true,
      }),
    ),
  ),
});

/** Compat: `dN`, C's debug level with a file of its own, is passed over: `--debug` says the same. @throws UnknownOption */
export function parseHeciText(text: string): Record<string, unknown> {
  const options: { address?: string } = {};
  for (const word of text === '' ? [] : text.split(',')) {
    if (/^[0-9a-f]{1,4}([/:.][0-9a-f]{1,2}){1,3}$/i.test(word)) options.address = word;
    else if (!/^d[0-8]?$/.test(word)) throw new UnknownOption(word, 'virtio-heci');
  }
  return options;
}

export const heciInfo = describePciDriver({
  name: 'virtio-heci',
  summary: "clients of the host's management engine, by its kernel driver",
  options: HeciOptions,
  isSingle: true,
  parseText: parseHeciText,
  // One connection after the other is made or closed.
  hangingCalls: () => 1,
});
