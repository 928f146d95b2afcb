import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import * as values from '../../config/option-values.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';
import { parseSocketPath } from '../../devicemodel/core/options.ts';
import { GiB, MiB } from '../../devicemodel/core/units.ts';
import { platformDrivers } from '../../devicemodel/hw/registry.ts';

const silent = () => {};
const withHint = (hint: string) => expect.objectContaining({ hint: expect.stringContaining(hint) });

/** Notices a parser gives, by level and text. */
function notices(parse: (notify: values.Notify) => unknown): string[] {
  const said: string[] = [];
  parse((n) => void said.push(`${n.level}: ${n.text}`));
  return said;
}

describe('memsize', () => {
  test.each([
    ['256M', 256 * MiB],
    ['128m', 128 * MiB],
    ['1G', GiB],
    ['2050M', 2050 * MiB],
    ['262144k', 256 * MiB],
    ['262144K', 256 * MiB],
    ['4g', 4 * GiB],
    ['512MB', 512 * MiB],
    ['512MiB', 512 * MiB],
    ['0x100M', 256 * MiB],
    [' 256M', 256 * MiB],
  ])('%s', (text, bytes) => {
    expect(values.parseMemsize(text)).toBe(bytes);
  });
  test.each([
    ['a plain number of bytes', '268435456', 'write 256m'],
    ['a plain number that can only be MiB', '512', 'write 512m'],
    ['a plain number that is neither', '1', 'as in 512m'],
    ['the unit b', '268435456b', 'write 256m'],
    ['an odd number of MiB', '129M', 'write 128m or 130m'],
    ['a fraction', '1.5G', 'whole number'],
    ['another unit', '1T', 'k, m and g'],
    ['text', 'lots', 'whole number'],
    ['nothing', '', 'whole number'],
    ['a sign', '-256M', 'whole number'],
    ['an octal-looking number', '0400M', 'whole number'],
  ])('refuses %s and says what to write', (_, text, hint) => {
    expect(() => values.parseMemsize(text)).toThrow(withHint(hint));
  });
  test.each(['64M', '0m', '131071k', '127M'])('refuses %s: a VM has at least 128 MiB', (text) => {
    expect(() => values.parseMemsize(text)).toThrow('128 MiB');
  });
  test('refuses what would run into the 64-bit PCI window', () => {
    // 2 GiB low, and from 4 GiB up to 256 GiB where the window starts.
    expect(values.parseMemsize('254g')).toBe(254 * GiB);
    expect(() => values.parseMemsize('256g')).toThrow(ConfigError);
    expect(() => values.parseMemsize(`${'9'.repeat(400)}g`)).toThrow(ConfigError);
  });
});

describe('cpu_affinity', () => {
  test('keeps the order', () => {
    expect(values.parseCpuAffinity('4,0,2', silent)).toEqual([4, 0, 2]);
  });
  test('takes a comma at the end', () => {
    expect(values.parseCpuAffinity('0,1,', silent)).toEqual([0, 1]);
  });
  test('an id twice counts once, with a warning', () => {
    expect(values.parseCpuAffinity('0,0,2', silent)).toEqual([0, 2]);
    expect(notices((n) => values.parseCpuAffinity('0,0,2', n))).toEqual([
      'warn: local APIC id 0 is given twice, it counts once',
    ]);
  });
  test('goes on from an earlier list', () => {
    expect(values.parseCpuAffinity('2,0', silent, [4])).toEqual([4, 2, 0]);
    expect(values.parseCpuAffinity('4', silent, [4])).toEqual([4]);
  });
  test('a range, as libvirt writes it', () => {
    expect(values.parseCpuAffinity('1-3,5', silent)).toEqual([1, 2, 3, 5]);
    expect(values.parseCpuAffinity('7-7', silent)).toEqual([7]);
  });
  test.each(['', ',', 'abc', '0,abc', '0, 1', '1x', '-1', '0x1', '3-1', '1-', '1-2-3', '0-999999999'])(
    'refuses "%s" instead of dropping CPUs',
    (text) => {
      expect(() => values.parseCpuAffinity(text, silent)).toThrow(ConfigError);
    },
  );
});

describe('hypervisor', () => {
  test.each(['auto', 'acrn', 'kvm', 'soft'] as const)('%s', (name) => {
    expect(values.parseHypervisor(name)).toBe(name);
  });
  test('guesses', () => {
    expect(() => values.parseHypervisor('acnr')).toThrow(withHint('did you mean acrn?'));
  });
});

