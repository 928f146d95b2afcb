/** What acrnvm can be told, a word each. */
import { spawn } from 'node:child_process';
import { rmSync } from 'node:fs';
import { constants } from 'node:os';
import { resolve } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { vmFoldersRoot } from '../../control/vm-paths.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { parseBytes } from '../../devicemodel/core/units.ts';
import {
  ClientError,
  call,
  causeCode,
  deadSocketsOfAcrnctl,
  foldersIn,
  listVms,
  socketOf,
  type VmRow,
} from './client.ts';
import { columns } from './columns.ts';
import { completionScript, type Verb } from './completion.ts';
import { attachConsole } from './console.ts';
import { examineHost } from './doctor.ts';
import { follow } from './stream.ts';
import { Top, topHead, topRow } from './top.ts';

export interface Invocation {
  readonly words: readonly string[];
  readonly isJson: boolean;
  readonly force: boolean;
  readonly isFollowing: boolean;
  readonly timeoutS: number;
  readonly since: string | undefined;
  readonly level: string | undefined;
  readonly sink: string | undefined;
  readonly intervalS: number;
  /** undefined: no end. */
  readonly count: number | undefined;
  /** Behind `--`. */
  readonly rest: readonly string[];
}

/** A word of the command line; its first argument is a VM, or not. */
interface Command extends Verb {
  /** How many words may stand behind it. */
  readonly words: number;
  run(invocation: Invocation): Promise<ExitCode | undefined>;
}

export function print(text: string): void {
  process.stdout.write(text.endsWith('\n') ? text : `${text}\n`);
}

function printJson(value: unknown): void {
  print(JSON.stringify(value, undefined, 2));
}

function needed({ words }: Invocation, at: number, what: string): string {
  const word = words[at];
  if (word === undefined || word === '') throw new ClientError(`${what} is missing`, { exitCode: ExitCode.Usage });
  return word;
}

const socket = (invocation: Invocation) => socketOf(needed(invocation, 0, 'the name of the VM'));

/** @param what of the device whose slot is the second word: `disk`. */
const deviceResource = (invocation: Invocation, what: string) =>
  `/v1/devices/${encodeURIComponent(needed(invocation, 1, 'the slot'))}/${what}`;

/** What an order leaves is told where `--json` asks for it. */
async function tellState(invocation: Invocation): Promise<undefined> {
  if (invocation.isJson) printJson(await call(socket(invocation), 'GET', '/v1/vm'));
}

/** @param usage begins with the command's name, and the VM is its first argument. */
function ofVm(usage: `${string} ${string}`, help: string, run: Command['run'], words = 1): Command {
  return { name: usage.slice(0, usage.indexOf(' ')), usage, help, takesVm: true, words, run };
}

/** One order to one VM; `--json` answers with its state. */
function order(name: string, help: string, method: string, path: string, body?: object): Command {
  return ofVm(`${name} VM`, help, async (invocation) => {
    await call(socket(invocation), method, path, body);
    return tellState(invocation);
  });
}

