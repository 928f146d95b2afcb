/** Options of virtio-gpio: `@CHIP{LINE[=ALIAS]:…}[@CHIP{…}]…`, as the C device model takes them. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { describePciDriver } from '../../driver.ts';

/** What the C device model has room for; an interrupt message has a bit for each line. */
export const MAX_LINES = 64;
const MAX_CHIPS = 8;
/** The guest gets names in 32 bytes, with a zero at the end. */
export const MAX_NAME_BYTES = 31;

const lineSchema = v.strictObject({
  /** Number of the line within its chip, or its name. */
  line: v.pipe(v.string(), v.minLength(1, 'a line needs a number or a name')),
  /** What the guest calls it; default: its name on the host. */
  alias: v.optional(
    v.pipe(v.string(), v.maxBytes(MAX_NAME_BYTES, `a name of more than ${MAX_NAME_BYTES} bytes does not fit`)),
  ),
});

const chipSchema = v.strictObject({ chip: v.string(), lines: v.array(lineSchema) });
export type GpioChipOptions = v.InferOutput<typeof chipSchema>;

const countLines = (chips: readonly GpioChipOptions[]) => chips.reduce((sum, { lines }) => sum + lines.length, 0);

/** Legacy is the C device model's own device and protocol, modern the one of Virtio 1.2. */
const protocols = ['legacy', 'modern'] as const;

export const GpioOptions = v.strictObject({
  chips: v.pipe(
    v.array(chipSchema),
    v.maxLength(MAX_CHIPS, `at most ${MAX_CHIPS} chips`),
    v.check((chips) => countLines(chips) > 0, 'at least one line'),
    v.check((chips) => countLines(chips) <= MAX_LINES, `at most ${MAX_LINES} lines`),
    v.metadata({
      arg: '@CHIP{LINE[=ALIAS]:…}…',
      help: 'lines of /dev/CHIP the guest gets, by number or name, and what it calls them',
    }),
  ),
  transport: v.optional(
    v.pipe(
      v.picklist(protocols),
      v.metadata({
        arg: 'transport=legacy|modern',
        help: "legacy: ACRN's own device and driver; modern: the GPIO device of Virtio 1.2, which Linux has a driver for",
        named: true,
      }),
    ),
    'legacy',
  ),
});

/** @throws ConfigError */
export function parseGpioText(text: string): Record<string, unknown> {
  const options: Record<string, unknown> = {};
  const items = text.split(',').filter((item) => {
    if (!item.startsWith('transport=')) return true;
    options['transport'] = item.slice('transport='.length);
    return false;
  });
  const map = items.join(',');
  if (map === '') throw new ConfigError('virtio-gpio: which lines? @CHIP{LINE:…}');
  if (!/^(@[^@{}]+\{[^@{}]*\})+$/.test(map)) {
    throw new ConfigError(`virtio-gpio: "${map}" is not @CHIP{LINE[=ALIAS]:…}@CHIP{…}…`);
  }
  for (const [, chip] of map.matchAll(/@([^{]+)/g)) {
    if (!/^(?!\.{1,2}$)[^/]+$/.test(chip as string)) {
      throw new ConfigError(`virtio-gpio: "${chip}" is not the name of a chip, such as gpiochip0`, {
        hint: 'chips are looked for in /dev; gpiodetect lists them',
      });
    }
  }
  const chips = [...map.matchAll(/@([^{]+)\{([^}]*)\}/g)].map(([, chip, list]) => ({
    chip: chip as string,
    lines: (list as string).split(':').filter(Boolean).map(parseLine),
  }));
  return { ...options, chips };
}

function parseLine(text: string): { line: string; alias?: string } {
  const equals = text.indexOf('=');
  const line = equals < 0 ? text : text.slice(0, equals);
  const alias = equals < 0 ? '' : text.slice(equals + 1);
  return alias === '' ? { line } : { line, alias };
}

export const gpioInfo = describePciDriver({
  name: 'virtio-gpio',
  summary: 'lines of the GPIO chips of the host',
  options: GpioOptions,
  parseText: parseGpioText,
  isSingle: true,
  passedOver: ({ chips }) => {
    const lines = chips.flatMap(({ chip, lines: ofChip }) => ofChip.map(({ line }) => `${line} of ${chip}`));
    const twice = new Set(lines.filter((line, i) => lines.indexOf(line) !== i));
    return [...twice].map((line) => `line ${line} is given twice: the guest gets it once, the other does nothing`);
  },
  // A chip that is missing is one of several that can be left out.
  hostPaths: ({ chips }) => (chips.length === 1 ? chips.map(({ chip }) => `/dev/${chip}`) : []),
});
