/**
 * Signals of a VM on /dev/acrn_hsm, the built program under the recorder that plays the HSM driver (HSMREC; .ci/run has it):
 * every number that can be sent, at moments of a VM's life that the recorder's trace shows.
 */
import { spawn } from 'node:child_process';
import {
  closeSync,
  existsSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { SignalAction, signalActions } from '../../devicemodel/core/host/process-signals.ts';
import { demoGuest, repository } from '../support/program.ts';

const recorder = process.env['HSMREC'];
const TIMEOUT_MS = 120_000;
const { signals } = constants;
const numberOf = (name: string) => signals[name as NodeJS.Signals];
const byAction = (wanted: (action: SignalAction) => boolean) =>
  Object.entries(signalActions).flatMap(([name, action]) => (wanted(action) ? [name] : []));
const powersOff = byAction((action) => action === SignalAction.powerOff);
/** Nobody can catch two of them, one is V8's, three stop the process. */
const others = ['SIGKILL', 'SIGSTOP', 'SIGSEGV', 'SIGTSTP', 'SIGTTIN', 'SIGTTOU'].map(numberOf);
const enders = byAction((action) => action !== SignalAction.ignore).map(numberOf);
const harmless = Array.from({ length: 64 }, (_, i) => i + 1).filter(
  (number) => !others.includes(number) && !enders.includes(number),
);

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'hsm-signals-'));
});
afterEach(() => rmSync(folder, { recursive: true, force: true }));

interface Event {
  readonly ev: string;
  readonly name?: string;
  readonly op?: string;
}

/** A VM under the recorder. @param actions of its guest, once it runs. */
class Recorded {
  readonly exited: Promise<number | null>;
  readonly #trace = join(folder, 'trace.jsonl');
  readonly #stderr = join(folder, 'stderr.txt');