export const commands: readonly Command[] = [
  {
    name: 'run',
    usage: 'run FILE | run -- OPTIONS NAME',
    help: 'start a VM in the foreground, from a file or by options of acrn-dm',
    takesVm: false,
    words: 1,
    run: async (invocation) => {
      const { rest } = invocation;
      return startVm(rest.length > 0 ? rest : ['--config', needed(invocation, 0, 'the file')]);
    },
  },
  {
    name: 'ls',
    usage: 'ls',
    help: 'the VMs that run',
    takesVm: false,
    words: 0,
    run: async ({ isJson }) => {
      const vms = await listVms();
      if (isJson) printJson(vms);
      else print(table(vms));
      return undefined;
    },
  },
  ofVm('info VM', 'a VM: state, devices, consoles', async (invocation) => {
    const at = socket(invocation);
    const [vm, devices, consoles] = await Promise.all(
      ['/v1/vm', '/v1/devices', '/v1/consoles'].map((path) => call(at, 'GET', path)),
    );
    if (invocation.isJson) printJson({ ...(vm as object), devices, consoles });
    else print(infoText(vm as VmRow, devices as Device[], consoles as Console[]));
    return undefined;
  }),
  ofVm(
    'stop [-f] [-t S] VM',
    'ask the guest to shut down and wait for it, S seconds at most (60); -f: end it at once',
    stop,
  ),
  order('reset', 'start the guest anew', 'PUT', '/v1/vm/power', { action: 'reset' }),
  order('pause', 'the guest stands still', 'PUT', '/v1/vm/pause'),
  order('resume', 'a guest that is paused goes on', 'PUT', '/v1/vm/resume'),
  order('wake', 'wake a suspended guest', 'PUT', '/v1/vm/power', { action: 'wake' }),
  order('button', 'press the power button', 'PUT', '/v1/vm/power', { action: 'button' }),
  ofVm(
    'disk VM SLOT[@PORT] PATH[,OPTIONS]',
    'put a medium into a CD drive, or into a virtio-blk that was started with nodisk',
    async (invocation) => {
      const disk = deviceResource(invocation, 'disk');
      // Of this folder, and not of that in which the VM was started.
      const path = resolve(needed(invocation, 2, 'the path'));
      await call(socket(invocation), 'PUT', disk, { path });
      return tellState(invocation);
    },
    3,
  ),
  ofVm(
    'eject VM SLOT[@PORT]',
    'take the medium out of a CD drive',
    async (invocation) => {
      const disk = deviceResource(invocation, 'disk');
      await call(socket(invocation), 'DELETE', disk);
      return tellState(invocation);
    },
    2,
  ),
  ofVm(
    'resize VM SLOT [BYTES]',
    'make the image of a virtio-blk larger (1G, 512M); without a size: the host did, tell the guest',
    async (invocation) => {
      const resource = deviceResource(invocation, 'size');
      const size = invocation.words[2];
      const body = size === undefined ? {} : { sizeBytes: sizeOf(size) };
      const answer = await call(socket(invocation), 'PUT', resource, body);
      if (invocation.isJson) printJson(answer);
      else print(`${(answer as { readonly sizeBytes: number }).sizeBytes} bytes`);
      return undefined;
    },
    3,
  ),
  ofVm(
    'link VM SLOT up|down',
    'the cable of a virtio-net, in or out',
    async (invocation) => {
      const link = deviceResource(invocation, 'link');
      const state = needed(invocation, 2, 'up or down');
      if (state !== 'up' && state !== 'down') {
        throw new ClientError(`a link is up or down, not "${state}"`, { exitCode: ExitCode.Usage });
      }
      await call(socket(invocation), 'PUT', link, { up: state === 'up' });
      return tellState(invocation);
    },
    3,
  ),
  ofVm(
    'console VM [ID]',
    'this terminal as a console of the VM; Ctrl-] leaves',
    async (invocation) => {
      await attachConsole(socket(invocation), invocation.words[1]);
      return undefined;
    },
    2,
  ),
  ofVm('events [-f] [--since N] VM', 'what happened; -f: and what happens', events),
  ofVm(
    'top [--interval S] [-n COUNT] [VM...]',
    'what VMs do now: processor, memory, disks, networks; every S seconds (2)',
    top,
    Number.POSITIVE_INFINITY,
  ),
  ofVm(
    'log [-f] [--level LEVEL [--sink SINK]] VM',
    'its newest lines; -f: and those that come; --level: error, warn, notice, info or debug from now on',
    log,
  ),
  ofVm('metrics VM', "figures in Prometheus' text format", async (invocation) => {
    const at = socket(invocation);
    if (invocation.isJson) {
      printJson(await call(at, 'GET', '/v1/metrics', undefined, { headers: { accept: 'application/json' } }));
    } else print(String(await call(at, 'GET', '/v1/metrics')));
    return undefined;
  }),
  ofVm('crash VM', 'what is known of a guest after a triple fault or its watchdog', async (invocation) => {
    printJson(await call(socket(invocation), 'GET', '/v1/vm/crash'));
    return undefined;
  }),
  {
    name: 'doctor',
    usage: 'doctor',
    help: 'what of this host a VM may miss, and the command that mends it',
    takesVm: false,
    words: 0,
    run: doctor,
  },
  {
    name: 'prune',
    usage: 'prune',
    help: 'remove what killed VMs left',
    takesVm: false,
    words: 0,
    run: async ({ isJson }) => {
      // Locks need calls that Node does not have: they are loaded for this alone.
      const [{ sweepDeadFolders }, { removeDeadRegions }, { removeDeadMembers }] = await Promise.all([
        import('../../control/vm-folder.ts'),
        import('../../devicemodel/core/host/dead-regions.ts'),
        import('../../devicemodel/core/host/dead-members.ts'),
      ]);
      // What may not be looked into is said.
      foldersIn(vmFoldersRoot());
      const folders = sweepDeadFolders();
      const sockets = await deadSocketsOfAcrnctl();
      for (const { path } of sockets) rmSync(path, { force: true });
      const regions = [...removeDeadRegions(), ...(await removeDeadMembers())];
      const names = [...new Set([...folders, ...sockets.map(({ vmName }) => vmName)])].sort();
      const gone = [...names, ...regions];
      if (isJson) printJson(gone);
      else print(gone.length === 0 ? 'nothing was left' : `removed: ${gone.join(', ')}`);
      return undefined;
    },
  },
  {
    name: 'config',
    usage: 'config convert|argv|check|schema ...',
    help: 'configuration files and command lines, one as the other: as acrn-dm config',
    takesVm: false,
    words: Number.POSITIVE_INFINITY,
    run: async (invocation) => {
      const { words, rest } = invocation;
      const verb = needed(invocation, 0, 'convert, argv, check or schema');
      if (!['convert', 'argv', 'check', 'schema', 'help'].includes(verb)) {
        throw new ClientError(`config ${verb}: it is convert, argv, check or schema`, { exitCode: ExitCode.Usage });
      }
      return startVm(['config', ...words, ...(rest.length > 0 ? ['--', ...rest] : [])]);
    },
  },
  {
    name: 'completion',
    usage: 'completion bash|zsh|fish',
    help: 'a script for the shell',
    takesVm: false,
    words: 1,
    run: async (invocation) => {
      try {
        print(completionScript(needed(invocation, 0, 'the shell'), commands));
      } catch (error) {
        if (error instanceof RangeError) throw new ClientError(error.message, { exitCode: ExitCode.Usage });
        throw error;
      }
      return undefined;
    },
  },
];

