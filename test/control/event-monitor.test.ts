import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readFileSync, readSync, writeFileSync } from 'node:fs';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { openEventMonitor } from '../../control/event-monitor.ts';
import { EventStream } from '../../control/event-stream.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import { memoryLog } from '../support/memory-log.ts';
import { scratchDirectory } from '../support/pty.ts';

const { log, lines } = memoryLog();
let scratch: ReturnType<typeof scratchDirectory>;
beforeEach(() => {
  scratch = scratchDirectory();
});
const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
  scratch.remove();
});

function pipe(): { readonly path: string; readonly fd: number } {
  const path = scratch.file('events');
  execFileSync('mkfifo', [path]);
  // Open for both, so that neither end waits for the other.
  const fd = openSync(path, constants.O_RDWR);
  cleanUp.push(() => closeSync(fd));
  return { path, fd };
}

test('events are objects with an empty line behind each, those before it was opened included', () => {
  const path = scratch.file('events');
  writeFileSync(path, '');
  const events = new EventStream();
  events.emit('vmm', 'starting');
  const monitor = openEventMonitor({ path }, events, log);
  events.emit('vm', 'created', { name: 'vm1' });
  monitor.close();
  events.emit('vm', 'deleted');
  const told = readFileSync(path, 'utf8')
    .split('\n\n')
    .filter((text) => text !== '');
  expect(told.map((text) => JSON.parse(text))).toMatchObject([
    { timestamp: { secs: 0 }, source: 'vmm', event: 'starting', properties: null },
    { source: 'vm', event: 'created', properties: { name: 'vm1' } },
  ]);
});

test.each(['path', 'fd'])('nobody is waited for who does not read: %s', (how) => {
  const { path, fd } = pipe();
  const events = new EventStream();
  const monitor = openEventMonitor(how === 'fd' ? { fd } : { path }, events, log);
  // More than a pipe takes.
  for (let i = 0; i < 2000; i++) events.emit('vm', 'resumed', { text: 'x'.repeat(100) });
  const seen = Buffer.alloc(1 << 20);
  const text = seen.toString('utf8', 0, readSync(fd, seen));
  expect(text.startsWith('{')).toBe(true);
  // Whoever reads on finds whole objects.
  expect(
    text
      .split('\n\n')
      .slice(0, -1)
      .every((part) => JSON.parse(part).event === 'resumed'),
  ).toBe(true);
  monitor.close();
});

test('a pipe without a reader is said to be one', () => {
  const path = scratch.file('events');
  execFileSync('mkfifo', [path]);
  expect(() => openEventMonitor({ path }, new EventStream(), log)).toThrow(HostError);
});

test('a descriptor that is not open is said to be none', () => {
  expect(() => openEventMonitor({ fd: 9999 }, new EventStream(), log)).toThrow('--event-monitor fd=9999');
});

test('what a full disk does not take is said, once', () => {
  lines.splice(0);
  const events = new EventStream();
  const monitor = openEventMonitor({ path: '/dev/full' }, events, log);
  cleanUp.push(() => monitor.close());
  for (let i = 0; i < 3; i++) events.emit('vm', 'created');
  expect(lines).toHaveLength(1);
  expect(lines[0]).toContain('--event-monitor: events are lost: ENOSPC');
});
