/** `-s [bus:]slot[:func],driver[,options]` and `-l comN[,backend]`: text → VmConfig entries. Touches nothing on the host. */
import { type Bdf, formatBdf } from '../devicemodel/core/address.ts';
import type { ComConfig, PciSlotConfig } from '../devicemodel/core/config.ts';
import { ConfigError, DmError } from '../devicemodel/core/errors.ts';
import {
  checkOptions,
  type OptionSchema,
  optionsFromText,
  optionUsage,
  optionWords,
  repeatedOptions,
  UnknownOption,
} from '../devicemodel/core/options.ts';
import { type BusMember, checkBus, numberBuses } from '../devicemodel/hw/pci/buses.ts';
import { lookupPciDriver, type PciDriverEntry } from '../devicemodel/hw/registry.ts';
import { parseCharBackend } from '../devicemodel/hw/uart/backends/spec.ts';
import { parseCNumber } from './option-values.ts';
import { didYouMean } from './suggest.ts';

/** A `-s` value taken apart, its driver not yet looked up. */
export interface SlotText {
  readonly bdf: Bdf;
  readonly driver: string;
  /** Everything behind `driver,`; empty if there is nothing. */
  readonly text: string;
  /** There is a comma behind the driver, but nothing behind it. Compat: some drivers of C tell the two apart. */
  readonly isTextEmpty?: true;
}

const slotHint = 'write -s [BUS:]SLOT[:FUNCTION],DRIVER[,OPTIONS] in decimal, as in -s 3,virtio-blk,disk.img';

/**
 * Take a `-s` value apart. Numbers are decimal and may be separated by `:`, `/` or `.`.
 * Compat: C overlooks what follows a number (`3x` is slot 3) and a fourth number.
 * @throws ConfigError
 */
export function parseSlotText(slotText: string): SlotText {
  const comma = slotText.indexOf(',');
  if (comma < 0) throw new ConfigError('the driver is missing', { hint: slotHint });
  const numbers = slotText.slice(0, comma).split(/[:/.]/);
  const [bus, device, func] =
    numbers.length === 3 ? numbers : numbers.length === 2 ? ['0', ...numbers] : ['0', numbers[0], '0'];
  const bdf = {
    bus: slotNumber('bus', bus, 255),
    device: slotNumber('slot', device, 31),
    function: slotNumber('function', func, 7),
  };
  if (numbers.length > 3)
    throw new ConfigError(`"${slotText.slice(0, comma)}" has more than three numbers`, { hint: slotHint });
  const rest = slotText.slice(comma + 1);
  const driverEnd = rest.indexOf(',');
  const driver = driverEnd < 0 ? rest : rest.slice(0, driverEnd);
  if (driver === '') throw new ConfigError('the driver is missing', { hint: slotHint });
  const text = driverEnd < 0 ? '' : rest.slice(driverEnd + 1);
  // `b,` once marked the disk to boot from.
  const options = text.startsWith('b,') ? text.slice(2) : text;
  return { bdf, driver, text: options, ...(driverEnd >= 0 && options === '' ? { isTextEmpty: true } : {}) };
}

function slotNumber(what: string, text: string | undefined, max: number): number {
  if (text === undefined || !/^\d{1,9}$/.test(text)) {
    // As lspci and libvirt's addresses have it.
    const [, digits = ''] = /^(?:0x)?([0-9a-f]{1,4})$/i.exec(text ?? '') ?? [];
    const meant = Number.parseInt(digits, 16);
    const why = meant <= max ? `is hexadecimal, in decimal it is ${meant}` : 'is not a number';
    throw new ConfigError(`${what} "${text ?? ''}" ${why}`, { hint: slotHint });
  }
  const value = Number(text);
  if (value > max) throw new ConfigError(`${what} ${value} does not exist, it is 0 to ${max}`);
  return value;
}

/** The shortest text that {@link parseSlotText} reads as `slot`. */
export function formatSlotText(slot: SlotText): string {
  const { bus, device, function: func } = slot.bdf;
  const where = bus !== 0 ? `${bus}:${device}:${func}` : func !== 0 ? `${device}:${func}` : `${device}`;
  const options = slot.text.startsWith('b,') ? `b,${slot.text}` : slot.text;
  return options === '' && slot.isTextEmpty !== true ? `${where},${slot.driver}` : `${where},${slot.driver},${options}`;
}

export interface SlotsResult {
  readonly pci: readonly PciSlotConfig[];
  /** `-s …: why`, one line for each slot that is dropped and each option text nobody reads. */
  readonly ignored: readonly string[];
}

