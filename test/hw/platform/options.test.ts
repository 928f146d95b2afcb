/** Options of devices of the board: what they mean, and one clear line for what means nothing. */
import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { checkOptions } from '../../../devicemodel/core/options.ts';
import { KiB, MiB } from '../../../devicemodel/core/units.ts';
import { platformDriver } from '../../../devicemodel/hw/registry.ts';

const parse = (name: string, text: string): unknown => {
  const driver = platformDriver(name);
  return checkOptions(driver.options, driver.parseText(text));
};

describe('mmiodev_pt', () => {
  test('hexadecimal, with or without 0x', () => {
    expect(parse('mmiodev_pt', '0xFED40000,0x00005000')).toEqual({ base: 0xfed40000, sizeBytes: 0x5000 });
    expect(parse('mmiodev_pt', 'fe000000,4000')).toEqual({ base: 0xfe000000, sizeBytes: 0x4000 });
  });
  test.each([
    '',
    '0xfe000000',
    '0xfe000000,',
    '0xfe000000,0',
    '0xfe000010,0x1000',
    '0xfe000000,0x800',
    '0xfe000000,0x1000,0x2000',
    '0xc0000000,0xe001000',
    '0,0x1000',
    'x,y',
  ])('refuses "%s"', (text) => {
    expect(() => parse('mmiodev_pt', text)).toThrow(ConfigError);
  });
});

describe('vtpm2', () => {
  test('is a socket path', () => {
    expect(parse('vtpm2', 'sock_path=/run/tpm.sock')).toEqual({ socketPath: '/run/tpm.sock' });
    // As C, which reads suboptions.
    expect(parse('vtpm2', 'sock_path=/run/tpm.sock,foo')).toEqual({ socketPath: '/run/tpm.sock' });
  });
  test.each(['', '/run/tpm.sock', 'sock_path=', 'path=/x', `sock_path=/${'x'.repeat(107)}`])('refuses "%s"', (text) => {
    expect(() => parse('vtpm2', text)).toThrow(ConfigError);
  });
});

describe('ssram', () => {
  test('regions', () => {
    expect(parse('ssram', 'L2,vcpu=0,1,size=4K;l3,vcpu=all,size=2M')).toEqual({
      regions: [
        { cacheLevel: 2, vcpus: [0, 1], sizeBytes: 4 * KiB },
        { cacheLevel: 3, vcpus: 'all', sizeBytes: 2 * MiB },
      ],
    });
  });
  test.each([
    'L1,vcpu=0,size=4K',
    'L2',
    'L2,size=4K',
    'L2,vcpu=,size=4K',
    'L2,vcpu=0,size=4',
    'L2,vcpu=0,size=3K',
    'L3,vcpu=0,size=9M',
    'L2,vcpu=0,size=8M;L3,vcpu=0,size=4K',
  ])('refuses "%s"', (text) => {
    expect(() => parse('ssram', text)).toThrow(ConfigError);
  });
});
