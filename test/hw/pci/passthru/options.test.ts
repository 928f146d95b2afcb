import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../devicemodel/core/errors.ts';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { parseHostAddress, shortHostAddress } from '../../../../devicemodel/hw/pci/passthru/address.ts';
import { PassthruOptions, parsePassthruText } from '../../../../devicemodel/hw/pci/passthru/options.ts';

const parse = (text: string) => checkOptions(PassthruOptions, parsePassthruText(text));

describe('the address of a function', () => {
  test.each([
    ['02/00/0', '0000:02:00.0'],
    ['a/8/0', '0000:0a:08.0'],
    ['0a:08.1', '0000:0a:08.1'],
    ['1f/3', '0000:00:1f.3'],
    ['1f', '0000:00:1f.0'],
    ['1f.3', '0000:00:1f.3'],
    ['1f', '0000:00:1f.0'],
    ['0000:00:02.0', '0000:00:02.0'],
    ['10000:e1:00.0', '10000:e1:00.0'],
    ['0x2/0x1f/7', '0000:02:1f.7'],
  ])('%s is %s', (text, physical) => {
    expect(parse(text).physical).toBe(physical);
  });

  test.each(['', '20', '0a/08/9', '0a/20/0', '100/0/0', '1/2/3/4/5', '02-00-0', '02/00/', 'gg/0/0', '02/00/0x', '1/8'])(
    '"%s" is refused',
    (text) => {
      expect(() => parse(text)).toThrow(ConfigError);
    },
  );

  test('is shown without domain 0', () => {
    expect(shortHostAddress(parseHostAddress('00/1f/3'))).toBe('00:1f.3');
    expect(shortHostAddress(parseHostAddress('10000:e1:00.0'))).toBe('10000:e1:00.0');
  });
});

describe('options', () => {
  test('every one', () => {
    const text =
      '02/00/0,keep_gsi,no_reset,d3hot_reset,vmsix_on_msi,4,enable_ptm,romfile=/r.rom,irq=23,dsdt=/d.asl,managed';
    expect(parse(text)).toEqual({
      physical: '0000:02:00.0',
      keepGsi: true,
      noReset: true,
      d3hotReset: true,
      vmsixOnMsiBar: 4,
      enablePtm: true,
      romFile: '/r.rom',
      irq: 23,
      dsdtFile: '/d.asl',
      managed: true,
      notes: [],
    });
  });

  test.each([
    ['gpu', /^option gpu is ignored/],
    ['igd', /^option igd is ignored/],
    ['reset', /^option reset is ignored/],
    ['igd-vf', /^option igd-vf is ignored/],
    ['gpio_rst,12', /^option gpio_rst is ignored/],
    ['keep_gsi2', /^option "keep_gsi2" is read as keep_gsi$/],
    ['foo', /^unknown option "foo" is ignored$/],
  ])('"%s" is accepted with one word', (option, note) => {
    const { notes } = parse(`0/2/0,${option}`);
    expect(notes).toHaveLength(1);
    expect(notes[0]).toMatch(note);
  });

  test.each([
    'vmsix_on_msi',
    'vmsix_on_msi,x',
    'vmsix_on_msi,6',
    'vmsix_on_msi,7',
    'vmsix_on_msi,-2',
    'irq=257',
    'irq=-1',
    'irq=x',
    'irq=',
    'romfile=',
    `romfile=${'r'.repeat(256)}`,
    `dsdt=${'d'.repeat(256)}`,
  ])('"%s" is refused', (option) => {
    expect(() => parse(`02/00/0,${option}`)).toThrow(ConfigError);
  });

  test('a path of 255 bytes and line 256 are taken', () => {
    expect(parse(`02/00/0,romfile=${'r'.repeat(255)},irq=256`)).toMatchObject({ irq: 256 });
  });
});