/**
 * All `-s` values of a command line, in order.
 * @throws ConfigError naming the value, for the first that is wrong.
 */
export function parseSlots(values: readonly string[], drivers: readonly PciDriverEntry[]): SlotsResult {
  const slots = { pci: [] as PciSlotConfig[], ignored: [] as string[] };
  const taken = new Map<string, string>();
  const { bridges } = numberBuses(values.flatMap((value) => bridgeOf(value, drivers)));
  for (const value of values) {
    try {
      addSlot(slots, value, taken, drivers, bridges);
    } catch (error) {
      throw located(`-s ${value}`, error);
    }
  }
  return slots;
}

/** A value that is a bridge, as its order among the others does not matter to the devices below it. */
function bridgeOf(value: string, drivers: readonly PciDriverEntry[]): BusMember[] {
  try {
    const { bdf, driver } = parseSlotText(value);
    const found = lookupPciDriver(driver, drivers);
    return found.kind === 'driver' && found.entry.isBridge === true ? [{ bdf, isBridge: true }] : [];
  } catch {
    return []; // what is wrong with it is said in its turn
  }
}

function addSlot(
  slots: { readonly pci: PciSlotConfig[]; readonly ignored: string[] },
  value: string,
  taken: Map<string, string>,
  drivers: readonly PciDriverEntry[],
  bridges: ReadonlyMap<number, Bdf>,
): void {
  const slot = parseSlotText(value);
  const found = lookupPciDriver(slot.driver, drivers);
  // Compat: C says that these are ignored, and then ends.
  if (found.kind === 'obsolete') {
    slots.ignored.push(`-s ${value}: ignored: ${found.message}`);
    return;
  }
  const { device, function: func } = slot.bdf;
  const key = formatBdf(slot.bdf);
  const holder = taken.get(key);
  if (holder !== undefined) throw new ConfigError(`pci slot ${device}:${func} is already occupied by -s ${holder}`);
  taken.set(key, value);

  if (found.kind === 'unknown') throw new ConfigError(found.message, { hint: found.hint });
  const driver = found.entry;
  // The MP table cannot describe a further root bus, so the C program ends here too.
  checkBus({ bdf: slot.bdf, isBridge: driver.isBridge === true }, bridges);
  const twin = driver.isSingle === true ? slots.pci.find((other) => other.driver === driver.name) : undefined;
  if (twin !== undefined) {
    throw new ConfigError(
      `there can be one ${driver.name} only, it is at slot ${twin.bdf.device}:${twin.bdf.function}`,
    );
  }
  let { text } = slot;
  // Compat: as in C; but said.
  const words = optionWords(driver.options);
  const hasOptions = Object.keys(driver.options.entries).length > 0;
  const isOdd = driver.ignoresOddText === true && !words.some((word) => text.startsWith(`${word}=`));
  if (text !== '' && (!hasOptions || isOdd)) {
    slots.ignored.push(
      `-s ${value}: ${driver.name} has no ${hasOptions ? 'such option' : 'options'}, "${text}" is ignored`,
    );
    text = '';
  }
  const options = parseDriverOptions(driver, text, slot.isTextEmpty === true);
  const passedOver = [
    ...repeatedOptions(driver.options, text, driver.itemSeparator),
    ...(driver.passedOver?.(options) ?? []),
  ];
  for (const what of passedOver) slots.ignored.push(`-s ${value}: ${what}${guessIn(what, driver.options)}`);
  slots.pci.push({ bdf: slot.bdf, driver: driver.name, options, text: slot.text });
}

/** Option text → checked options. @throws ConfigError with the driver's usage as hint. */
function parseDriverOptions(driver: PciDriverEntry, text: string, isTextEmpty: boolean): unknown {
  try {
    const { parseText } = driver;
    const raw =
      parseText === undefined ? optionsFromText(driver.options, text) : parseText(text, text !== '' || isTextEmpty);
    return checkOptions(driver.options, raw);
  } catch (error) {
    if (!(error instanceof ConfigError) || error.hint !== undefined) throw error;
    const usage = `usage: -s SLOT,${optionUsage(driver.name, driver.options)}`;
    const guess = error instanceof UnknownOption ? guessOption(error, driver.options) : undefined;
    throw new ConfigError(error.message, { hint: guess === undefined ? usage : `${guess} ${usage}` });
  }
}

/** The same for a word that is passed over with a line of its own. */
function guessIn(line: string, schema: OptionSchema): string {
  const [, word] = /^(?:unknown option )?"([^"]+)" is (?:no option|ignored)/.exec(line) ?? [];
  const guess = word === undefined ? undefined : guessOption(new UnknownOption(word), schema);
  return guess === undefined ? '' : ` (${guess.replace(/\.$/, '')})`;
}

