import { closeSync, existsSync, openSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { Log } from '../../devicemodel/core/log.ts';
import { ConsoleSink, createSinks, DiskSink, KmsgSink } from '../../devicemodel/core/log-sinks.ts';
import { scratchDirectory, TerminalWindow } from '../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

function scratch() {
  const directory = scratchDirectory();
  cleanUp.push(() => directory.remove());
  return directory;
}

function toFile() {
  const path = scratch().file('console');
  const fd = openSync(path, 'w');
  cleanUp.push(() => closeSync(fd));
  return { fd, text: () => readFileSync(path, 'utf8') };
}

describe('console', () => {
  test('one line each, with the level where it matters', () => {
    const { fd, text } = toFile();
    const sink = new ConsoleSink(5, { consoleFd: fd });
    sink.write('error', 'no such file');
    sink.write('info', 'VM started');
    expect(text()).toBe('acrn-dm: error: no such file\nacrn-dm: VM started\n');
  });

  test('as JSON, one object a line with its time, whatever is in it', () => {
    const { fd, text } = toFile();
    const sink = new ConsoleSink(5, { consoleFd: fd, format: 'json' });
    sink.write('warn', 'a "name"\n\x1b[2J');
    sink.write('info', 'b');
    const lines = text()
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as Record<string, string>);
    expect(lines).toMatchObject([
      { level: 'warn', message: 'a "name"\n\x1b[2J' },
      { level: 'info', message: 'b' },
    ]);
    expect(Math.abs(Date.now() - Date.parse(lines[0]?.['time'] ?? ''))).toBeLessThan(60_000);
  });

  test('returns the carriage while the terminal is raw, and only then', () => {
    const window = new TerminalWindow();
    cleanUp.push(() => window.close());
    let isRaw = false;
    const sink = new ConsoleSink(5, { consoleFd: window.slaveFd, isRaw: () => isRaw });
    sink.write('info', 'a');
    isRaw = true;
    sink.write('info', 'b');
    expect(window.seen).toBe('acrn-dm: a\n\racrn-dm: b\r\n');
  });

  test('control characters of a guest cannot forge lines or move the cursor', () => {
    const { fd, text } = toFile();
    new ConsoleSink(5, { consoleFd: fd }).write('info', 'name \x1b[2J\r\x07\x9b');
    expect(text()).toBe('acrn-dm: name \\x1b[2J\\x0d\\x07\\x9b\n');
  });

  test('never throws, whatever the line and the descriptor', () => {
    const sinks = [
      new ConsoleSink(5, { consoleFd: 9999 }),
      new KmsgSink(5, { kmsgPath: '/no/such/file' }),
      new DiskSink(5, 'vm', { diskDirectory: '/dev/null/log' }),
    ];
    fc.assert(
      fc.property(fc.string(), (line) => {
        for (const sink of sinks) sink.write('error', line);
      }),
    );
  });
});

describe('kmsg', () => {
  test('one record a line with the prefix, cut to what the kernel takes', () => {
    const path = scratch().file('kmsg');
    writeFileSync(path, '');
    const sink = new KmsgSink(5, { kmsgPath: path });
    sink.write('info', `two\nlines`);
    sink.write('info', 'x'.repeat(5000));
    sink.close();
    const records = readFileSync(path, 'utf8').split('\n');
    expect(records.slice(0, 2)).toEqual(['acrn_dm: two', 'acrn_dm: lines']);
    expect(records[2]?.length).toBeLessThan(976); // PRINTKRB_RECORD_MAX less the kernel's own prefix
  });
});

describe('disk', () => {
  const sizeOf = (path: string) => statSync(path).size;

  test('a line has the date and the uptime; a new run goes on in the newest file', () => {
    const directory = scratch();
    for (const word of ['first', 'second']) {
      const sink = new DiskSink(5, 'vm1', { diskDirectory: directory.file('log') });
      sink.write('info', word);
      sink.close();
    }
    const text = readFileSync(directory.file('log/vm1_log_0'), 'utf8');
    expect(text).toMatch(/\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\]\[ *\d+\.\d{6}\] first\n/);
    expect(text.match(/new vm instance/g)).toHaveLength(2);
  });

  test('eight files of two MiB are kept, over the wrap of the 16-bit number', () => {
    const directory = scratch();
    writeFileSync(directory.file('vm1_log_65534'), 'old');
    writeFileSync(directory.file('vm1_log_65533'), 'older');
    writeFileSync(directory.file('vm11_log_9'), "another VM's");
    const sink = new DiskSink(5, 'vm1', { diskDirectory: directory.path });
    const line = 'x'.repeat(3900);
    for (let bytes = 0; bytes < 21 * 1024 * 1024; bytes += line.length) sink.write('info', line);
    sink.close();
    const numbers = readdirSync(directory.path)
      .filter((name) => name.startsWith('vm1_'))
      .map((name) => Number(name.slice('vm1_log_'.length)));
    // Ten files were filled, 65534 and on; the last one is number 8 after 65534 + 10 = 8 (mod 65536).
    expect(numbers.sort((a, b) => a - b)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    for (const number of numbers)
      expect(sizeOf(directory.file(`vm1_log_${number}`))).toBeLessThan(2 * 1024 * 1024 + 8192);
    expect(existsSync(directory.file('vm11_log_9'))).toBe(true);
  });

  test('a sink that cannot write is given up with one line on the console', () => {
    const { fd, text } = toFile();
    const settings = [{ sink: 'disk', level: 5 }] as const;
    const log = new Log(createSinks(settings, 'vm1', { consoleFd: fd, diskDirectory: '/dev/null/log' }));
    log.debug('one');
    log.debug('two');
    expect(text().match(/disk log given up/g)).toHaveLength(1);
  });
});

describe('settings', () => {
  test('the console is there at level 4 unless named', () => {
    expect(createSinks([], 'vm').map((s) => s.maxLevel)).toEqual([4]);
    expect(createSinks([{ sink: 'console', level: 2 }], 'vm').map((s) => s.maxLevel)).toEqual([2]);
  });

  test('each level reaches the sinks that asked for it', () => {
    const directory = scratch();
    const { fd, text } = toFile();
    const settings = [
      { sink: 'console', level: 1 },
      { sink: 'disk', level: 5 },
    ] as const;
    const log = new Log(createSinks(settings, 'a/b', { consoleFd: fd, diskDirectory: directory.path }));
    log.error('bad');
    log.debug('detail');
    expect(text()).toBe('acrn-dm: error: bad\n');
    expect(readFileSync(directory.file('a_b_log_0'), 'utf8')).toMatch(/bad(.|\n)*detail/);
  });
});