  constructor(actions: readonly object[], atEnd: string, options: readonly string[] = []) {
    const script = join(folder, 'script.json');
    writeFileSync(
      script,
      JSON.stringify({ config: { stdin: 'null', timeout_ms: TIMEOUT_MS, at_end: atEnd }, actions }),
    );
    closeSync(openSync(this.#trace, 'w'));
    const machine = ['-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-k', demoGuest, '--cpu_affinity', '0'];
    const sockets = ['--cmd_monitor', join(folder, 'monitor'), '-l', `com1,unix:${join(folder, 'com1')}`];
    const program = [join(repository, 'dist/acrn-dm.js'), ...machine, ...sockets, ...options, `sig${process.pid}`];
    const recording = ['--script', script, '--out', this.#trace, '--stderr', this.#stderr, '--'];
    const child = spawn(recorder ?? '', [...recording, process.execPath, ...program], {
      stdio: 'ignore',
    });
    this.exited = new Promise((resolve) => child.on('close', resolve));
    this.#recorderPid = child.pid ?? -1;
  }
  readonly #recorderPid: number;

  get stderr(): string {
    return readFileSync(this.#stderr, 'utf8');
  }

  get events(): Event[] {
    const lines = readFileSync(this.#trace, 'utf8').split('\n');
    return lines.slice(0, -1).map((line) => JSON.parse(line) as Event);
  }

  /** Calls of the program to the driver, by name; `open` is the first. */
  get calls(): string[] {
    return this.events.flatMap(({ ev, name = ev }) => (ev === 'ioctl' || ev === 'open' ? [name] : []));
  }

  /** Resolves when the program makes this call, with the program's process id. */
  async calling(name: string): Promise<number> {
    while (!this.calls.includes(name)) {
      if (this.events.at(-1)?.ev === 'exit') throw new Error(`no ${name}: ${this.stderr}`);
      await sleep(1);
    }
    const children = readFileSync(`/proc/${this.#recorderPid}/task/${this.#recorderPid}/children`, 'utf8');
    const pid = Number(children.trim().split(' ')[0]);
    // 0 would be this process's own group.
    if (pid === 0) throw new Error(`the program ended at ${name}: ${this.stderr}`);
    return pid;
  }
}

function kill(pid: number, number: number): void {
  try {
    process.kill(pid, number);
  } catch {
    // It has ended.
  }
}

/** What the VM should not leave. */
function left(): string[] {
  const names = existsSync('/run/acrn/mngr') ? readdirSync('/run/acrn/mngr') : [];
  return [
    ...names.filter((name) => name.includes(`sig${process.pid}`)),
    ...readdirSync(folder).filter((name) => name === 'monitor' || name === 'com1'),
  ];
}

async function inGoodOrder(vm: Recorded): Promise<void> {
  const status = await vm.exited;
  expect({ status, stderr: vm.stderr.match(/internal|Debugger|rror:.*/g), left: left() }).toEqual({
    status: 0,
    stderr: null,
    left: [],
  });
  expect(vm.calls).toContain('PAUSE_VM');
  expect(lastCall(vm)).toBe('DESTROY_VM');
}

/** Under a recorder a thread of its own waits: on a busy machine it may begin to when the VM is gone. */
function lastCall({ calls }: Recorded): string | undefined {
  return calls.filter((name) => name !== 'ATTACH_IOREQ_CLIENT').at(-1);
}

describe.skipIf(recorder === undefined)('on /dev/acrn_hsm', { timeout: TIMEOUT_MS }, () => {
  test('every signal that is ignored by design leaves the running VM alone', async () => {
    const actions = harmless.flatMap((number) => [{ op: 'signal', sig: String(number) }]);
    const alive = { op: 'pio_read', port: '0x71', size: 1 };
    const vm = new Recorded([...actions, { op: 'sleep', ms: 50 }, alive, ...actions, alive], 'SIGINT');
    await inGoodOrder(vm);
    const answered = vm.events.filter(({ ev, op }) => ev === 'guest' && op === 'pio_read');
    expect(answered).toHaveLength(2);
    expect(answered).not.toContainEqual(expect.objectContaining({ timeout: true }));
  });

  test.each(powersOff)('%s powers a running VM off', async (name) => {
    const vm = new Recorded(
      [
        { op: 'signal', sig: String(numberOf(name)) },
        { op: 'wait_exit', timeout_ms: 60_000 },
      ],
      'none',
    );
    await inGoodOrder(vm);
    expect(vm.stderr).toContain(`received ${name}`);
  });

  test('SIGTERM asks the guest, and ends the VM when it does not answer', async () => {
    const actions = [
      { op: 'signal', sig: 'SIGTERM' },
      { op: 'wait_exit', timeout_ms: 60_000 },
    ];
    await inGoodOrder(new Recorded(actions, 'none', ['--shutdown-timeout', '1']));
  });

  test.each([
    ['open', 'SIGHUP'],
    ['CREATE_VM', 'SIGINT'],
    ['CREATE_VM', 'SIGTERM'],
    ['SET_MEMSEG', 'SIGQUIT'],
    ['SET_VCPU_REGS', 'SIGHUP'],
    ['CREATE_IOREQ_CLIENT', 'SIGPWR'],
    ['START_VM', 'SIGXCPU'],
    ['START_VM', 'SIGTERM'],
  ])('from %s on: %s ends the VM as if it had come later', async (call, name) => {
    const vm = new Recorded([{ op: 'wait_exit', timeout_ms: 60_000 }], 'none', ['--shutdown-timeout', '1']);
    const pid = await vm.calling(call);
    for (const number of harmless) kill(pid, number);
    kill(pid, numberOf(name));
    const status = await vm.exited;
    expect({ status, left: left() }).toEqual({ status: 0, left: [] });
    // It was asked for, so it is given back; paused, if it ever ran.
    expect(lastCall(vm), vm.calls.join(' ')).toBe('DESTROY_VM');
    expect(vm.calls.includes('PAUSE_VM') || !vm.calls.includes('START_VM')).toBe(true);
  });

  test.each(['PAUSE_VM', 'DESTROY_IOREQ_CLIENT', 'DESTROY_VM'])(
    'from %s on no signal changes anything',
    async (call) => {
      const vm = new Recorded([], 'SIGINT');
      const pid = await vm.calling(call);
      for (let i = 0; i < 5; i++) for (const number of [...harmless, ...enders]) kill(pid, number);
      await inGoodOrder(vm);
    },
  );
});
