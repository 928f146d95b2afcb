/**
 * A file that is cut while it is mapped, by a process of its own, for real: what maps it here is a process, too, which
 * each fault would end. One process plays all cases of a table and says a line for each.
 */
import { spawnSync } from 'node:child_process';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';

const root = join(import.meta.dirname, '../../..');
const tag = `cut-${process.pid}`;
const TIMEOUT_MS = 120_000;

afterAll(() => {
  for (const name of readdirSync('/dev/shm')) if (name.includes(tag)) rmSync(join('/dev/shm', name));
});

const module = (file: string) => pathToFileURL(join(root, file)).href;
/** `told` has what listeners were told; `play` is a case: its value and what was told, as a line. */
const prelude = `
  import { execFileSync, spawn } from 'node:child_process';
  import { once } from 'node:events';
  import { existsSync, openSync, readFileSync, statSync, truncateSync, writeFileSync } from 'node:fs';
  import { setTimeout as sleep } from 'node:timers/promises';
  import { Worker } from 'node:worker_threads';
  import { openSharedMemory } from '${module('devicemodel/core/host/shared-memory.ts')}';
  import { guardMapping, mendAll } from '${module('devicemodel/core/host/bus-faults.ts')}';
  import { map } from '${module('devicemodel/core/host/mapping.ts')}';
  import { writeAt } from '${module('devicemodel/core/host/files.ts')}';
  import { ignoreOtherSignals } from '${module('devicemodel/core/host/signals.ts')}';
  ignoreOtherSignals();
  const SIZE = 2 << 20;
  const path = '/dev/shm/${tag}';
  const sh = (line) => execFileSync('/bin/sh', ['-c', line, 'sh', path]);
  const told = [];
  const tell = (line) => told.push(/again, with zeros/.test(line) ? 'restored' : /alone/.test(line) ? 'replaced' : line);
  const heard = async (count) => { for (let i = 0; i < 500 && told.length < count; i++) await sleep(10); await sleep(5); };
  const size = () => existsSync(path) && statSync(path).size;
  async function play(toBeTold, work) {
    sh('rm -f "$1"');
    told.length = 0;
    const m = openSharedMemory('/${tag}', SIZE);
    const stop = m.onCut(tell);
    m.bytes.fill(0x5a);
    const value = await work(m.bytes, m);
    await heard(toBeTold);
    console.log(JSON.stringify([value, ...told]));
    stop();
    m.dispose();
  }
`;

/** @param room of a /dev/shm of its own. */
function run(code: string, room?: string) {
  const node = [process.execPath, '--import', 'tsx', '--input-type=module', '-e', `${prelude}${code}`];
  const mount = ['unshare', '-m', 'sh', '-c', `mount -t tmpfs -o size=${room} none /dev/shm && exec "$@"`, 'sh'];
  const [file = '', ...args] = room === undefined ? node : [...mount, ...node];
  const options = { encoding: 'utf8', cwd: root, timeout: TIMEOUT_MS } as const;
  const { signal, status, stdout, stderr } = spawnSync(file, args, options);
  return {
    signal,
    status,
    stderr,
    said: stdout.split('\n').flatMap((line) => (line === '' ? [] : [JSON.parse(line)])),
  };
}

interface Case {
  /** Body of a function of `bytes` and the mapping `m`; its value is the first word of the line. */
  readonly code: string;
  readonly says: readonly unknown[];
}

function table(cases: Readonly<Record<string, Case>>, room?: string) {
  let result: ReturnType<typeof run>;
  beforeAll(() => {
    const plays = Object.values(cases).map(
      ({ code, says }) => `await play(${says.length - 1}, async (bytes, m) => { ${code} });`,
    );
    result = run(plays.join('\n'), room);
  }, TIMEOUT_MS);
  test('the process ends by itself', () => {
    const { signal, status, stderr } = result;
    expect({ signal, status, stderr }).toEqual({ signal: null, status: 0, stderr: '' });
  });
  test.each(Object.entries(cases).map(([what, { says }], index) => ({ what, says, index })))(
    '$what',
    ({ says, index }) => {
      expect(result.said[index]).toEqual(says);
    },
  );
}