/** `512M` */
function sizeOf(text: string): number {
  const bytes = parseBytes(text);
  if (bytes === undefined)
    throw new ClientError(`"${text}" is no size`, { exitCode: ExitCode.Usage, hint: '512M, 1G' });
  return bytes;
}

/** No debugger for the VM, as its own first line has it (tools/bundle/acrn-dm.js): no host has this address. */
const NO_DEBUGGER = '--inspect-port=192.0.2.1:65535';

/** acrn-dm beside this file, in its place until it ends. */
function startVm(argv: readonly string[]): Promise<ExitCode> {
  return new Promise((resolve, reject) => {
    const { NODE_OPTIONS: _ours, ...env } = process.env;
    const program = fileURLToPath(new URL('acrn-dm.js', import.meta.url));
    // The terminal sends its signals to both; what a script sends to us is meant for the VM. From before there is one: this
    // process must not end while it makes the other.
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) process.on(signal, () => child.kill(signal));
    const child = spawn(process.execPath, [NO_DEBUGGER, program, ...argv], { stdio: 'inherit', env });
    child.once('error', reject);
    // A signal's status is that of a shell.
    child.once('exit', (code, signal) => resolve((code ?? 128 + constants.signals[signal ?? 'SIGKILL']) as ExitCode));
  });
}

