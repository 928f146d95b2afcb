/** Options of virtio-i2c: `BUS:ADDRESS[@NODE][:ADDRESS…][,BUS:…]`. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { describePciDriver } from '../../driver.ts';

const MAX_BUSES = 16;
/** Seven bits. */
const MAX_ADDRESS = 0x7f;

const busSchema = v.strictObject({
  bus: v.number(),
  clients: v.array(v.strictObject({ address: v.number(), node: v.optional(v.string()) })),
});
export type I2cBusOptions = v.InferOutput<typeof busSchema>;

export const I2cOptions = v.strictObject({
  buses: v.pipe(
    v.array(busSchema),
    v.maxLength(MAX_BUSES, `at most ${MAX_BUSES} buses`),
    v.check((buses) => {
      const all = buses.flatMap((b) => b.clients.map((c) => c.address));
      return new Set(all).size === all.length;
    }, 'an address may be named once only: the guest sees one bus'),
    v.metadata({ arg: 'BUS:ADDRESS[@NODE]:…', help: 'addresses (hex) on /dev/i2c-BUS (decimal) the guest may use' }),
  ),
});

/** As with C, no text is an adapter without clients. @throws ConfigError */
export function parseI2cText(text: string, isGiven = text !== ''): Record<string, unknown> {
  if (!isGiven) return { buses: [] };
  const buses = text.split(',').map((item) => {
    const [busText, ...clientTexts] = item.split(':') as [string, ...string[]];
    if (!/^\d{1,6}$/.test(busText)) throw new ConfigError(`virtio-i2c: "${item}": "${busText}" is not a bus number`);
    const clients = clientTexts.map((client) => {
      const [address, node] = client.split('@') as [string, string | undefined];
      const value = /^(0x)?[0-9a-fA-F]{1,4}$/.test(address) ? Number.parseInt(address, 16) : Number.NaN;
      if (!(value > 0 && value <= MAX_ADDRESS)) {
        throw new ConfigError(`virtio-i2c: "${item}": "${address}" is not an address from 1 to 7f`);
      }
      return node === undefined ? { address: value } : { address: value, node };
    });
    return { bus: Number(busText), clients };
  });
  return { buses };
}

export const i2cInfo = describePciDriver({
  name: 'virtio-i2c',
  summary: 'clients of the I2C buses of the host',
  options: I2cOptions,
  parseText: parseI2cText,
  claims: ({ buses }) =>
    buses.flatMap(({ bus, clients }) =>
      clients.map(({ address }) => ({
        what: `address ${address.toString(16)} of /dev/i2c-${bus}`,
        key: `i2c ${bus} ${address}`,
        consequence: 'the guest sees the client twice',
      })),
    ),
  hostPaths: ({ buses }) => buses.map(({ bus }) => `/dev/i2c-${bus}`),
});