const cut = (how: string) => `sh(${JSON.stringify(how)});`;
const SIZE = 2 << 20;
/** So many threads write to the same pages, each to its own byte of them, as soon as word 0 has the number of the round. */
const THREADS = 4;
const writer = `const { workerData: { address, words, id, step } } = require('node:worker_threads');
  const bytes = new Uint8Array(require('koffi').view(address, ${SIZE}));
  for (let round = 1; round <= words[2]; round++) {
    while (Atomics.load(words, 0) < round) Atomics.wait(words, 0, round - 1);
    for (let at = ${SIZE} - 4096; at >= 0; at -= step) bytes[at + id] = round;
    Atomics.add(words, 1, 1);
    Atomics.notify(words, 1);
  }`;
/** @param step from the page that is written to the next. */
const writeAtOnce = (cut: string, rounds: number, step: number, look: string) => `
  const words = new Int32Array(new SharedArrayBuffer(12));
  words[2] = ${rounds};
  const ids = [...Array(${THREADS}).keys()];
  for (const id of ids) new Worker(${JSON.stringify(writer)}, { eval: true, execArgv: ['--input-type=commonjs'], workerData: { address: m.address, words, id, step: ${step} } });
  await sleep(300);
  for (let round = 1; round <= ${rounds}; round++) {
    ${cut}
    Atomics.store(words, 0, round);
    Atomics.notify(words, 0);
    for (let done; (done = Atomics.load(words, 1)) < ${THREADS} * round; ) Atomics.wait(words, 1, done, 1000);
  }
  ${look}`;
/** A thread of JavaScript with memory, variables and an event loop of its own: cut, written, and what it was told. */
const guardian = `const { parentPort } = require('node:worker_threads');
  const { readFileSync, rmSync, truncateSync } = require('node:fs');
  const path = '/dev/shm/${tag}-guardian';
  const shared = '${module('devicemodel/core/host/shared-memory.ts')}';
  import('tsx/esm/api').then(({ tsImport }) => tsImport(shared, shared)).then(({ openSharedMemory }) => {
    const m = openSharedMemory('/${tag}-guardian', ${SIZE});
    const stop = m.onCut((line) => {
      parentPort.postMessage([m.bytes[8192], readFileSync(path)[8192], m.isReplaced(), line.includes('has its size again')]);
      stop();
      m.dispose();
      rmSync(path);
    });
    truncateSync(path, 0);
    m.bytes[8192] = 7;
  });`;
const filler = `const { workerData } = require('node:worker_threads');
  new Uint8Array(require('koffi').view(workerData, ${SIZE})).fill(9);`;

