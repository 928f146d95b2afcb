/**
 * Options of --acpidev_pt: `HID[,UID]` for a TPM, and the form of ACRN release 3.3, one resource an option:
 * `HID[,uid=N],type=memory|io_port|irq,...`.
 */
import * as v from 'valibot';
import { ConfigError } from '../../../core/errors.ts';
import { alignUp, KiB } from '../../../core/units.ts';

const PAGE_BYTES = 4 * KiB;
const PORTS = 0x1_0000;
/** Inputs of the virtual IOAPIC. */
const IOAPIC_PINS = 48;
/** Resources of one device. [ACPIDEV_RES_NUM] */
const MAX_RESOURCES = 8;

const MemoryResource = v.strictObject({ type: v.literal('memory'), base: v.number(), sizeBytes: v.number() });
const PortResource = v.strictObject({ type: v.literal('io_port'), port: v.number(), sizeBytes: v.number() });
const IrqResource = v.strictObject({
  type: v.literal('irq'),
  irq: v.number(),
  /** MPS INTI polarity and trigger mode (ACPI 6.4 §5.2.12.5). */
  polarity: v.number(),
  triggerMode: v.number(),
});
const Resource = v.variant('type', [MemoryResource, PortResource, IrqResource]);
export type HostResource = v.InferOutput<typeof Resource>;

export const AcpidevOptions = v.strictObject({
  hid: v.pipe(
    v.string(),
    v.metadata({ arg: 'HID', help: 'hardware id: MSFT0101 (a TPM), PNP0501 (a UART), INTC1055 (GPIO) and the like' }),
  ),
  uid: v.optional(v.pipe(v.number(), v.metadata({ arg: '[uid=]N', help: 'which of several, decimal; default 0' })), 0),
  resources: v.optional(
    v.pipe(
      v.array(Resource),
      v.maxLength(MAX_RESOURCES, `a device has at most ${MAX_RESOURCES} resources`),
      v.metadata({
        arg: 'type=memory,min=ADDR,len=SIZE',
        help: 'whole pages of memory (hexadecimal); or type=io_port,min=PORT,len=COUNT; or type=irq,irq=N[,polarity=0..3][,trigger_mode=0..3]; the option once for each, not for a TPM',
      }),
    ),
    [],
  ),
});
export type AcpidevOptions = v.InferOutput<typeof AcpidevOptions>;

const HINT = 'write HID[,UID], as in MSFT0101,00, or HID[,uid=N],type=memory|io_port|irq,...';
const KEYS = ['uid', 'type', 'min', 'len', 'irq', 'polarity', 'trigger_mode', 'dsdt'] as const;
const TYPES: Readonly<Record<string, readonly string[]>> = {
  memory: ['min', 'len'],
  io_port: ['min', 'len'],
  irq: ['irq', 'polarity', 'trigger_mode'],
};

/** @throws ConfigError */
export function parseAcpidevText(text: string): Record<string, unknown> {
  const [hid, ...words] = text.split(',') as [string, ...string[]];
  if (!/^[A-Za-z0-9]{7,8}$/.test(hid)) throw new ConfigError(`"${hid}" is not an ACPI device id`, { hint: HINT });
  const values = new Map<string, string>();
  for (const [i, word] of words.entries()) {
    const eq = word.indexOf('=');
    const [key, value] = eq < 0 && i === 0 ? ['uid', word] : [word.slice(0, eq), word.slice(eq + 1)];
    if (!KEYS.some((known) => known === key))
      throw new ConfigError(`"${word}" is not one of its options`, { hint: HINT });
    if (values.has(key)) throw new ConfigError(`${key}= is given twice`);
    values.set(key, value);
  }
  const uid = values.has('uid') ? decimal(values, 'uid', 0, 255) : 0;
  const type = values.get('type')?.toLowerCase();
  const foreign = [...values.keys()].find(
    (key) => key !== 'uid' && key !== 'type' && key !== 'dsdt' && !isKeyOf(type, key),
  );
  if (type === undefined) {
    if (foreign !== undefined) throw new ConfigError(`${foreign}= needs type= before it`, { hint: HINT });
    return { hid, uid };
  }
  if (!Object.hasOwn(TYPES, type)) {
    throw new ConfigError(`type=${type} is not memory, io_port or irq`, { hint: HINT });
  }
  if (foreign !== undefined) throw new ConfigError(`${foreign}= does not go with type=${type}`, { hint: HINT });
  return { hid, uid, resources: [resource(type, values)] };
}

function isKeyOf(type: string | undefined, key: string): boolean {
  return type !== undefined && Object.hasOwn(TYPES, type) && (TYPES[type] as readonly string[]).includes(key);
}

function resource(type: string, values: ReadonlyMap<string, string>): HostResource {
  if (type === 'irq') {
    return {
      type,
      irq: decimal(values, 'irq', 1, IOAPIC_PINS - 1),
      polarity: values.has('polarity') ? decimal(values, 'polarity', 0, 3) : 0,
      triggerMode: values.has('trigger_mode') ? decimal(values, 'trigger_mode', 0, 3) : 0,
    };
  }
  const min = hexadecimal(values, 'min');
  const length = hexadecimal(values, 'len');
  if (length === 0) throw new ConfigError('len= must not be 0');
  if (type === 'io_port') {
    if (min + length > PORTS) throw new ConfigError(`min=${values.get('min')},len=${values.get('len')}: no such ports`);
    return { type, port: min, sizeBytes: length };
  }
  if (min === 0 || min % PAGE_BYTES !== 0)
    throw new ConfigError(`min=${values.get('min')} is not the address of a page`);
  return { type: 'memory', base: min, sizeBytes: alignUp(length, PAGE_BYTES) };
}

function decimal(values: ReadonlyMap<string, string>, key: string, min: number, max: number): number {
  const text = values.get(key);
  const value = text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (!(value >= min && value <= max)) {
    throw new ConfigError(`${key}=${text ?? ''} is not a number from ${min} to ${max}`, { hint: HINT });
  }
  return value;
}

function hexadecimal(values: ReadonlyMap<string, string>, key: string): number {
  const digits = /^(?:0x)?([0-9a-f]{1,8})$/i.exec(values.get(key) ?? '')?.[1];
  if (digits === undefined) {
    throw new ConfigError(`${key}=${values.get(key) ?? ''} is not a hexadecimal number`, { hint: HINT });
  }
  return Number.parseInt(digits, 16);
}
