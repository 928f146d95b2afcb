/**
 * Loaded by `node --require` before the built program, and by each of its threads: stands between the program and its
 * host. The n-th call of a name fails with an errno if the order says so. The program knows nothing of it.
 *
 * FAULTS, in the environment, is a {@link FaultOrder} as JSON.
 */
import { createHash } from 'node:crypto';
import fs from 'node:fs';
import { createRequire, syncBuiltinESMExports } from 'node:module';
import net from 'node:net';
import { join } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import workers from 'node:worker_threads';
import { type Ending, type GuestMachine, runGuest } from './guest.ts';
import { HsmPlayer, ioctlNames } from './hsm-player.ts';

export interface FaultOrder {
  readonly repository: string;
  /** Folder of this run; what happened stands in files of it. */
  readonly scratch: string;
  /** Each fails once. Of those that did, `hit` has a line each: index and place. */
  readonly faults?: readonly {
    readonly thread: string;
    readonly call: string;
    readonly nth: number;
    readonly errno: number;
  }[];
  /** Write down every call, and where in the program it is made. */
  readonly isCensus?: boolean;
  /** Play the HSM: with a wait that a signal ends, or one that another thread has to do. */
  readonly hsm?: 'blocking' | 'polled';
  readonly disks: readonly number[];
  readonly endings: readonly Ending[];
}

const order = JSON.parse(process.env['FAULTS'] ?? '{}') as FaultOrder;
const thread = workers.isMainThread ? 'main' : 'tid' in (workers.workerData ?? {}) ? 'watcher' : 'data';
/** The functions as they were. */
const real = { ...fs };
let isInside = false;
/** How often this thread made each call. */
const counts = new Map<string, number>();
/** Every call, in order. */
const census: string[] = [];

/** @param about a path, for one. @returns the errno with which this call is to fail, or 0. */
function errnoOf(call: string, about?: unknown): number {
  if (isInside) return 0;
  if (order.isCensus === true) census.push(`${thread}\t${call}\t${placeOf(about)}`);
  const nth = (counts.get(call) ?? 0) + 1;
  counts.set(call, nth);
  const index = (order.faults ?? []).findIndex((f) => f.thread === thread && f.call === call && f.nth === nth);
  if (index === -1) return 0;
  note('hit', `${index}\t${placeOf(about)}`);
  return order.faults?.[index]?.errno ?? 0;
}

const MAX_FRAMES = 40;

/** The same for calls from the same lines of the program about the same kind of thing. */
function placeOf(about: unknown): string {
  return withoutFaults(() => {
    const limit = Error.stackTraceLimit;
    Error.stackTraceLimit = MAX_FRAMES;
    const frames = (new Error().stack ?? '').split('\n').filter((line) => !line.includes('preload.cjs'));
    Error.stackTraceLimit = limit;
    const thing = typeof about === 'string' ? about.replace(order.scratch, '').replaceAll(/\d+/g, 'N') : '';
    return createHash('sha1').update(frames.join()).update(thing).digest('hex').slice(0, 12);
  });
}

function withoutFaults<T>(work: () => T): T {
  const was = isInside;
  isInside = true;
  try {
    return work();
  } finally {
    isInside = was;
  }
}

function note(file: string, line: string): void {
  withoutFaults(() => real.appendFileSync(join(order.scratch, file), `${line}\n`));
}

function nodeError(errno: number, syscall: string, path?: unknown): NodeJS.ErrnoException {
  const [name, text] = getSystemErrorMap().get(-errno) ?? ['UNKNOWN', 'unknown error'];
  const where = typeof path === 'string' ? ` '${path}'` : '';
  const error = Object.assign(new Error(`${name}: ${text}, ${syscall}${where}`), {
    errno: -errno,
    code: name,
    syscall,
  });
  return typeof path === 'string' ? Object.assign(error, { path }) : error;
}

/** What belongs to the host for all VMs stands in the folder of this run instead. */
const ELSEWHERE = ['/run/acrn', '/run/hugepage', '/sys/kernel/mm/hugepages', '/var/log/acrn'];
const MADT = '/sys/firmware/acpi/tables/APIC';

