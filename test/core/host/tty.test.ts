import { execFileSync } from 'node:child_process';
import { closeSync } from 'node:fs';
import { afterEach, expect, test } from 'vitest';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { sttyText } from '../../../devicemodel/core/host/terminal-guard.ts';
import {
  getTermios,
  openPty,
  openTty,
  RawTerminal,
  rawTermios,
  setTermios,
} from '../../../devicemodel/core/host/tty.ts';
import { isTerminalRaw } from '../../../devicemodel/core/terminal-state.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(() => {
  for (const step of cleanUp.splice(0).reverse()) step();
});

function terminal() {
  const pty = openPty();
  cleanUp.push(
    () => closeSync(pty.masterFd),
    () => closeSync(pty.slaveFd),
  );
  const stty = (...args: string[]) => execFileSync('stty', ['-F', pty.slavePath, ...args], { encoding: 'utf8' });
  stty('sane');
  return { fd: pty.slaveFd, path: pty.slavePath, stty };
}

test('settings are what stty sees and sets', () => {
  const { fd, stty } = terminal();
  const sane = getTermios(fd, 'test');
  expect(sttyText(sane)).toBe(stty('-g').trim());
  setTermios(fd, rawTermios(sane), 'test');
  expect(stty('-a')).toMatch(/-icanon .*-echo /s);
  expect(stty('-a')).toMatch(/-opost/);
  stty(sttyText(sane));
  expect(getTermios(fd, 'test')).toEqual(sane);
});

test('output translation can stay on', () => {
  const { fd, stty } = terminal();
  setTermios(fd, rawTermios(getTermios(fd, 'test'), { translateOutput: true }), 'test');
  expect(stty('-a')).toMatch(/[^-]opost/);
  expect(stty('-a')).toMatch(/-icanon/);
});

test('raw from enter to leave, however often each is called', () => {
  const { fd } = terminal();
  const before = getTermios(fd, 'test');
  const raw = new RawTerminal(fd, 'test');
  const listeners = process.listenerCount('SIGTERM');
  expect(raw.enter()).toBe(true);
  expect(raw.enter()).toBe(true);
  expect(isTerminalRaw()).toBe(true);
  raw.leave();
  raw.leave();
  expect(isTerminalRaw()).toBe(false);
  expect(getTermios(fd, 'test')).toEqual(before);
  expect(process.listenerCount('SIGTERM')).toBe(listeners);
});

test('continuing after a stop makes it raw again', () => {
  const { fd } = terminal();
  const before = getTermios(fd, 'test');
  const raw = new RawTerminal(fd, 'test');
  raw.enter();
  setTermios(fd, before, 'test'); // the shell does this when a job stops
  process.emit('SIGCONT', 'SIGCONT');
  expect(getTermios(fd, 'test')).not.toEqual(before);
  raw.leave();
  expect(getTermios(fd, 'test')).toEqual(before);
  process.emit('SIGCONT', 'SIGCONT');
  expect(getTermios(fd, 'test')).toEqual(before);
});

test('what is no terminal is refused', () => {
  expect(() => openTty('/dev/null')).toThrow(HostError);
  expect(() => openTty('/dev/null')).toThrow(/not a terminal/);
  expect(() => getTermios(-1, 'nothing')).toThrow(/nothing: tcgetattr: EBADF/);
});
