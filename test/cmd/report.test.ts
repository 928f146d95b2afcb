import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { errorLines, exitCodeOf, fdSink, writeLines } from '../../cmd/report.ts';
import { BugError, ConfigError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';

describe('errorLines', () => {
  test('an error is one line, its hint another', () => {
    const error = new ConfigError('-m: 129M is not a multiple of 2 MiB', { hint: 'write 128m or 130m' });
    expect(errorLines(error)).toEqual(['acrn-dm: -m: 129M is not a multiple of 2 MiB', 'hint: write 128m or 130m']);
  });
  test('causes follow, each once', () => {
    const root = new HostError('open: ENOENT', 2, { hint: 'load the driver' });
    const error = new HostError('no hypervisor', 2, { cause: new Error('open: ENOENT', { cause: root }) });
    expect(errorLines(error)).toEqual(['acrn-dm: no hypervisor', 'cause: open: ENOENT', 'hint: load the driver']);
  });
  test('a cause that the message repeats is left out', () => {
    const error = new HostError('x: ENOENT', 2, { cause: new Error('ENOENT') });
    expect(errorLines(error)).toEqual(['acrn-dm: x: ENOENT']);
  });
  test('an errno of the file system is said once', () => {
    const cause = Object.assign(new Error("ENOENT: no such file or directory, open '/k'"), {
      code: 'ENOENT',
      path: '/k',
    });
    expect(errorLines(new HostError('-k: /k cannot be opened (ENOENT)', 2, { cause }))).toHaveLength(1);
    expect(errorLines(new HostError('-k cannot be opened (ENOENT)', 2, { cause }))).toHaveLength(2);
  });
  test('the outer hint wins', () => {
    const error = new ConfigError('outer', {
      hint: 'outer hint',
      cause: new ConfigError('inner', { hint: 'inner hint' }),
    });
    expect(errorLines(error).at(-1)).toBe('hint: outer hint');
  });
  test.each([
    ['a TypeError', new TypeError('x is undefined')],
    ['a BugError', new BugError('ranges overlap')],
    ['a thrown text', 'oops'],
    ['undefined', undefined],
    ['an object without toString', Object.create(null)],
  ])('%s is an internal error without stack', (_, error) => {
    const lines = errorLines(error);
    expect(lines[0]).toMatch(/^acrn-dm: internal error: ./);
    expect(lines.join('\n')).not.toMatch(/\n\s+at /);
    expect(exitCodeOf(error)).toBe(ExitCode.Software);
  });
  test.each([
    ["EMFILE: too many open files, open '/x'", /^hint: `ulimit -n`/],
    ['com1: socket /x: EMFILE: too many open files', /^hint: `ulimit -n`/],
    ['-k: kernel image /k cannot be opened: too many open files (EMFILE)', /^hint: `ulimit -n`/],
    ['eventfd: ENFILE: file table overflow', /^hint: the whole host/],
  ])('a limit of the host is named with what to do: %s', (message, hint) => {
    expect(errorLines(new HostError(message, 24)).at(-1)).toMatch(hint);
    expect(errorLines(new HostError(message, 24, { hint: 'a better one' })).at(-1)).toBe('hint: a better one');
  });
  test('with debug the stack is there', () => {
    expect(errorLines(new BugError('x'), { debug: true }).join('\n')).toMatch(/\n\s+at /);
  });
  test('failures of a teardown are told together', () => {
    const error = new AggregateError([new Error('a'), new Error('b')], 'some resources could not be released');
    expect(errorLines(error)[0]).toBe('acrn-dm: internal error: some resources could not be released; a; b');
  });
  test('text of the user cannot start a line or steer the terminal', () => {
    const [line] = errorLines(new ConfigError('-s 3,x\r\nacrn-dm: all is well\u001b[2J: unknown device'));
    expect(line).toBe('acrn-dm: -s 3,x acrn-dm: all is well?[2J: unknown device');
  });
  test('a line stays readable however long the value', () => {
    expect(errorLines(new ConfigError('x'.repeat(100_000)))[0]?.length).toBeLessThan(1000);
  });
  test('anything thrown becomes lines without line ends', () => {
    fc.assert(
      fc.property(
        fc.oneof(
          fc.anything(),
          fc.string().map((s) => new Error(s)),
        ),
        (error) => {
          for (const line of errorLines(error)) expect(line).not.toMatch(/[\r\n]/);
        },
      ),
    );
  });
});

describe('exitCodeOf', () => {
  test('an error carries its status', () => {
    expect(exitCodeOf(new ConfigError('x'))).toBe(ExitCode.Usage);
    expect(exitCodeOf(new HostError('x', 2))).toBe(ExitCode.Unavailable);
    expect(exitCodeOf(new HostError('x', 2, { exitCode: ExitCode.NoInput }))).toBe(ExitCode.NoInput);
  });
  test('system calls that failed in a teardown are no bug', () => {
    const failed = (code: string) =>
      Object.assign(new Error(`${code}: it failed, close`), { code, syscall: 'close', errno: -5 });
    const error = new AggregateError([failed('EIO'), failed('ENOSPC')], 'some resources could not be released');
    expect([exitCodeOf(error), errorLines(error)[0]]).toEqual([
      ExitCode.OsError,
      'acrn-dm: some resources could not be released; EIO: it failed, close; ENOSPC: it failed, close',
    ]);
    expect(exitCodeOf(new AggregateError([failed('EIO'), new TypeError('x')]))).toBe(ExitCode.Software);
    expect(exitCodeOf(new AggregateError([]))).toBe(ExitCode.Software);
  });
  test('several errors have the status of the first of ours', () => {
    expect(exitCodeOf(new AggregateError([new Error('a'), new HostError('b', 5)]))).toBe(ExitCode.Unavailable);
  });
});

describe('writeLines', () => {
  const written = (isTerminal: boolean, lines: string[]) => {
    let text = '';
    writeLines({ isTerminal, write: (t) => void (text += t) }, lines);
    return text;
  };
  test('a terminal gets carriage returns, since it may be in raw mode', () => {
    expect(written(true, ['a', 'b'])).toBe('a\r\nb\r\n');
  });
  test('a file or pipe gets line feeds', () => {
    expect(written(false, ['a', 'b'])).toBe('a\nb\n');
  });
  test('nothing is nothing', () => {
    expect(written(false, [])).toBe('');
  });
  test('a closed descriptor does not matter', () => {
    expect(() => writeLines(fdSink(-1), ['a'])).not.toThrow();
  });
});

describe('what a user pasted', () => {
  test.each([
    ['3,virtio-blk,d.img,\u00a0ro', 'a non-breaking space (U+00A0)'],
    ['-m\u00a0512M', 'a non-breaking space (U+00A0)'],
    ['a\u200bb', 'an unusual blank (U+200B)'],
    ['a\u202fb', 'an unusual blank (U+202F)'],
    ['\ufeffvm1', 'an unusual blank (U+FEFF)'],
    ['a\u3000b', 'an unusual blank (U+3000)'],
  ])('%o: the blank is named', (text, words) => {
    const lines = errorLines(new ConfigError(`"${text}" is unknown`, { hint: 'another hint' }));
    expect(lines.at(-1)).toContain(words);
  });
  test('a plain blank is not', () => {
    expect(errorLines(new ConfigError('a b', { hint: 'another hint' })).at(-1)).toBe('hint: another hint');
  });
  test('a long word is shown by its ends, a path whole', () => {
    const [line] = errorLines(new ConfigError(`VM name "${'a'.repeat(100_000)}z": too long`));
    expect(line?.length).toBeLessThan(140);
    expect(line).toMatch(/z": too long$/);
    const path = `/${'directory/'.repeat(20)}file`;
    expect(errorLines(new ConfigError(path))[0]).toContain(path);
  });
});

test('lines that cannot be written are not taken for written', () => {
  const full = {
    isTerminal: false,
    write: () => {
      throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' });
    },
  };
  expect(writeLines(full, ['x'])).toBe(false);
  expect(writeLines({ isTerminal: false, write: () => {} }, ['x'])).toBe(true);
});