describe('a file that another process cuts has its size again, with zeros, and is still shared', () => {
  table({
    'to nothing, then read': {
      code: `${cut('truncate -s 0 "$1"')} return [bytes[SIZE - 1], size()]`,
      says: [[0, SIZE], 'restored'],
    },
    'to nothing, then written': {
      code: `${cut('truncate -s 0 "$1"')} bytes.fill(7); return [bytes[0], size()]`,
      says: [[7, SIZE], 'restored'],
    },
    'as a shell empties it': { code: `${cut(': > "$1"')} return bytes[4096]`, says: [0, 'restored'] },
    'to half: what is left stays': {
      code: `${cut('truncate -s 1M "$1"')} return [bytes[0], bytes[SIZE / 2 - 1], bytes[SIZE / 2], bytes[SIZE - 1]]`,
      says: [[0x5a, 0x5a, 0, 0], 'restored'],
    },
    'to a length within a page': {
      code: `${cut('truncate -s 5000 "$1"')} return [bytes[9000], bytes[4999], bytes[5000]]`,
      says: [[0, 0x5a, 0], 'restored'],
    },
    'to a byte, then read as words': {
      code: `${cut('truncate -s 1 "$1"')} return new DataView(bytes.buffer).getUint32(8192, true)`,
      says: [0, 'restored'],
    },
    'to nothing, its name removed': {
      code: `${cut('truncate -s 0 "$1"; rm "$1"')} return [bytes[12345], size()]`,
      says: [[0, false], 'restored'],
    },
    'to nothing, then longer than it was': {
      code: `${cut('truncate -s 0 "$1"; truncate -s 4M "$1"')} return [bytes[SIZE - 1], size()]`,
      says: [[0, 2 * SIZE]],
    },
    'again and again: told each time': {
      code: `for (let i = 1; i <= 5; i++) { ${cut('truncate -s 0 "$1"')} bytes[8192] += i; await heard(i); } return bytes[8192]`,
      says: [5, ...Array(5).fill('restored')],
    },
    // Mutation: replace what faults at the same page twice, whatever the file's length.
    'again at once, at the same page, before anybody is told: it is still shared': {
      code: `for (let i = 1; i <= 5; i++) { ${cut('truncate -s 0 "$1"')} bytes[8192] = i; } return readFileSync(path)[8192]`,
      says: [5, 'restored'],
    },
    // Mutation: the same, or leave out the lock.
    'under several threads at once: all of them share it still': {
      code: writeAtOnce(
        `truncateSync(path, 0);`,
        50,
        SIZE,
        `const file = readFileSync(path); return ids.map((id) => file[SIZE - 4096 + id])`,
      ),
      says: [[50, 50, 50, 50], 'restored'],
    },
    // Mutation: without tableOf the second thread has a table that no handler reads: the fault ends the process.
    'of another thread of JavaScript, which is told, and nobody else; then of this one': {
      code: `const thread = new Worker(${JSON.stringify(guardian)}, { eval: true, execArgv: ['--input-type=commonjs'] });
             const [said] = await once(thread, 'message'); await once(thread, 'exit');
             const toldBefore = told.length; ${cut('truncate -s 0 "$1"')} bytes[8192] = 8;
             return [...said, toldBefore, readFileSync(path)[8192]]`,
      says: [[7, 7, false, true, 0, 8], 'restored'],
    },
    'under a thread': {
      code: `${cut('truncate -s 0 "$1"')} const thread = new Worker(${JSON.stringify(filler)}, { eval: true, execArgv: ['--input-type=commonjs'], workerData: m.address });
             await new Promise((done) => thread.on('exit', done)); return bytes[SIZE - 1]`,
      says: [9, 'restored'],
    },
    'under the kernel, whose access fails with EFAULT; found only if something was cut': {
      code: `const out = openSync(path + '-out', 'w');
             const write = () => writeAt(out, m.address + 4096n, 4096, 0);
             const found = [mendAll()]; ${cut('truncate -s 0 "$1"')}
             found.push(write(), mendAll(), write(), mendAll()); return found`,
      says: [[false, -14, true, 4096, false], 'restored'],
    },
    'and is asked for before anybody looks': {
      code: `${cut('truncate -s 0 "$1"')} m.mend(); return size()`,
      says: [SIZE, 'restored'],
    },
  });

  test(
    'all the time',
    () => {
      const cutter = `for (const end = Date.now() + 2000; Date.now() < end;) require('fs').truncateSync(process.argv[1], 0)`;
      const { said, ...end } = run(
        `const m = openSharedMemory('/${tag}', SIZE);
       const stop = m.onCut(tell);
       const cutter = spawn(process.execPath, ['-e', ${JSON.stringify(cutter)}, path]);
       let isOver = false; cutter.on('exit', () => { isOver = true; });
       while (!isOver) { for (let i = 0; i < 100; i++) m.bytes.fill(i); await sleep(1); }
       m.bytes.fill(3); console.log(m.bytes.every((byte) => byte === 3) && told.length > 0); stop(); m.dispose();`,
      );
      expect(end).toEqual({ signal: null, status: 0, stderr: '' });
      expect(said).toEqual([true]);
    },
    TIMEOUT_MS,
  );
});

const mayMount = spawnSync('unshare', ['-m', 'true']).status === 0;
const fill = `sh('truncate -s 0 "$1"; head -c 4M /dev/zero > /dev/shm/other 2>/dev/null || true');`;
const clear = `sh('rm /dev/shm/other');`;