function elsewhere(path: unknown): unknown {
  if (typeof path !== 'string') return path;
  const place = ELSEWHERE.find((p) => path === p || path.startsWith(`${p}/`));
  if (place !== undefined) return join(order.scratch, path);
  return path === MADT && order.hsm !== undefined ? join(order.scratch, 'madt') : path;
}

/** Node's own files, and the program's, are not the host. */
const isOwnFile = (path: unknown) => typeof path === 'string' && path.startsWith(order.repository);
const isHsmNode = (path: unknown) => typeof path === 'string' && path.startsWith('/dev/acrn_');

/** A pool of huge pages gives as many as are asked for. */
function afterWrite(path: unknown): void {
  if (typeof path !== 'string' || !path.endsWith('/nr_hugepages')) return;
  const pages = real.readFileSync(path, 'utf8');
  real.writeFileSync(join(path, '../free_hugepages'), pages);
}

type AnyFunction = (...args: unknown[]) => unknown;

function patchFs(): void {
  const target = fs as unknown as Record<string, AnyFunction>;
  const names = Object.keys(fs).filter(
    (name) => name.endsWith('Sync') || ['fdatasync', 'open', 'write', 'close'].includes(name),
  );
  for (const name of names) {
    const original = target[name];
    if (typeof original !== 'function' || name === 'existsSync') continue;
    target[name] = (first: unknown, ...rest: unknown[]) => {
      if (isInside || isOwnFile(first)) return withoutFaults(() => original(first, ...rest));
      const path = elsewhere(first);
      const errno = errnoOf(name, first);
      const done = rest.at(-1);
      if (errno !== 0 && name.endsWith('Sync')) {
        if (name === 'closeSync') withoutFaults(() => original(path, ...rest));
        throw nodeError(errno, name.replace('Sync', ''), first);
      }
      if (errno !== 0 && typeof done === 'function') {
        // The descriptor is gone whatever close(2) says.
        if (name === 'close') withoutFaults(() => original(path));
        setImmediate(() => done(nodeError(errno, name, first)));
        return undefined;
      }
      if (order.hsm !== undefined && name === 'accessSync' && isHsmNode(path)) {
        if (path === '/dev/acrn_hsm') return undefined;
      }
      const result = withoutFaults(() => original(path, ...rest));
      if (name === 'writeFileSync') afterWrite(path);
      return result;
    };
  }
  const exists = real.existsSync;
  fs.existsSync = (path) => {
    if (path === '/sys/class/misc/acrn_hsm' && order.hsm !== undefined) return order.hsm === 'blocking';
    return exists(elsewhere(path) as string);
  };
  const readFile = fs.promises.readFile as AnyFunction;
  (fs.promises as unknown as Record<string, AnyFunction>)['readFile'] = async (path: unknown, ...rest: unknown[]) => {
    const errno = isOwnFile(path) ? 0 : errnoOf('readFile', path);
    if (errno !== 0) throw nodeError(errno, 'open', path);
    return readFile(path, ...rest);
  };
  syncBuiltinESMExports();
}

function patchNet(): void {
  const server = net.Server.prototype as unknown as { listen: AnyFunction };
  const { listen } = server;
  server.listen = function (this: net.Server, ...args: unknown[]) {
    const errno = errnoOf('listen');
    if (errno !== 0) {
      process.nextTick(() => this.emit('error', nodeError(errno, 'listen')));
      return this;
    }
    const [options, ...rest] = args;
    const { path } = (options ?? {}) as { path?: string };
    const moved = path === undefined ? elsewhere(options) : { ...(options as object), path: elsewhere(path) };
    return withoutFaults(() => listen.call(this, moved, ...rest));
  };
  const socket = net.Socket.prototype as unknown as { connect: AnyFunction; _writeGeneric: AnyFunction };
  const { connect, _writeGeneric } = socket;
  socket.connect = function (this: net.Socket, ...args: unknown[]) {
    const errno = errnoOf('connect');
    if (errno !== 0) {
      process.nextTick(() => this.destroy(nodeError(errno, 'connect')));
      return this;
    }
    // Normalised by then: one array with options and callback.
    const first = args[0] as unknown[];
    const options = (Array.isArray(first) ? first[0] : first) as { path?: string };
    if (options?.path !== undefined) options.path = elsewhere(options.path) as string;
    return withoutFaults(() => connect.apply(this, args));
  };
  socket._writeGeneric = function (this: net.Socket, ...args: unknown[]) {
    const errno = errnoOf('socket write');
    if (errno === 0) return _writeGeneric.apply(this, args);
    (args[3] as (error: Error) => void)(nodeError(errno, 'write'));
    return undefined;
  };
}

