/** Whose an error was, and what it was, when nobody foresaw it. */
import { readFileSync, rmdirSync, writeFileSync } from 'node:fs';
import { expect, test } from 'vitest';
import { attributed, BugError, ConfigError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';

const thrownBy = (work: () => unknown): unknown => {
  try {
    work();
  } catch (error) {
    return error;
  }
  return undefined;
};

// Mutation: pass Node's own error on: the line names no device, and the status is 71 although there was a VM.
test.each([
  [
    'a file that is not there',
    () => readFileSync('/none'),
    'disk at 00:03.0: /none: open: ENOENT: no such file or directory',
  ],
  ['a folder', () => readFileSync('/'), 'disk at 00:03.0: read: EISDIR: illegal operation on a directory'],
  ['below a device', () => readFileSync('/dev/null/x'), 'disk at 00:03.0: /dev/null/x: open: ENOTDIR: not a directory'],
  ['a full disk', () => writeFileSync('/dev/full', 'x'), 'disk at 00:03.0: write: ENOSPC: no space left on device'],
  ['a folder that is in use', () => rmdirSync('/proc'), /^disk at 00:03.0: \/proc: rmdir: E\w+: .+$/],
])('a call of Node’s that failed is told as ours: %s', (_, work, said) => {
  const error = attributed('disk at 00:03.0', thrownBy(work)) as HostError;
  expect(error).toBeInstanceOf(HostError);
  expect(error.message).toMatch(said);
  expect([error.exitCode, error.errno > 0]).toEqual([ExitCode.OsError, true]);
});

test.each([new TypeError('x'), new BugError('disk at 00:03.0: x'), 'text', undefined])(
  '%s stays what it is',
  (error) => {
    expect(attributed('disk at 00:03.0', error)).toBe(error);
  },
);

test('one of ours keeps its kind, and is named once', () => {
  const error = new ConfigError('wrong');
  expect(attributed('disk at 00:03.0', attributed('disk at 00:03.0', error))).toBe(error);
  expect(error.message).toBe('disk at 00:03.0: wrong');
});
