/**
 * getopt_long(3) as glibc has it, since launch scripts rely on its manners: unambiguous prefixes of long names,
 * `--opt=value` and `--opt value`, `-m256M`, clustered flags, options after the VM name, `--`.
 */
import type { GetoptOption } from '../config/option-table.ts';
import { didYouMean } from '../config/suggest.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';

/** One item of the command line, in order. */
export type GetoptItem<O> =
  | { readonly kind: 'option'; readonly option: O; readonly spelled: string; readonly value: string | undefined }
  | { readonly kind: 'positional'; readonly text: string };

/**
 * Walk over `argv` (without program name). A generator, so that `-h` is served before a mistake further right is found,
 * as the C program does.
 * @throws ConfigError on an unknown or ambiguous option, a missing or a superfluous value.
 */
export function* getoptLong<O extends GetoptOption>(
  argv: readonly string[],
  options: readonly O[],
): Generator<GetoptItem<O>, void, undefined> {
  let next = 0;
  /** The value of a `required` option that was not attached to it. */
  const takeValue = (option: O, spelled: string): string | undefined => {
    const word = argv[next];
    if (option.argPattern !== undefined && (word === undefined || !option.argPattern.test(word))) return undefined;
    if (word === undefined) throw new ConfigError(`option ${spelled} needs a value`, { hint: seeHelp });
    next++;
    return word;
  };

  while (next < argv.length) {
    const word = argv[next++] as string;
    if (word === '--') {
      for (const text of argv.slice(next)) yield { kind: 'positional', text };
      return;
    }
    if (word.startsWith('--')) {
      const equals = word.indexOf('=');
      const spelled = equals < 0 ? word : word.slice(0, equals);
      const attached = equals < 0 ? undefined : word.slice(equals + 1);
      const option = findLong(spelled.slice(2), options);
      if (attached !== undefined && option.arg === 'none') {
        throw new ConfigError(`option --${option.name} takes no value, got "${attached}"`);
      }
      const value = option.arg === 'required' && attached === undefined ? takeValue(option, spelled) : attached;
      yield { kind: 'option', option, spelled: `--${option.name}`, value };
    } else if (word.startsWith('-') && word !== '-') {
      yield* cluster(word, options, takeValue);
    } else {
      yield { kind: 'positional', text: word };
    }
  }
}

const seeHelp = 'acrn-dm --help lists all options';

/** `-Yv`, `-m256M`, `-m 256M`. */
function* cluster<O extends GetoptOption>(
  word: string,
  options: readonly O[],
  takeValue: (option: O, spelled: string) => string | undefined,
): Generator<GetoptItem<O>, void, undefined> {
  const letters = [...word];
  for (let i = 1; i < letters.length; i++) {
    const letter = letters[i] as string;
    const option = options.find((o) => o.short === letter);
    const spelled = `-${letter}`;
    if (option === undefined) {
      // `-memsize` is a long option with a dash missing far more often than a cluster of flags.
      const long = options.find((o) => o.name !== undefined && o.name === word.slice(1).split('=')[0]);
      const hint = long === undefined ? seeHelp : `did you mean --${long.name}?`;
      throw new ConfigError(`unknown option ${spelled}${word === spelled ? '' : ` in "${word}"`}`, { hint });
    }
    if (option.arg === 'none') {
      yield { kind: 'option', option, spelled, value: undefined };
      continue;
    }
    const rest = letters.slice(i + 1).join('');
    const value = rest !== '' ? rest : option.arg === 'required' ? takeValue(option, spelled) : undefined;
    yield { kind: 'option', option, spelled, value };
    return;
  }
}

/** What other programs call it. */
const OTHER_NAMES: Readonly<Record<string, string>> = {
  memory: 'memsize',
  ram: 'memsize',
  cpus: 'cpu_affinity',
  smp: 'cpu_affinity',
  vcpus: 'cpu_affinity',
  accel: 'hypervisor',
  initrd: 'ramdisk',
  initramfs: 'ramdisk',
  append: 'bootargs',
  cmdline: 'bootargs',
  firmware: 'ovmf',
  device: 'pci_slot',
  disk: 'pci_slot',
  drive: 'pci_slot',
  net: 'pci_slot',
  netdev: 'pci_slot',
  serial: 'lpc',
};

function findLong<O extends GetoptOption>(text: string, options: readonly O[]): O {
  const exact = options.find((o) => o.name === text);
  if (exact !== undefined) return exact;
  let candidates: O[] = [];
  let rank = Number.POSITIVE_INFINITY;
  for (const option of options) {
    if (option.rank === undefined || text === '' || !option.name?.startsWith(text)) continue;
    if (option.rank < rank) {
      rank = option.rank;
      candidates = [];
    }
    if (option.rank === rank) candidates.push(option);
  }
  if (candidates.length === 1) return candidates[0] as O;
  if (candidates.length > 1) {
    const names = candidates.map((o) => `--${o.name}`).join(', ');
    throw new ConfigError(`option --${text} is ambiguous: ${names}`);
  }
  const known = options.flatMap((o) => (o.name === undefined || o.rank === undefined ? [] : [o.name]));
  const other = Object.hasOwn(OTHER_NAMES, text) ? OTHER_NAMES[text] : undefined;
  // A hyphen for an underscore (--cpu-affinity) is the most common slip.
  const guess = known.find((name) => name === other) ?? didYouMean(text.replaceAll('-', '_'), known);
  throw new ConfigError(`unknown option --${text}`, {
    hint: guess === undefined ? seeHelp : `did you mean --${guess}?`,
  });
}