/** What other programs call it. */
const OTHER_WORDS: Readonly<Record<string, string>> = {
  readonly: 'ro',
  'read-only': 'ro',
  direct: 'nocache',
  'cache=none': 'nocache',
  'cache=unsafe': 'writeback',
  'cache=writeback': 'writeback',
  'cache=writethrough': 'writethru',
  queues: 'mq',
  num_queues: 'mq',
  'num-queues': 'mq',
  ifname: 'tap',
  if: 'tap',
  macaddr: 'mac',
};

/** What somebody may have meant by a word that is no option of the device. */
function guessOption({ word, known }: UnknownOption, schema: OptionSchema): string | undefined {
  const words = known ?? optionWords(schema);
  const [key, ...value] = word.split('=') as [string, ...string[]];
  if (word === 'rw' && words.includes('ro')) return 'a disk can be written without a word for it.';
  if (value.length > 0 && words.includes(key)) return `${key} takes no value.`;
  if (words.includes(word)) return `${key} takes a value.`;
  const otherWord = OTHER_WORDS[word] ?? OTHER_WORDS[key];
  const guess = otherWord !== undefined && words.includes(otherWord) ? otherWord : didYouMean(key, words);
  return guess === undefined ? undefined : `did you mean "${guess}"?`;
}

/** COM1 to COM5. */
const COM_COUNT = 5;
const lpcHint = 'write -l comN[,BACKEND] with N from 1 to 4, or -l com5[,BACKEND[,PORT,IRQ]]';

/** I/O ports of one 16550. */
const UART_PORTS = 8;
/** Highest line of the two PICs; the guest's ACPI names an ISA interrupt by a bit of 16. */
const MAX_ISA_IRQ = 15;

/**
 * One `-l` value.
 * Compat: an empty back end (`com5,,0x9000,5`) is refused here; C finds out after the VM was created.
 * @throws ConfigError
 */
export function parseLpc(lpcText: string): ComConfig {
  const comma = lpcText.indexOf(',');
  const name = comma < 0 ? lpcText : lpcText.slice(0, comma);
  const index = Number(/^com([1-5])$/i.exec(name)?.[1]) as ComConfig['index'];
  if (Number.isNaN(index)) {
    const guess = didYouMean(
      name,
      Array.from({ length: COM_COUNT }, (_, i) => `com${i + 1}`),
    );
    // Every comN is one edit from every other: only a slip in the letters is worth a guess.
    const hint = guess === undefined || /^com\d+$/i.test(name) ? lpcHint : `did you mean ${guess}? ${lpcHint}`;
    throw new ConfigError(`there is no LPC device "${name}"`, { hint });
  }
  if (comma < 0) return { index, backend: '' };
  const rest = lpcText.slice(comma + 1);
  if (index !== 5) return { index, backend: checkedBackend(rest) };

  const [backend, port, irq, ...more] = rest.split(',');
  if (port === undefined) return { index, backend: checkedBackend(backend) };
  if (irq === undefined) throw new ConfigError('the IRQ is missing', { hint: lpcHint });
  if (more.length > 0) throw new ConfigError(`"${more.join(',')}" is too much`, { hint: lpcHint });
  const portNumber = parseCNumber(port);
  if (portNumber === undefined || portNumber === 0 || portNumber > 0x1_0000 - UART_PORTS) {
    throw new ConfigError(`"${port}" is not an I/O port`, { hint: 'write it as in 0x9000' });
  }
  const irqNumber = parseCNumber(irq);
  if (irqNumber === undefined || irqNumber === 0 || irqNumber > MAX_ISA_IRQ) {
    throw new ConfigError(`"${irq}" is not an interrupt from 1 to ${MAX_ISA_IRQ}`);
  }
  return { index, backend: checkedBackend(backend), port: portNumber, irq: irqNumber };
}

function checkedBackend(text: string | undefined): string {
  if (text === undefined || text === '') {
    throw new ConfigError('the back end behind the comma is empty', { hint: lpcHint });
  }
  parseCharBackend(text);
  return text;
}

/** The same error with `where: ` before its message. Anything that is not ours stays as it is. */
export function located(where: string, error: unknown): unknown {
  if (!(error instanceof DmError)) return error;
  const { hint, exitCode, cause } = error;
  return new ConfigError(`${where}: ${error.message}`, { exitCode, cause, ...(hint === undefined ? {} : { hint }) });
}
