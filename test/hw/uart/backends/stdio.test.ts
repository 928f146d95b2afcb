import { type ChildProcess, execFileSync, spawn } from 'node:child_process';
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { afterEach, describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../devicemodel/core/errors.ts';
import { getTermios, setTermios } from '../../../../devicemodel/core/host/tty.ts';
import { isTerminalRaw } from '../../../../devicemodel/core/terminal-state.ts';
import { openCharBackend } from '../../../../devicemodel/hw/uart/backends/open.ts';
import { StdioClaim } from '../../../../devicemodel/hw/uart/backends/stdio.ts';
import { memoryLog } from '../../../support/memory-log.ts';
import { readAll, scratchDirectory, TerminalWindow, until, writeText } from '../../../support/pty.ts';

const CHILD = fileURLToPath(new URL('../../../support/stdio-child.ts', import.meta.url));

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

/** A terminal with line editing on, as a shell leaves it for its commands. */
function cookedWindow() {
  const window = new TerminalWindow();
  cleanUp.push(() => window.close());
  const cooked = getTermios(window.slaveFd, 'test');
  cooked[0] = 0o400; // c_iflag: ICRNL
  cooked[4] = 0o5; // c_oflag: OPOST | ONLCR
  cooked[12] = 0o13; // c_lflag: ISIG | ICANON | ECHO
  setTermios(window.slaveFd, cooked, 'test');
  return { window, cooked };
}

function child(manner: string, stdio: [number | 'pipe', number | 'pipe'], command: string[] = []): ChildProcess {
  const [program = '', ...args] = [...command, process.execPath, '--import', 'tsx', CHILD, manner];
  // A session of its own, so that Ctrl-c and hang-up stay away from the tests; setsid makes one itself.
  const started = spawn(program, args, { stdio: [...stdio, 'pipe'], detached: command.length === 0 });
  cleanUp.push(() => started.kill('SIGKILL'));
  return started;
}

const exited = (c: ChildProcess) =>
  new Promise<{ code: number | null; signal: string | null }>((resolve) => {
    c.once('exit', (code, signal) => resolve({ code, signal }));
  });

describe('on a terminal', () => {
  test.each([
    ['stop', 'q', { code: 0, signal: null }],
    ['exit', 'q', { code: 3, signal: null }],
    ['throw', 'q', { code: 1, signal: null }],
    ['SIGTERM', undefined, { code: null, signal: 'SIGTERM' }],
    ['SIGHUP', undefined, { code: null, signal: 'SIGHUP' }],
    ['SIGQUIT', undefined, { code: null, signal: 'SIGQUIT' }],
    ['SIGUSR1', undefined, { code: null, signal: 'SIGUSR1' }],
    ['Ctrl-a x', '\x01x', { code: null, signal: 'SIGINT' }],
    ['SIGKILL', undefined, { code: null, signal: 'SIGKILL' }],
    ['SIGSEGV', undefined, { code: null, signal: 'SIGSEGV' }],
  ])('is raw while it runs and as before after: %s', async (manner, keys, end) => {
    const { window, cooked } = cookedWindow();
    const c = child(manner, [window.slaveFd, window.slaveFd]);
    const over = exited(c);
    await until(() => window.seen.includes('ready'), 'start');
    expect(getTermios(window.slaveFd, 'test')).not.toEqual(cooked);
    window.type('\x03\r'); // Ctrl-c and Enter are the guest's now
    await until(() => window.seen.includes('<\x03\r>'), 'echo by the guest alone');
    if (keys === undefined) c.kill(manner as NodeJS.Signals);
    else window.type(keys);
    expect(await over).toEqual(end);
    if (end.signal === 'SIGKILL' || end.signal === 'SIGSEGV') {
      // The guard comes after the process has gone.
      await until(() => Buffer.compare(getTermios(window.slaveFd, 'test'), cooked) === 0, 'the guard restores');
    }
    expect(getTermios(window.slaveFd, 'test')).toEqual(cooked);
    if (manner === 'exit') expect(window.seen).toMatch(/last words$/);
  });

  test('how to leave is said at the start', async () => {
    const { window } = cookedWindow();
    const c = child('stop', [window.slaveFd, window.slaveFd]);
    let said = '';
    c.stdio[2]?.on('data', (text: Buffer) => {
      said += text.toString();
    });
    const over = exited(c);
    await until(() => window.seen.includes('ready'), 'start');
    window.type('q');
    await over;
    expect(said).toContain('Ctrl-a x ends the VM');
  });

  test('what the shell sets after a crash is left alone by the guard', async () => {
    const { window } = cookedWindow();
    const c = child('stop', [window.slaveFd, window.slaveFd]);
    const over = exited(c);
    await until(() => window.seen.includes('ready'), 'start');
    const guard = execFileSync('pgrep', ['-P', String(c.pid), '-x', 'sh'], { encoding: 'utf8' }).trim();
    const own = getTermios(window.slaveFd, 'test');
    own[12] = 0o13; // raw but for ISIG | ICANON | ECHO, as no other program leaves it
    setTermios(window.slaveFd, own, 'test');
    c.kill('SIGKILL');
    await over;
    await until(() => !existsSync(`/proc/${guard}`), 'the guard is done');
    expect(getTermios(window.slaveFd, 'test')).toEqual(own);
  });

  test('a job in the background runs on without the keyboard instead of being stopped', async () => {
    const { window, cooked } = cookedWindow();
    // sh with job control (-m) puts the child in a background process group of the same terminal.
    const script = 'set -m; "$@" & trap "kill -KILL $!" TERM; wait';
    const c = child('stop', [window.slaveFd, window.slaveFd], ['setsid', '--ctty', 'sh', '-c', script, 'sh']);
    await until(() => window.seen.includes('ready'), 'output from the background');
    expect(getTermios(window.slaveFd, 'test')).toEqual(cooked);
    c.kill('SIGTERM');
    await exited(c);
  });
});

describe('without a terminal', () => {
  test('a pipe is read, its end is no error and costs no CPU time', async () => {
    const c = child('stop', ['pipe', 'pipe']);
    let out = '';
    c.stdout?.on('data', (d) => (out += d));
    await until(() => out.includes('ready'), 'start');
    c.stdin?.end('abc');
    await until(() => out.includes('<abc>'), 'input');
    const cpuTicks = () => {
      const fields = readFileSync(`/proc/${c.pid}/stat`, 'latin1').split(') ')[1]?.split(' ') ?? [];
      return Number(fields[11]) + Number(fields[12]);
    };
    await sleep(50); // let it notice the end
    const before = cpuTicks();
    await sleep(300);
    expect(cpuTicks() - before).toBeLessThan(15); // a spinning loop would use all 30 ticks of 10 ms
    expect(c.exitCode).toBeNull();
  });

  test('nothing is lost at the end when the reader of the pipe is slow', async () => {
    const c = child('big', ['pipe', 'pipe']);
    const over = exited(c);
    let received = 0;
    let text = '';
    c.stdout?.on('data', (d: Buffer) => {
      if (received === 0) text = d.toString('latin1', 0, 5);
      received += d.length;
      c.stdout?.pause();
      setTimeout(() => c.stdout?.resume(), 5);
    });
    await over;
    await until(() => c.stdout?.readableEnded === true, 'end of output');
    expect(text).toBe('ready');
    expect(received).toBe('ready'.length + 600_000);
  });

  test('a reader that goes away ends the output, not the process', async () => {
    const c = child('stop', ['pipe', 'pipe']);
    let out = '';
    let errors = '';
    c.stdout?.on('data', (d) => (out += d));
    c.stderr?.on('data', (d) => (errors += d));
    await until(() => out.includes('ready'), 'start');
    c.stdout?.destroy();
    c.stdin?.write('hello');
    await until(() => errors.includes('stdout was closed'), 'the warning');
    const over = exited(c);
    c.stdin?.write('q');
    expect(await over).toEqual({ code: 0, signal: null });
  });

  test('files: input is read to its end as the guest reads, output is complete', async () => {
    const directory = scratchDirectory();
    cleanUp.push(() => directory.remove());
    const text = 'line\n'.repeat(3000);
    writeFileSync(directory.file('in'), text);
    const stdio = { input: openSync(directory.file('in'), 'r'), output: openSync(directory.file('out'), 'w') };
    cleanUp.push(
      () => closeSync(stdio.input),
      () => closeSync(stdio.output),
    );
    const backend = openCharBackend('stdio', { user: 'com1', log: memoryLog().log, stdio });
    let told = 0;
    backend.onReadable = () => void told++;
    await backend.start();
    expect(told).toBe(1);
    expect(readAll(backend)).toBe(text);
    writeText(backend, text);
    await backend.stop();
    expect(readFileSync(directory.file('out'), 'latin1')).toBe(text);
  });

  test('/dev/null: no input, output goes nowhere', async () => {
    const fd = openSync('/dev/null', 'r+');
    cleanUp.push(() => closeSync(fd));
    const { log, lines } = memoryLog();
    const backend = openCharBackend('stdio', { user: 'com1', log, stdio: { input: fd, output: fd } });
    await backend.start();
    writeText(backend, 'text');
    expect(backend.read()).toBe(-1);
    await backend.stop();
    expect(lines).toEqual([]);
  });
});

describe('one user at a time', () => {
  test('the second one is told who has it; it is free again after stop', async () => {
    const { window } = cookedWindow();
    const stdio = { input: window.slaveFd, output: window.slaveFd };
    const { log } = memoryLog();
    const stdioClaim = new StdioClaim();
    const first = openCharBackend('stdio', { user: 'com1', log, stdio, stdioClaim });
    const second = openCharBackend('stdio', { user: 'uart at 00:07.0', log, stdio, stdioClaim });
    await first.start();
    expect(isTerminalRaw()).toBe(true);
    await expect(async () => second.start()).rejects.toThrow(ConfigError);
    await expect(async () => second.start()).rejects.toThrow(/uart at 00:07.0.*com1/);
    await first.stop();
    expect(isTerminalRaw()).toBe(false);
    await second.start();
    await second.stop();
    await second.stop();
    await first.start(); // a full reset starts the same back ends anew
    window.type('k');
    await until(() => first.read() === 0x6b, 'input after the restart');
    await first.stop();
  });
});