/** A busy VM is given this long for an answer, however little of the deadline is left. */
const MIN_ANSWER_MS = 1000;

/** How often it is looked whether a VM is gone. */
const POLL_MS = 100;

async function stop(invocation: Invocation): Promise<ExitCode | undefined> {
  await stopAndWait(socket(invocation), invocation);
  if (invocation.isJson) printJson({ name: invocation.words[0], state: 'ended' });
  return undefined;
}

/** What is at a socket. A VM has a name from before it runs until it is gone. */
interface VmThere {
  readonly state: string;
  readonly name?: string;
}

/** What a socket says of a process that is gone. Anything else is said by, or of, one that is there. */
const GONE: ReadonlySet<string | undefined> = new Set(['ENOENT', 'ECONNREFUSED', 'ECONNRESET', 'EPIPE']);

/** @returns undefined when the process is gone. @throws ClientError */
async function vmAt(at: string, timeoutMs: number): Promise<VmThere | undefined> {
  try {
    return (await call(at, 'GET', '/v1/vm', undefined, { timeoutMs })) as VmThere;
  } catch (error) {
    if (GONE.has(causeCode(error))) return undefined;
    throw error;
  }
}

/** @returns once the VM is gone. @throws ClientError */
async function stopAndWait(at: string, { force, timeoutS }: Invocation): Promise<void> {
  const deadlineMs = Date.now() + timeoutS * 1000;
  const leftMs = () => Math.max(MIN_ANSWER_MS, deadlineMs - Date.now());
  // A process that stays after its guest has nothing left to ask: it is what is stopped.
  const there = await vmAt(at, leftMs());
  const isProcessOnly = there !== undefined && there.name === undefined;
  if (isProcessOnly && !force) {
    throw new ClientError('no guest runs here, only the process is there', { hint: 'acrnvm stop -f ends it' });
  }
  const bound = { timeoutMs: leftMs() };
  if (isProcessOnly) await call(at, 'PUT', '/api/v1/vmm.shutdown', undefined, bound);
  else await call(at, 'PUT', '/v1/vm/power', force ? { action: 'off', force: true } : { action: 'shutdown' }, bound);
  for (;;) {
    const now = await vmAt(at, leftMs());
    if (now === undefined || (!isProcessOnly && (now.state === 'ended' || now.state === 'none'))) return;
    if (Date.now() > deadlineMs) {
      if (isProcessOnly) throw new ClientError(`the process did not end within ${timeoutS} s`);
      throw new ClientError(`the guest did not shut down within ${timeoutS} s`, {
        hint: 'acrnvm stop -f ends it at once',
      });
    }
    await sleep(POLL_MS);
  }
}

interface ShownEvent {
  readonly seq: number;
  readonly time: string;
  readonly source: string;
  readonly event: string;
  readonly data?: object;
}

function eventText({ time, source, event, data }: ShownEvent): string {
  return `${time} ${source}.${event}${data === undefined ? '' : ` ${JSON.stringify(data)}`}`;
}

async function events(invocation: Invocation): Promise<ExitCode | undefined> {
  const at = socket(invocation);
  const { isJson, isFollowing, since = 'oldest' } = invocation;
  const show = (event: ShownEvent) => print(isJson ? JSON.stringify(event) : eventText(event));
  if (!isFollowing) {
    for (const event of (await call(at, 'GET', `/v1/events?since=${encodeURIComponent(since)}&wait=0`)) as ShownEvent[])
      show(event);
    return undefined;
  }
  await follow(at, `/v1/events?since=${encodeURIComponent(since)}`, (event) => show(event as ShownEvent));
  return undefined;
}