function patchThreads(): void {
  const RealWorker = workers.Worker;
  (workers as { Worker: unknown }).Worker = class extends RealWorker {
    constructor(...args: ConstructorParameters<typeof RealWorker>) {
      const errno = errnoOf('thread');
      if (errno !== 0) {
        throw Object.assign(new Error('Worker initialization failure: EAGAIN'), { code: 'ERR_WORKER_INIT_FAILED' });
      }
      super(...args);
    }
  };
}

type NativeFunction = AnyFunction & { async: AnyFunction };

interface Koffi {
  load(path: null): { func(prototype: string): NativeFunction; symbol(name: string): unknown };
  errno(): number;
  view(address: bigint, sizeBytes: number): ArrayBuffer;
  node: { poll: AnyFunction };
}

const MAP_FAILED = 0xffff_ffff_ffff_ffffn;
const MFD_HUGETLB = 4;
const MFD_HUGE_SHIFT = 26;
/** Calls that do not fail if they are called rightly, or that the program must not be kept from. */
const NEVER = new Set([
  '_exit',
  'gettid',
  'sched_yield',
  'umask',
  'cfmakeraw',
  'getpgrp',
  'tcflush',
  'ptsname_r',
  'tcgetpgrp',
]);

class NativeCalls {
  readonly #realErrno: () => number;
  /** Of a call that was made to fail, until the next one. */
  #errno = 0;
  readonly #hsmFds = new Set<number>();
  readonly #player: HsmPlayer;

  constructor(koffi: Koffi) {
    this.#realErrno = koffi.errno.bind(koffi);
    const load = koffi.load.bind(koffi);
    const library = load(null);
    const poll = library.func('int poll(void *, unsigned long, int)');
    const write = library.func('int64_t write(int, const void *, size_t)');
    let starts = 0;
    this.#player = new HsmPlayer(
      {
        view: (address, sizeBytes) => new Uint8Array(koffi.view(address, sizeBytes)),
        sleep: (ms) => poll(null, 0, ms) === -1,
        signalEventfd: (fd) => void write(fd, new BigUint64Array([1n]), 8),
        note: (state) => note('vm', state),
      },
      (machine: GuestMachine) =>
        runGuest(
          machine,
          {
            disks: order.disks,
            endings: order.endings,
            onFlushed: (disk, sector) => note('flushed', `${disk} ${sector}`),
            onSilent: (disk) => note('silent', String(disk)),
          },
          starts++,
        ),
    );
    koffi.load = () => ({
      func: (prototype: string) => this.#wrap(prototype, library.func(prototype)),
      symbol: (name: string) => library.symbol(name),
    });
    koffi.errno = () => (this.#errno === 0 ? this.#realErrno() : this.#errno);
    const watch = koffi.node.poll.bind(koffi.node);
    koffi.node.poll = (...args) => {
      const errno = errnoOf('watch');
      if (errno !== 0) throw new Error('Failed to create event poll');
      return watch(...args);
    };
  }

