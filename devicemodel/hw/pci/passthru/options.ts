/** Options of `-s SLOT,passthru,…`: small, since the command line checks them at every start. */
import * as v from 'valibot';
import { ConfigError, ExitCode } from '../../../core/errors.ts';
import { integer } from '../../../core/options.ts';
import { describePciDriver } from '../driver.ts';
import { formatHostAddress, parseHostAddress } from './address.ts';

/** Longest path the C device model takes for romfile= and dsdt=. */
const MAX_PATH_BYTES = 255;
const MAX_BAR = 5;
/** Compat: C takes 256 too, which is no line of any interrupt controller it could mean. */
const MAX_IRQ = 256;

const flag = (arg: string, help: string) =>
  v.optional(v.pipe(v.boolean(), v.metadata({ arg, help, named: true })), false);

const path = (arg: string, help: string) =>
  v.optional(
    v.pipe(
      v.string(),
      v.minBytes(1, 'the path is empty'),
      v.maxBytes(MAX_PATH_BYTES, `the path is longer than ${MAX_PATH_BYTES} bytes`),
      v.metadata({ arg, help, named: true }),
    ),
  );

const hostAddress = v.pipe(
  v.string(),
  v.rawTransform(({ dataset, addIssue, NEVER }) => {
    try {
      return formatHostAddress(parseHostAddress(dataset.value));
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      addIssue({ message: error.message });
      return NEVER;
    }
  }),
  v.metadata({
    arg: 'BUS/DEVICE/FUNCTION',
    help: 'the function of the host, hexadecimal; also DEVICE/FUNCTION (bus 0), and DOMAIN:BUS:DEVICE.FUNCTION as lspci -D',
  }),
);

export const PassthruOptions = v.strictObject({
  /** As `0000:02:00.0`. */
  physical: hostAddress,
  keepGsi: flag('keep_gsi', 'give the guest an INTx pin although the function has MSI or MSI-X'),
  noReset: flag('no_reset', 'no reset before the function is handed over'),
  d3hotReset: flag('d3hot_reset', 'reset by power state D3hot and back'),
  vmsixOnMsiBar: v.optional(
    v.pipe(
      integer({ max: MAX_BAR }),
      v.metadata({
        arg: 'vmsix_on_msi,BAR',
        help: 'the hypervisor shows MSI-X for MSI, its table in this unused BAR, 0 to 5',
        named: true,
      }),
    ),
  ),
  enablePtm: flag('enable_ptm', 'behind a virtual root port, for Precision Time Measurement'),
  romFile: path('romfile=FILE', 'expansion ROM of a display controller'),
  irq: v.optional(
    v.pipe(
      integer({ max: MAX_IRQ }),
      v.metadata({
        arg: 'irq=N',
        help: 'line of the physical INTx pin (default: its Interrupt Line register)',
        named: true,
      }),
    ),
  ),
  dsdtFile: path('dsdt=FILE', 'what the guest is told of it by ACPI: ASL source or AML'),
  managed: flag(
    'managed',
    'bind the function to pci-stub (on KVM: vfio-pci) at the start and back to its driver at the end',
  ),
  /** What was said of options that do nothing. */
  notes: v.optional(v.pipe(v.array(v.string()), v.metadata({ isHidden: true })), []),
});
export type PassthruOptions = v.InferOutput<typeof PassthruOptions>;

const flags = {
  keep_gsi: 'keepGsi',
  no_reset: 'noReset',
  d3hot_reset: 'd3hotReset',
  enable_ptm: 'enablePtm',
} as const;

/** Options of earlier releases: what became of them. */
const past: Readonly<Record<string, string>> = {
  gpu: 'graphics are recognised by the device',
  igd: 'graphics are recognised by the device',
  reset: 'functions are reset anyway',
  'igd-vf': 'virtual functions need no option',
  gpio_rst: 'resets by GPIO are gone',
};

/**
 * Everything behind `passthru,`.
 * Compat: an option is known by its beginning (`keep_gsi2`), and an unknown one is a warning.
 * @throws ConfigError
 */
export function parsePassthruText(text: string): Record<string, unknown> {
  const [physical, ...words] = text.split(',');
  if (physical === undefined || physical.trim() === '') {
    throw new ConfigError('which function of the host is missing', {
      hint: 'write BUS/DEVICE/FUNCTION in hexadecimal; acrn-dm --list-passthru lists them',
    });
  }
  // Said here and not by the schema, for its hint.
  const out: Record<string, unknown> = { physical: formatHostAddress(parseHostAddress(physical)) };
  const notes: string[] = [];
  for (let word = words.shift(); word !== undefined; word = words.shift()) {
    const flagName = (Object.keys(flags) as (keyof typeof flags)[]).find((name) => word?.startsWith(name));
    if (flagName !== undefined) {
      out[flags[flagName]] = true;
      if (word !== flagName) notes.push(`option "${word}" is read as ${flagName}`);
    } else if (word === 'managed') {
      out['managed'] = true;
    } else if (word.startsWith('vmsix_on_msi')) {
      out['vmsixOnMsiBar'] = barNumber(words.shift());
    } else if (word.startsWith('romfile=')) {
      out['romFile'] = word.slice('romfile='.length);
    } else if (word.startsWith('dsdt=')) {
      out['dsdtFile'] = word.slice('dsdt='.length);
    } else if (word.startsWith('irq=')) {
      out['irq'] = irqNumber(word.slice('irq='.length));
    } else if (Object.hasOwn(past, word)) {
      if (word === 'gpio_rst' && /^\d+$/.test(words[0] ?? '')) words.shift();
      notes.push(`option ${word} is ignored: ${past[word]}`);
    } else if (word !== '') {
      notes.push(`unknown option "${word}" is ignored`);
    }
  }
  if (notes.length > 0) out['notes'] = notes;
  return out;
}

function barNumber(text: string | undefined): string {
  if (text === undefined || !/^\d$/.test(text) || Number(text) > MAX_BAR) {
    throw new ConfigError(`vmsix_on_msi: "${text ?? ''}" is not a BAR from 0 to ${MAX_BAR}`, {
      hint: 'write vmsix_on_msi,BAR with a BAR the function does not use',
    });
  }
  return text;
}

function irqNumber(text: string): string {
  if (!/^\d{1,5}$/.test(text) || Number(text) > MAX_IRQ) {
    throw new ConfigError(`irq: "${text}" is not an interrupt line from 0 to ${MAX_IRQ}`);
  }
  return text;
}

export const passthruInfo = describePciDriver({
  name: 'passthru',
  summary: 'PCI function of the host',
  options: PassthruOptions,
  parseText: parsePassthruText,
  claimsHostPorts: true,
  checkHypervisor: (offers) => {
    if (offers.givesHostFunctions === true) return;
    throw new ConfigError('this hypervisor cannot give a guest functions of the host', {
      exitCode: ExitCode.Unavailable,
      hint: 'use --hypervisor kvm, or acrn on its Service VM',
    });
  },
});

export const igdLpcInfo = describePciDriver({
  name: 'igd-lpc',
  summary: 'ids of the LPC bridge of the host, for passed-through graphics',
  options: v.strictObject({}),
  isSingle: true,
});
