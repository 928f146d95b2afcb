import { closeSync, openSync, readSync, writeSync } from 'node:fs';
import { afterEach, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { isPollable, reopen, streamOverFd } from '../../../devicemodel/core/host/fd-stream.ts';
import { duplicate, setNonBlocking } from '../../../devicemodel/core/host/files.ts';
import { openPty } from '../../../devicemodel/core/host/tty.ts';
import { scratchDirectory, until } from '../../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

test('files and /dev/null cannot be polled, terminals can', () => {
  const directory = scratchDirectory();
  cleanUp.push(() => directory.remove());
  const pty = openPty();
  const file = openSync(directory.file('f'), 'w+');
  const nothing = openSync('/dev/null', 'r+');
  cleanUp.push(...[pty.masterFd, pty.slaveFd, file, nothing].map((fd) => () => closeSync(fd)));
  expect([pty.masterFd, pty.slaveFd, file, nothing].map(isPollable)).toEqual([true, true, false, false]);
});

test('a terminal opened again is non-blocking without the one it came from', () => {
  const pty = openPty();
  cleanUp.push(
    () => closeSync(pty.masterFd),
    () => closeSync(pty.slaveFd),
  );
  const again = reopen(pty.slaveFd, 'read');
  cleanUp.push(() => closeSync(again.fd));
  expect(again.shared).toBe(false);
  expect(setNonBlocking(again.fd, true, 'test')).toBe(true); // was already
  expect(setNonBlocking(pty.slaveFd, false, 'test')).toBe(false); // still was not
});

test('a stream over a pseudo terminal waits for a reader instead of blocking, and closes the descriptor', async () => {
  const pty = openPty();
  cleanUp.push(() => closeSync(pty.slaveFd));
  const stream = streamOverFd(pty.masterFd, 'test', { readable: true, writable: true });
  let written = 0;
  while (stream.writableLength === 0) {
    stream.write(Buffer.alloc(1000, 0x61));
    written += 1000;
  }
  let received = 0;
  const chunk = Buffer.alloc(4096);
  await until(() => {
    received += readSync(pty.slaveFd, chunk);
    return received === written;
  }, 'everything arrives');
  writeSync(pty.slaveFd, 'back');
  let seen = '';
  stream.on('data', (d) => {
    seen += d;
  });
  await until(() => seen === 'back', 'input');
  let isClosed = false;
  stream.on('close', () => {
    isClosed = true;
  });
  stream.destroy();
  await until(() => isClosed, 'closed');
  expect(() => writeSync(pty.slaveFd, 'x')).toThrow(/EIO/); // nobody holds the master any more
});

test('a stream over an eventfd sees its count', async () => {
  const eventfd = new Eventfd();
  cleanUp.push(() => eventfd.dispose());
  const stream = streamOverFd(duplicate(eventfd.fd, 'test'), 'test', { readable: true, writable: false });
  cleanUp.push(() => stream.destroy());
  let count = 0n;
  stream.on('data', (d: Buffer) => {
    count += d.readBigUInt64LE();
  });
  eventfd.signal();
  eventfd.signal();
  await until(() => count === 2n, 'both');
});
