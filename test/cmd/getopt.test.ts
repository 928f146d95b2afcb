import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { getoptLong } from '../../cmd/getopt.ts';
import type { GetoptOption } from '../../config/option-table.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';

const options = [
  { name: 'memsize', short: 'm', arg: 'required', rank: 0 },
  { name: 'version', short: 'v', arg: 'none', rank: 0 },
  { name: 'virtio_poll', arg: 'required', rank: 0 },
  { name: 'mptgen', short: 'Y', arg: 'none', rank: 0 },
  { name: 'debugexit', arg: 'none', rank: 0 },
  { name: 'debug', arg: 'none', rank: 1 },
  { name: 'dry-run', arg: 'optional', rank: 1 },
  { name: 'cpu_affinity', arg: 'required', rank: 0 },
  { name: 'ssram', arg: 'required', rank: 0, argPattern: /^L\d/ },
  { name: 'secret', arg: 'none' },
] as const satisfies readonly GetoptOption[];

/** Items as `--name=value`, `--name` or the positional itself. */
function parse(...argv: string[]): string[] {
  return [...getoptLong<GetoptOption>(argv, options)].map((item) => {
    if (item.kind === 'positional') return item.text;
    return item.value === undefined ? `--${item.option.name}` : `--${item.option.name}=${item.value}`;
  });
}

describe('long options', () => {
  test('take their value behind = or as the next word', () => {
    expect(parse('--memsize=256M', '--memsize', '1g')).toEqual(['--memsize=256M', '--memsize=1g']);
  });
  test('keep everything behind the first =', () => {
    expect(parse('--memsize=a=b')).toEqual(['--memsize=a=b']);
    expect(parse('--memsize=')).toEqual(['--memsize=']);
  });
  test('may be abbreviated while only one name fits', () => {
    expect(parse('--mem', '1g', '--vi=5', '--ver')).toEqual(['--memsize=1g', '--virtio_poll=5', '--version']);
  });
  test('ambiguous prefix names the candidates', () => {
    expect(() => parse('--v')).toThrow('option --v is ambiguous: --version, --virtio_poll');
  });
  test('a full name wins over a longer one that starts with it', () => {
    expect(parse('--debug')).toEqual(['--debug']);
  });
  test('a prefix of an old option is not made ambiguous by a new one', () => {
    expect(parse('--deb')).toEqual(['--debugexit']);
  });
  test('an option without rank has no abbreviation', () => {
    expect(parse('--secret')).toEqual(['--secret']);
    expect(() => parse('--secre')).toThrow(ConfigError);
  });
  test('a flag refuses a value', () => {
    expect(() => parse('--version=2')).toThrow('option --version takes no value, got "2"');
  });
  test('a missing value is named', () => {
    expect(() => parse('--memsize')).toThrow('option --memsize needs a value');
  });
  test('a value may look like an option', () => {
    expect(parse('--memsize', '-v')).toEqual(['--memsize=-v']);
  });
  test('an optional value counts with = only', () => {
    expect(parse('--dry-run', 'json', '--dry-run=json')).toEqual(['--dry-run', 'json', '--dry-run=json']);
  });
  test('a value that does not look like one is left for what follows', () => {
    expect(parse('--ssram', '--version', '--ssram', 'L2,x')).toEqual(['--ssram', '--version', '--ssram=L2,x']);
    expect(parse('--ssram')).toEqual(['--ssram']);
  });
  test.each([
    ['--memsise', 'did you mean --memsize?'],
    ['--cpu-affinity', 'did you mean --cpu_affinity?'],
    ['--memory', 'did you mean --memsize?'],
    ['--cpus', 'did you mean --cpu_affinity?'],
    ['--frobnicate', 'acrn-dm --help lists all options'],
  ])('unknown %s: %s', (word, hint) => {
    expect(() => parse(word)).toThrow(expect.objectContaining({ message: `unknown option ${word}`, hint }));
  });
});

describe('short options', () => {
  test('take their value attached or as the next word', () => {
    expect(parse('-m256M', '-m', '1g')).toEqual(['--memsize=256M', '--memsize=1g']);
  });
  test('flags cluster, the last may take the value', () => {
    expect(parse('-Yvm1g')).toEqual(['--mptgen', '--version', '--memsize=1g']);
    expect(parse('-Ym', '1g')).toEqual(['--mptgen', '--memsize=1g']);
  });
  test('unknown letter is named with its cluster', () => {
    expect(() => parse('-YZ')).toThrow('unknown option -Z in "-YZ"');
  });
  test('a long name behind one dash is recognised', () => {
    expect(() => parse('-cpu_affinity', '0')).toThrow(
      expect.objectContaining({ hint: 'did you mean --cpu_affinity?' }),
    );
  });
});

describe('words that are no options', () => {
  test('may stand anywhere', () => {
    expect(parse('vm1', '-m', '1g', 'x')).toEqual(['vm1', '--memsize=1g', 'x']);
  });
  test('-- ends the options', () => {
    expect(parse('-Y', '--', '-m', '--version')).toEqual(['--mptgen', '-m', '--version']);
  });
  test('a single dash is one', () => {
    expect(parse('-')).toEqual(['-']);
  });
});

test('an option left of a mistake is delivered first', () => {
  const items = getoptLong<GetoptOption>(['-v', '--frobnicate'], options);
  expect(items.next().value).toMatchObject({ kind: 'option', spelled: '-v' });
  expect(() => items.next()).toThrow(ConfigError);
});

test('any words end in items or a ConfigError', () => {
  const word = fc.oneof(
    fc.string(),
    fc.constantFrom('--', '-', '--=', '-m', '-m=', '--memsize', '--m', '--mem=', '-Yv', '--ssram', '-\u{1f600}'),
    fc.string().map((s) => `--${s}`),
    fc.string().map((s) => `-${s}`),
  );
  fc.assert(
    fc.property(fc.array(word, { maxLength: 8 }), (argv) => {
      try {
        const items = [...getoptLong<GetoptOption>(argv, options)];
        // Every item has used up at least one word, but for clusters, which have at most their letters.
        expect(items.length).toBeLessThanOrEqual(argv.join('').length + argv.length);
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
      }
    }),
  );
});