describe('bootargs', () => {
  test('2047 bytes are possible, 2048 are not', () => {
    expect(values.parseBootargs('w'.repeat(2047))).toHaveLength(2047);
    expect(() => values.parseBootargs('z'.repeat(2048))).toThrow('2048 bytes');
  });
  test('bytes count, not characters', () => {
    expect(() => values.parseBootargs('é'.repeat(1024))).toThrow('2048 bytes');
  });
});

describe('ovmf', () => {
  test.each([
    ['f.fd', { form: 'single', path: 'f.fd', writeBack: false }],
    ['w,f.fd', { form: 'single', path: 'f.fd', writeBack: true }],
    ['f.fd,w', { form: 'single', path: 'f.fd', writeBack: true }],
    ['code=c,vars=v', { form: 'split', codePath: 'c', varsPath: 'v', writeBack: false }],
    ['w,vars=v,code=c', { form: 'split', codePath: 'c', varsPath: 'v', writeBack: true }],
  ])('%s', (text, image) => {
    expect(values.parseOvmf(text)).toEqual(image);
  });
  test.each([
    ['code=c', 'vars=FILE is missing'],
    ['vars=v', 'code=FILE is missing'],
    ['w', 'the image is missing'],
    ['', 'empty'],
    ['a,b', 'two images'],
    ['a,code=c,vars=v', 'has an image and a code= or vars= file'],
    ['code=a,code=b,vars=v', 'two code= files'],
    [`${'d/'.repeat(600)}f`, 'longer than 1023 bytes'],
  ])('refuses %s', (text, message) => {
    expect(() => values.parseOvmf(text)).toThrow(message);
  });
});

// Mutation: take each for the path of a socket, and `OFF` listens in the folder one is in.
test.each(['OFF', 'on', 'Off', 'no'])('--api-socket %s is no path', (text) => {
  expect(() => values.parseApiSocket(text)).toThrow(
    expect.objectContaining({
      message: `"${text}" is neither off nor the path of a socket`,
      hint: `write off, or ./${text}`,
    }),
  );
  expect(values.parseApiSocket(`./${text}`)).toEqual({ kind: 'path', path: `./${text}` });
});

describe('logger_setting', () => {
  test('several sinks', () => {
    expect(values.parseLoggerSetting('console,level=4;kmsg,level=3;disk,level=5', silent)).toEqual([
      { sink: 'console', level: 4 },
      { sink: 'kmsg', level: 3 },
      { sink: 'disk', level: 5 },
    ]);
  });
  test('a level beyond 5 is taken as 5, with a warning', () => {
    expect(values.parseLoggerSetting('kmsg,level=6', silent)).toEqual([{ sink: 'kmsg', level: 5 }]);
    expect(notices((n) => values.parseLoggerSetting('kmsg,level=6', n))).toHaveLength(1);
  });
  test('level 0 silences a sink', () => {
    expect(values.parseLoggerSetting('console,level=0', silent)).toEqual([{ sink: 'console', level: 0 }]);
  });
  test('quotes around everything are dropped', () => {
    expect(values.parseLoggerSetting('"kmsg,level=3"', silent)).toEqual([{ sink: 'kmsg', level: 3 }]);
  });
  test('the last setting of a sink counts', () => {
    expect(values.parseLoggerSetting('kmsg,level=1;kmsg,level=2;', silent)).toEqual([{ sink: 'kmsg', level: 2 }]);
  });
  test.each([
    ['console', 'level=N is missing in "console"'],
    ['console,', 'level=N is missing'],
    ['console,level=', 'level=N is missing'],
    ['console,level=x', 'level=N is missing'],
    ['console,level=-1', 'level=N is missing'],
    ['syslog,level=3', '"syslog" is not a log sink'],
    ['', 'no log sink'],
    [';', 'no log sink'],
  ])('refuses "%s"', (text, message) => {
    expect(() => values.parseLoggerSetting(text, silent)).toThrow(message);
  });
  test('guesses the sink', () => {
    expect(() => values.parseLoggerSetting('konsole,level=3', silent)).toThrow(withHint('did you mean console?'));
  });
});

