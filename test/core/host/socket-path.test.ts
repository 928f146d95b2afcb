/** What the kernel's list of Unix sockets says of a path. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join, relative } from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { isListenedAt } from '../../../devicemodel/core/host/socket-path.ts';

let folder: string;
let server: Server;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), 'socket-path-'));
  server = createServer();
  await new Promise<void>((resolve) => server.listen(join(folder, 'a b.sock'), resolve));
});
afterEach(async () => {
  await new Promise((resolve) => server.close(resolve));
  rmSync(folder, { recursive: true });
});

// Mutation: leave the flag out, or the other spelling.
test('a socket that is listened at is found, also by its other spelling, and no other', async () => {
  const path = join(folder, 'a b.sock');
  expect(isListenedAt(path)).toBe(true);
  expect(isListenedAt(relative(process.cwd(), path))).toBe(true);
  expect(isListenedAt(join(folder, 'a'))).toBe(false);
  expect(isListenedAt(folder)).toBe(false);
  await new Promise((resolve) => server.close(resolve));
  expect(isListenedAt(path)).toBe(false);
});

test.each([
  ['a listener', '00010000', '/run/x', true],
  ['one that is connected', '00000000', '/run/x', false],
  ['a name that goes on', '00010000', '/run/x1', false],
  ['an abstract name', '00010000', '@/run/x', false],
  ['none', '00010000', '', false],
])('%s', (_kind, flags, name, isFound) => {
  const table = join(folder, 'table');
  writeFileSync(
    table,
    `Num       RefCount Protocol Flags\n00000000ec4b7292: 00000002 00000000 ${flags} 0001 01 4012909 ${name}\n`,
  );
  expect(isListenedAt('/run/x', table)).toBe(isFound);
  expect(isListenedAt('/run/x', join(folder, 'none'))).toBe(false);
});
