import {
  closeSync,
  constants,
  existsSync,
  lstatSync,
  openSync,
  readlinkSync,
  readSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import { HostError } from '../../../../devicemodel/core/errors.ts';
import { getTermios } from '../../../../devicemodel/core/host/tty.ts';
import { openCharBackend } from '../../../../devicemodel/hw/uart/backends/open.ts';
import { memoryLog } from '../../../support/memory-log.ts';
import { readAll, scratchDirectory, TerminalWindow, until, writeText } from '../../../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

async function started(text: string) {
  const { log, lines } = memoryLog();
  let turns = 0;
  const env = { user: 'com1', log, requestTurn: () => void turns++ };
  const backend = openCharBackend(text, env);
  cleanUp.push(() => backend.stop());
  await backend.start();
  return { backend, lines, turns: () => turns };
}

function scratch() {
  const directory = scratchDirectory();
  cleanUp.push(() => directory.remove());
  return directory;
}

describe('tty', () => {
  test('carries bytes both ways, unchanged', async () => {
    const window = new TerminalWindow();
    cleanUp.push(() => window.close());
    const { backend } = await started(window.path);
    let told = 0;
    backend.onReadable = () => void told++;
    window.type('a\x03\r\xff'.slice(0, 3));
    await until(() => told > 0, 'input');
    expect(readAll(backend)).toBe('a\x03\r');
    writeText(backend, 'line\r\n');
    await until(() => window.seen === 'line\r\n', 'output');
  });

  test('the line settings are as before after stop', async () => {
    const window = new TerminalWindow();
    cleanUp.push(() => window.close());
    const before = getTermios(window.slaveFd, 'test');
    before[12] = 0o012; // ICANON | ECHO: not raw
    const { setTermios } = await import('../../../../devicemodel/core/host/tty.ts');
    setTermios(window.slaveFd, before, 'test');
    const { backend } = await started(window.path);
    expect(getTermios(window.slaveFd, 'test')).not.toEqual(before);
    await backend.stop();
    expect(getTermios(window.slaveFd, 'test')).toEqual(before);
  });

  test.each(['/dev/null', '/no/such/tty'])('%s is refused', async (path) => {
    await expect(started(path)).rejects.toThrow(HostError);
  });
});

describe('pty', () => {
  test('says where it is and works for who opens it late, and again', async () => {
    const { backend, lines } = await started('pty');
    const path = backend.name.replace('pty ', '');
    expect(lines.join()).toContain(path);
    writeText(backend, 'early ');
    for (const word of ['one', 'two']) {
      const fd = openSync(path, constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);
      writeText(backend, word);
      const expected = word === 'one' ? 'early one' : word;
      let seen = '';
      const chunk = Buffer.alloc(100);
      await until(() => {
        try {
          seen += chunk.toString('latin1', 0, readSync(fd, chunk));
        } catch {
          // Nothing there at the moment.
        }
        return seen === expected;
      }, `${expected}, got ${seen}`);
      writeSync(fd, `${word}\r`);
      let received = '';
      await until(() => (received += readAll(backend)) === `${word}\r`, 'input');
      closeSync(fd);
    }
  });

  test('a link leads to it while it lives, in a directory made for it', async () => {
    const link = scratch().file('vm1/com1');
    const { backend } = await started(`pty:${link}`);
    expect(`pty ${readlinkSync(link)}`).toBe(backend.name);
    await backend.stop();
    expect(existsSync(link)).toBe(false);
  });

  test('an old link is replaced, an ordinary file is not', async () => {
    const directory = scratch();
    symlinkSync('/dev/pts/gone', directory.file('old'));
    const { backend } = await started(`pty:${directory.file('old')}`);
    expect(`pty ${readlinkSync(directory.file('old'))}`).toBe(backend.name);
    writeFileSync(directory.file('mine'), 'precious');
    await expect(started(`pty:${directory.file('mine')}`)).rejects.toThrow(/no symbolic link/);
    expect(lstatSync(directory.file('mine')).isFile()).toBe(true);
  });

  test('output nobody reads is bounded: the newest megabyte is kept, with one warning', async () => {
    const { backend, lines, turns } = await started('pty');
    for (let i = 0; i < 3 * (1 << 20); i++) {
      backend.write(0x30 + (i % 10));
      if (i % 4096 === 0) backend.flush();
    }
    backend.flush();
    expect(lines.filter((l) => l.includes('oldest are lost'))).toHaveLength(1);
    expect(turns()).toBeGreaterThan(0); // it waits for the reader now: the event loop had to hear of it
    const fd = openSync(backend.name.replace('pty ', ''), constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);
    cleanUp.push(() => closeSync(fd));
    let received = 0;
    let last = '';
    const chunk = Buffer.alloc(65536);
    await until(() => {
      try {
        const count = readSync(fd, chunk);
        received += count;
        last = chunk.toString('latin1', 0, count).slice(-1);
      } catch {
        // Nothing there at the moment.
      }
      return received >= 1 << 20;
    }, 'the rest');
    expect(received).toBeLessThan((1 << 20) + 64 * 1024);
    await until(() => {
      try {
        const count = readSync(fd, chunk);
        last = chunk.toString('latin1', 0, count).slice(-1);
      } catch {
        return last === String((3 * (1 << 20) - 1) % 10);
      }
      return false;
    }, 'the last byte');
  });

  test('input is paused while the guest does not read, and nothing of it is lost', async () => {
    const { backend } = await started('pty');
    const fd = openSync(backend.name.replace('pty ', ''), constants.O_RDWR | constants.O_NOCTTY | constants.O_NONBLOCK);
    cleanUp.push(() => closeSync(fd));
    let arrived = 0;
    backend.onReadable = () => void arrived++;
    const text = Array.from({ length: 100_000 }, (_, i) => String.fromCharCode(33 + (i % 90))).join('');
    let sent = 0;
    const send = () => {
      try {
        sent += writeSync(fd, text.slice(sent, sent + 1000));
        return true;
      } catch {
        return false; // EAGAIN: the line is full
      }
    };
    let stuck = 0;
    await until(() => (send() ? (stuck = 0) : ++stuck) > 200, 'the sender waits');
    expect(sent).toBeLessThan(text.length);
    let received = readAll(backend);
    await until(() => {
      while (sent < text.length && send());
      received += readAll(backend);
      return received.length === text.length;
    }, 'everything');
    expect(received).toBe(text);
    expect(arrived).toBeGreaterThan(1);
  });
});