describe('intr_monitor', () => {
  test('four numbers with their units', () => {
    expect(values.parseIntrMonitor('10000,10,1,100')).toEqual({
      thresholdPerSecond: 10000,
      probePeriodS: 10,
      delayMs: 1,
      delayDurationMs: 100,
    });
  });
  test('blanks before a number do not matter', () => {
    expect(values.parseIntrMonitor('100, 1,\t5, 20')).toEqual(values.parseIntrMonitor('100,1,5,20'));
  });
  test.each(['', '10000', '10000,10,1', '10000,10,1,100,5', '10000 10 1 100', 'a,b,c,d', '0,10,1,100', '100,0,1,100'])(
    'refuses "%s"',
    (text) => {
      expect(() => values.parseIntrMonitor(text)).toThrow(ConfigError);
    },
  );
});

test.each([
  ['1', 1],
  ['1000000', 1_000_000],
  ['0x3e8', 1000],
  ['10000000', 10_000_000],
])('virtio_poll %s', (text, ns) => {
  expect(values.parseVirtioPoll(text)).toBe(ns);
});
test.each(['0', '10000001', '', 'fast', '1ms', '-1'])('virtio_poll refuses "%s"', (text) => {
  expect(() => values.parseVirtioPoll(text)).toThrow('1 to 10000000 ns');
});

test('a socket path has at most the 107 bytes of sockaddr_un', () => {
  expect(parseSocketPath(`/${'x'.repeat(106)}`)).toHaveLength(107);
  expect(() => parseSocketPath(`/${'x'.repeat(107)}`)).toThrow('108 bytes');
});

test.each(['ioc', 'power_button', 'uart', 'uart,allow_trigger_s5'])('pm_notify_channel %s', (text) => {
  expect(values.parsePmNotifyChannel(text)).toBe(text);
});
test.each(['bogus', 'uartx', 'uart,x', ''])('pm_notify_channel refuses "%s"', (text) => {
  expect(() => values.parsePmNotifyChannel(text)).toThrow(ConfigError);
});

test('a VM name has 1 to 15 bytes', () => {
  expect(values.parseVmName('abcdefghijklmno')).toBe('abcdefghijklmno');
  expect(() => values.parseVmName('abcdefghijklmnop')).toThrow('16 bytes, at most 15');
  expect(() => values.parseVmName('ééééééééé')).toThrow('18 bytes');
  expect(() => values.parseVmName('')).toThrow('empty');
  expect(() => values.parseVmName('../vm')).toThrow('"/"');
  for (const name of ['.', '..']) expect(() => values.parseVmName(name)).toThrow('its folder would be another');
  for (const name of ['...', '.a', 'a.', '..a', '*', 'a b']) expect(values.parseVmName(name)).toBe(name);
});

test('any text ends in a value or a ConfigError', () => {
  const parsers: ReadonlyArray<(text: string) => unknown> = [
    values.parseMemsize,
    (text) => values.parseCpuAffinity(text, silent),
    values.parseHypervisor,
    values.parseBootargs,
    values.parsePath,
    parseSocketPath,
    values.parseOvmf,
    (text) => values.parseLoggerSetting(text, silent),
    values.parseIntrMonitor,
    values.parseVirtioPoll,
    ...platformDrivers.map((driver) => (text: string) => driver.parseText(text)),
    values.parsePmNotifyChannel,
    values.parseVmName,
  ];
  const crumbs = fc.array(
    fc.constantFrom(
      '0',
      '1',
      '9',
      ',',
      ';',
      '=',
      'L2',
      'vcpu',
      'size',
      'level',
      'console',
      'M',
      'k',
      '0x',
      'w',
      'code',
      'é',
    ),
    { maxLength: 12 },
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.string(),
        crumbs.map((c) => c.join('')),
      ),
      (text) => {
        for (const parse of parsers) {
          try {
            parse(text);
          } catch (error) {
            expect(error).toBeInstanceOf(ConfigError);
          }
        }
      },
    ),
  );
});

test('--pm_by_vuart is back end text', () => {
  expect(values.parsePmByVuart('pty,/run/acrn/vuart-vm1')).toBe('pty:/run/acrn/vuart-vm1');
  expect(values.parsePmByVuart('TTY,/dev/ttyS1')).toBe('tty:/dev/ttyS1');
  for (const text of ['', 'pty', 'pty,', 'com,/dev/ttyS1'])
    expect(() => values.parsePmByVuart(text)).toThrow(ConfigError);
});