interface LogLine {
  readonly seq: number;
  readonly time: string;
  readonly level: string;
  readonly message: string;
}

async function log(invocation: Invocation): Promise<ExitCode | undefined> {
  const at = socket(invocation);
  const { isJson, isFollowing, level, sink } = invocation;
  const show = (line: LogLine) =>
    print(
      isJson ? JSON.stringify(line) : `${line.time} ${line.level.padEnd(6)} ${line.message.replaceAll('\n', '\n  ')}`,
    );
  if (level !== undefined) {
    const { levels } = (await call(at, 'PUT', '/v1/log', sink === undefined ? { level } : { level, sink })) as {
      readonly levels: readonly { readonly sink: string; readonly level: number }[];
    };
    if (isJson) printJson(levels);
    else print(levels.map((each) => `${each.sink}: level ${each.level}`).join('\n'));
    if (!isFollowing) return undefined;
  }
  if (isFollowing) {
    await follow(at, '/v1/log/stream?since=oldest', (line) => show(line as LogLine));
    return undefined;
  }
  const { lines } = (await call(at, 'GET', '/v1/log')) as { readonly lines: readonly LogLine[] };
  for (const line of lines) show(line);
  return undefined;
}

const CLEAR_SCREEN = '\x1b[H\x1b[2J';

async function top({ words, isJson, intervalS, count }: Invocation): Promise<ExitCode | undefined> {
  const loads = new Top(words);
  const there = (await loads.look()).map(({ name }) => name);
  const missing = words.find((name) => !there.includes(name));
  if (missing !== undefined) {
    throw new ClientError(`no VM "${missing}" runs here`, { hint: 'acrnvm ls lists the VMs that run' });
  }
  for (let shown = 0; count === undefined || shown < count; shown++) {
    await sleep(intervalS * 1000);
    const now = await loads.look();
    if (isJson) print(JSON.stringify(now));
    else print(`${process.stdout.isTTY === true ? CLEAR_SCREEN : ''}${columns([topHead, ...now.map(topRow)])}`);
  }
  return undefined;
}

async function doctor({ isJson }: Invocation): Promise<ExitCode | undefined> {
  const findings = await examineHost();
  if (isJson) printJson(findings);
  else {
    const width = Math.max(...findings.map(({ what }) => what.length));
    for (const { what, verdict, detail, mend } of findings) {
      print(`${verdict.padEnd(5)} ${what.padEnd(width)}  ${detail}`);
      if (mend !== undefined) print(`${' '.repeat(width + 8)}${mend}`);
    }
  }
  return findings.some(({ verdict }) => verdict === 'fail') ? ExitCode.Unavailable : undefined;
}

interface Device {
  readonly slot: string;
  readonly driver: string;
  readonly options: string;
}
interface Console {
  readonly id: string;
  readonly backend: string;
}

const MIB = 1024 * 1024;

function table(vms: readonly VmRow[]): string {
  if (vms.length === 0) return 'no VM runs here';
  const rows = vms.map(({ name, state, hypervisor = '', memoryBytes, uptimeS, pid }) => [
    name,
    state,
    hypervisor,
    memoryBytes === undefined ? '' : `${memoryBytes / MIB} MiB`,
    uptimeS === undefined ? '' : `${uptimeS} s`,
    pid === undefined ? '' : String(pid),
  ]);
  return columns([['NAME', 'STATE', 'HYPERVISOR', 'MEMORY', 'UP', 'PID'], ...rows]);
}

function infoText(vm: VmRow, devices: readonly Device[], consoles: readonly Console[]): string {
  return [
    ...Object.entries(vm).map(([key, value]) => `${key}: ${value}`),
    'devices:',
    ...devices.map(({ slot, driver, options }) => `  ${slot} ${driver}${options === '' ? '' : ` ${options}`}`),
    'consoles:',
    ...consoles.map(({ id, backend }) => `  ${id} ${backend}`),
  ].join('\n');
}