describe.skipIf(!mayMount)('a file that cannot have its size again: what is missing is memory of this process', () => {
  table(
    {
      'read at its end, then before that': {
        code: `${fill} const got = [bytes[SIZE - 1], bytes[SIZE / 2], bytes[0]]; ${clear} return got`,
        says: [[0, 0, 0], 'replaced'],
      },
      'written from the beginning': {
        code: `${fill} bytes.fill(4); ${clear} return bytes.every((byte) => byte === 4)`,
        says: [true, 'replaced'],
      },
      'written in every other page, backwards': {
        code: `${fill} for (let at = SIZE - 4096; at >= 0; at -= 8192) bytes[at] = 1; const got = [bytes[4096], bytes[0], bytes[SIZE - 4096]]; ${clear} return got`,
        says: [[1, 0, 1], 'replaced'],
      },
      'filled backwards: nothing of it is lost': {
        code: `${fill} for (let at = SIZE - 1; at >= 0; at -= 4096) bytes[at] = 2; ${clear} return bytes.reduce((sum, byte) => sum + byte, 0)`,
        says: [2 * (SIZE / 4096), 'replaced'],
      },
      'looked at after an EFAULT': {
        code: `${fill} const got = [mendAll(), bytes[SIZE / 2]]; ${clear} return got`,
        says: [[true, 0], 'replaced'],
      },
      // Mutation: leave out privateFrom, or the lock.
      'written by several threads at once, backwards: nothing of it is lost': {
        code: `${fill} ${writeAtOnce('', 1, 4096, `${clear} return bytes.reduce((sum, byte) => sum + byte, 0)`)}`,
        says: [THREADS * (SIZE / 4096), 'replaced'],
      },
      'what was left of it is still shared': {
        code: `sh('truncate -s 1M "$1"; head -c 4M /dev/zero > /dev/shm/other 2>/dev/null || true'); bytes[SIZE - 1] = 1; bytes[0] = 2; ${clear}
               return [execFileSync('head', ['-c', '1', path])[0], size()]`,
        says: [[2, SIZE / 2], 'replaced'],
      },
    },
    '3m',
  );
});

describe('what is no cut file', () => {
  const faults = ['SIGBUS', 'SIGILL', 'SIGFPE', 'SIGSYS', 'SIGTRAP'];
  table(
    Object.fromEntries(
      faults.map((name) => [
        `${name} that somebody sends is ignored`,
        {
          code: `for (let i = 0; i < 20; i++) process.kill(process.pid, '${name}'); sh('kill -${name.slice(3)} ' + process.pid); await sleep(5); return bytes[0]`,
          says: [0x5a],
        },
      ]),
    ),
  );

  // Mutation: without the limit the fault comes for ever.
  test(
    'a file with its whole length that cannot be read is replaced',
    () => {
      const { said, ...end } = run(
        `writeFileSync(path, Buffer.alloc(4096));
       writeFileSync(path + '-whole', Buffer.alloc(4096));
       const unreadable = map(4096, 'unreadable', openSync(path, 'r+'));
       const guard = guardMapping(unreadable, openSync(path + '-whole', 'r+'));
       const stop = guard.onCut((outcome) => told.push(outcome));
       sh('truncate -s 0 "$1"'); unreadable.bytes[7] = 7; await heard(1); stop();
       console.log(JSON.stringify([unreadable.bytes[7], size(), ...told]));`,
      );
      expect(end).toEqual({ signal: null, status: 0, stderr: '' });
      expect(said).toEqual([[7, 0, 'replaced']]);
    },
    TIMEOUT_MS,
  );

  test.each([
    ['another file that was cut', ''],
    ['memory that was given back', 'stop(); m.dispose();'],
  ])(
    '%s ends the process, as ever',
    (_what, code) => {
      const { signal, said } = run(
        `const m = openSharedMemory('/${tag}', SIZE);
       const stop = m.onCut(() => {});
       ${code}
       writeFileSync(path + '-other', Buffer.alloc(4096));
       const other = map(4096, 'other', openSync(path + '-other', 'r+')).bytes;
       sh('truncate -s 0 "$1-other"'); console.log(other[0]);`,
      );
      expect({ signal, said }).toEqual({ signal: 'SIGBUS', said: [] });
    },
    TIMEOUT_MS,
  );
});