  #wrap(prototype: string, original: NativeFunction): NativeFunction {
    const name = /(\w+)\(/.exec(prototype)?.[1] ?? '';
    if (NEVER.has(name) || name.startsWith('uv_')) return original;
    const fail = name === 'mmap' ? MAP_FAILED : prototype.startsWith('void *') ? null : -1;
    const before = (args: unknown[]): { result: unknown } | undefined => {
      this.#errno = 0;
      const call = callName(name, args);
      const errno = errnoOf(call, args[0]);
      if (errno !== 0) {
        if (name === 'close') original(...args);
        this.#errno = errno;
        return { result: fail };
      }
      return this.#instead(name, args, original);
    };
    const wrapped = (...args: unknown[]) => {
      const instead = before(args);
      return instead === undefined ? original(...args) : instead.result;
    };
    // A call on another thread: its errno is asked for in the callback.
    const onThread = (...args: unknown[]) => {
      const done = args.pop() as (error: null, result: unknown) => void;
      const answer = (result: unknown) => setImmediate(() => done(null, result));
      if (name === 'ioctl' && this.#hsmFds.has(args[0] as number)) {
        const errno = errnoOf(callName(name, args));
        if (errno !== 0) {
          setImmediate(() => {
            this.#errno = errno;
            done(null, -1);
          });
          return;
        }
        this.#attachLater(done);
        return;
      }
      const instead = before(args);
      if (instead === undefined) original.async(...args, done);
      else answer(instead.result);
    };
    return Object.assign(wrapped, { async: onThread });
  }

  #attachLater(done: (error: null, result: unknown) => void): void {
    const timer = setInterval(() => {
      const errno = this.#player.lookForRequest();
      if (errno === undefined) return;
      clearInterval(timer);
      this.#errno = errno;
      done(null, errno === 0 ? 0 : -1);
    }, 1);
  }

  /** The calls that are played. */
  #instead(name: string, args: unknown[], original: AnyFunction): { result: unknown } | undefined {
    if (name === 'memfd_create') {
      return { result: original(args[0], (args[1] as number) & ~(MFD_HUGETLB | (0x3f << MFD_HUGE_SHIFT))) };
    }
    if (name === 'open') {
      const path = elsewhere(args[0]);
      if (order.hsm === undefined || !isHsmNode(path)) return { result: original(path, ...args.slice(1)) };
      const fd = original('/dev/null', 2, 0) as number;
      this.#hsmFds.add(fd);
      return { result: fd };
    }
    if (name === 'close') this.#hsmFds.delete(args[0] as number);
    if (name !== 'ioctl' || !this.#hsmFds.has(args[0] as number)) return undefined;
    const request = ioctlNames.get(args[1] as number);
    if (request === undefined) throw new Error(`the driver has no ioctl ${args[1]}`);
    const errno =
      request === 'ATTACH_IOREQ_CLIENT'
        ? this.#player.attach()
        : this.#player.ioctl(request, args[2] as bigint | number | Uint8Array);
    this.#errno = errno;
    return { result: errno === 0 ? 0 : -1 };
  }
}

/** `eventfd`, `timerfd`: their reads and writes do not fail as those of files do. */
function kindOf(fd: number): string {
  const link = withoutFaults(() => {
    try {
      return real.readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '';
    }
  });
  return /^anon_inode:\[(\w+)\]$/.exec(link)?.[1] ?? 'file';
}

/** Requests and commands are calls of their own. */
function callName(name: string, args: unknown[]): string {
  if (name === 'ioctl') {
    const request = args[1] as number;
    return `ioctl:${ioctlNames.get(request) ?? `0x${request.toString(16)}`}`;
  }
  if (name === 'fcntl') return `fcntl:${args[1]}`;
  if (name === 'read' || name === 'write') return `${name}:${kindOf(args[0] as number)}`;
  return name === 'syscall' ? `syscall:${args[0]}` : name;
}

function main(): void {
  if (order.isCensus === true) process.on('exit', () => note('census', census.join('\n')));
  const require = createRequire(join(order.repository, 'package.json'));
  const koffi = require('@koromix/koffi-linux-x64/linux_x64/koffi.node') as Koffi;
  new NativeCalls(koffi);
  // The program loads the file itself (tools/bundle/koffi.cjs), which would be another instance of it.
  const { dlopen } = process;
  process.dlopen = (module: { exports: unknown }, path: string, ...rest: []) => {
    if (path.endsWith('/koffi.node')) module.exports = koffi;
    else dlopen.call(process, module, path, ...rest);
  };
  patchFs();
  patchNet();
  if (workers.isMainThread) patchThreads();
}

main();
