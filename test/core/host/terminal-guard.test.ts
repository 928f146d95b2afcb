/** Where no shell can be started to watch over a terminal, nobody watches: that is no error. */
import type { ChildProcess } from 'node:child_process';
import { EventEmitter } from 'node:events';
import { Socket } from 'node:net';
import { constants } from 'node:os';
import { expect, test, vi } from 'vitest';
import { guardTerminal } from '../../../devicemodel/core/host/terminal-guard.ts';

let spawn: () => Partial<ChildProcess>;
vi.mock('node:child_process', async (original) => ({
  ...(await original<typeof import('node:child_process')>()),
  spawn: () => spawn(),
}));

const failure = (code: 'EAGAIN' | 'ENOMEM' | 'EPERM') =>
  Object.assign(new Error(`spawn ${code}`), { code, errno: -constants.errno[code], syscall: 'spawn' });
const child = (stdio: unknown) =>
  Object.assign(new EventEmitter(), { stdio, unref: () => {} }) as Partial<ChildProcess>;
/** Node tells of some errors later. */
const later = (stdio: unknown, code: 'EAGAIN') => {
  const guard = child(stdio) as EventEmitter;
  process.nextTick(() => guard.emit('error', failure(code)));
  return guard as Partial<ChildProcess>;
};
const refuse = (code: 'ENOMEM' | 'EPERM') => () => {
  throw failure(code);
};

test.each<[string, () => Partial<ChildProcess>]>([
  ['no memory for a process: Node throws', refuse('ENOMEM')],
  ['no right to one: Node throws', refuse('EPERM')],
  ['no descriptor left: there is no list of pipes', () => child(undefined)],
  ['no more processes: an event, and pipes that lead nowhere', () => later([null, null, null, new Socket()], 'EAGAIN')],
  ['no pipe', () => child([null, null, null, null])],
])('%s', async (_what, answer) => {
  spawn = answer;
  const dismiss = guardTerminal(0, new Uint8Array(60), new Uint8Array(60));
  await new Promise((resolve) => setImmediate(resolve));
  expect(dismiss).not.toThrow();
  expect(dismiss).not.toThrow();
});
