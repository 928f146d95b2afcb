/**
 * `--cmd_monitor PATH`: a Unix stream socket that takes JSON objects and answers with JSON objects, spoken by libvirt
 * and other managers (C: core/cmd_monitor). Requests have no framing: an object ends where its last brace closes.
 */
import type { Socket } from 'node:net';
import type { Clock } from '../devicemodel/core/clock.ts';
import { attributed, ConfigError } from '../devicemodel/core/errors.ts';
import { listenUnix, type UnixListener } from '../devicemodel/core/host/unix-listener.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { VmEvent, VmEvents } from '../devicemodel/core/vm-events.ts';
import { Clients } from './clients.ts';
import type { FrontDoor } from './front-doors.ts';
import type { VmCommands } from './vm-commands.ts';
import { VmEventPublisher } from './vm-event-publisher.ts';

/** A request that does not end within this many bytes is none [CLIENT_BUF_LEN]. */
const MAX_REQUEST_BYTES = 4096;
/** Longest `arguments` [CMD_ARG_MAX - 1]. */
const MAX_ARGUMENT_BYTES = 319;
/** Compat: the C device model serves one client at a time and lets the others wait. */
const MAX_CLIENTS = 8;
/** And so many more may wait for one of those to have nothing to do. */
const MAX_WAITING = 24;
/** Of a name that nobody knows. */
const MAX_SHOWN_CHARS = 64;
/** Replies and events a client has not read yet; a client that lets more pile up is cut off. */
const MAX_UNREAD_BYTES = 64 * 1024;

export interface CmdMonitorOptions {
  readonly path: string;
  /** Who may connect beside this user. */
  readonly socketGroup?: string | undefined;
  readonly commands: VmCommands;
  /** Where events are told. */
  readonly events: VmEvents;
  readonly log: Log;
  readonly clock: Clock;
}

interface Request {
  readonly command: string;
  readonly argument: string;
}

/** What is no request, and what is wrong with it. */
interface BadRequest {
  readonly problem: string;
}

/**
 * The reply as cJSON_Print writes it: tabs, one member a line, no final newline.
 * Compat: C leaves what it does not understand without an answer, and its client waits; here `error` says why.
 */
function ackText(isDone: boolean, error?: string): string {
  const why = error === undefined ? '' : `,\n\t"error":\t${JSON.stringify(error)}`;
  return `{\n\t"ack":\t${isDone ? 0 : -1}${why}\n}`;
}

const TOO_LONG: BadRequest = { problem: `longer than ${MAX_REQUEST_BYTES} bytes` };

const OPEN_BRACE = 0x7b;
const CLOSE_BRACE = 0x7d;
const QUOTE = 0x22;
const BACKSLASH = 0x5c;
/** What may stand between two objects: blanks, and the end mark that C clients send with their text. */
const BETWEEN = new Set([0x00, 0x09, 0x0a, 0x0d, 0x20]);

/** Where the object that starts at `from` ends (exclusive), or -1 while it is incomplete. */
function endOfObject(bytes: Uint8Array, from: number): number {
  let depth = 0;
  let isInString = false;
  for (let i = from; i < bytes.length; i++) {
    const byte = bytes[i];
    if (isInString) {
      if (byte === BACKSLASH) i++;
      else if (byte === QUOTE) isInString = false;
    } else if (byte === QUOTE) isInString = true;
    else if (byte === OPEN_BRACE) depth++;
    else if (byte === CLOSE_BRACE && --depth === 0) return i + 1;
  }
  return -1;
}

function parseRequest(text: string): Request | BadRequest {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch {
    return { problem: 'not JSON' };
  }
  const { command, arguments: argument } = (value ?? {}) as { command?: unknown; arguments?: unknown };
  if (typeof command !== 'string') return { problem: 'no "command"' };
  return { command, argument: typeof argument === 'string' ? argument : '' };
}

/**
 * Cuts what a client sends into requests. One client's garbage costs it only its own garbage; at most
 * {@link MAX_REQUEST_BYTES} are kept.
 */
export class RequestParser {
  #rest: Uint8Array = new Uint8Array(0);

  /** Whether a request was begun whose end is to come. */
  get isUnfinished(): boolean {
    return this.#rest.length > 0;
  }

  /** @returns the complete requests, and what was none, in order. */
  push(chunk: Uint8Array): (Request | BadRequest)[] {
    const requests = this.#take(this.#rest.length === 0 ? chunk : Buffer.concat([this.#rest, chunk]));
    if (requests.length === 0 && this.#rest.length > chunk.length) {
      // A request that was cut off for good must not swallow the next one: the C device model takes each send alone.
      const kept = this.#rest;
      const alone = this.#take(chunk);
      if (alone.some((request) => 'command' in request))
        return [{ problem: 'a request that was not finished' }, ...alone];
      this.#rest = kept;
    }
    if (this.#rest.length > MAX_REQUEST_BYTES) {
      this.#rest = new Uint8Array(0);
      requests.push(TOO_LONG);
    }
    return requests;
  }

  #take(bytes: Uint8Array): (Request | BadRequest)[] {
    const requests: (Request | BadRequest)[] = [];
    const passOver = (from: number, to: number) => {
      if (bytes.subarray(from, to).some((byte) => !BETWEEN.has(byte))) requests.push({ problem: 'not a JSON object' });
    };
    let end = 0;
    let at = bytes.indexOf(OPEN_BRACE);
    for (; at >= 0; at = bytes.indexOf(OPEN_BRACE, end)) {
      passOver(end, at);
      const next = endOfObject(bytes, at);
      if (next < 0) break;
      end = next;
      const isTooLong = end - at > MAX_REQUEST_BYTES;
      requests.push(isTooLong ? TOO_LONG : parseRequest(Buffer.from(bytes.subarray(at, end)).toString()));
    }
    if (at < 0) passOver(end, bytes.length);
    this.#rest = at < 0 ? new Uint8Array(0) : bytes.slice(at);
    return requests;
  }
}

/**
 * The server. Events go to the one client that registered for them (`register_vm_event_client`), throttled as
 * {@link VmEventPublisher} says.
 */
export class CmdMonitor implements FrontDoor {
  readonly #path: string;
  readonly #commands: VmCommands;
  readonly #events: VmEvents;
  readonly #log: Log;
  readonly #publisher: VmEventPublisher;
  readonly #group: string | undefined;
  readonly #clients: Clients;
  #eventClient: Socket | undefined;
  /** Who asked for the end: its program is let go first, so that what runs it sees a reply and then the VM end. */
  #destroyer: Socket | undefined;
  #listener: UnixListener | undefined;

  constructor(options: CmdMonitorOptions) {
    this.#path = options.path;
    this.#commands = options.commands;
    this.#events = options.events;
    this.#log = options.log.child('command monitor');
    this.#group = options.socketGroup;
    this.#clients = new Clients({
      maxClients: MAX_CLIENTS,
      maxWaiting: MAX_WAITING,
      isKept: (socket) => socket === this.#eventClient,
      onCut: (why) => this.#log.rationed('warn', () => why),
    });
    this.#publisher = new VmEventPublisher({
      clock: options.clock,
      log: options.log,
      send: (text) => this.#sendEvent(text),
    });
  }

  /** @throws ConfigError for a path that cannot be one, HostError when it cannot be made or is in use. */
  async start(): Promise<void> {
    if (this.#listener !== undefined) return;
    try {
      this.#listener = await listenUnix(this.#path, (socket) => this.#accept(socket), { group: this.#group });
    } catch (error) {
      throw attributed('--cmd_monitor', error);
    }
    this.#events.on('event', this.#onVmEvent);
    this.#log.info(`on ${this.#path}`);
  }

  /** Lets clients take their last reply, then closes. Safe twice. */
  async close(): Promise<void> {
    this.#events.off('event', this.#onVmEvent);
    this.#publisher.stop();
    this.#listener?.close();
    this.#listener = undefined;
    await this.#clients.close(this.#destroyer);
  }

  readonly #onVmEvent = (event: VmEvent): void => this.#publisher.publish(event);

  #accept(socket: Socket): void {
    if (!this.#clients.admit(socket)) return;
    const parser = new RequestParser();
    // One after the other: a rescan may take a while, and replies carry no number.
    const queue = (step: () => void | Promise<void>) => this.#clients.queue(socket, step);
    socket.on('data', (chunk) => {
      const requests = parser.push(chunk);
      this.#clients.setUnfinished(socket, parser.isUnfinished);
      if (requests.length === 0) return;
      // Read on when these are answered: what a client sends meanwhile stays with it.
      socket.pause();
      for (const request of requests) queue(() => this.#serve(socket, request));
      queue(() => void socket.resume());
    });
    socket.on('end', () => {
      // The client sends nothing more, but may still wait for replies; events are over.
      if (this.#eventClient === socket) this.#eventClient = undefined;
      queue(() => void socket.end());
    });
    socket.on('close', () => {
      if (this.#eventClient === socket) this.#eventClient = undefined;
    });
  }

  async #serve(socket: Socket, request: Request | BadRequest): Promise<void> {
    if ('problem' in request) {
      this.#log.rationed('debug', () => request.problem);
      this.#write(socket, ackText(false, request.problem));
      return;
    }
    let isDone: boolean;
    try {
      const result = await this.#run(socket, request);
      if (result === undefined) {
        const name = JSON.stringify(request.command.slice(0, MAX_SHOWN_CHARS));
        this.#log.rationed('warn', () => `command ${name} is not supported`);
        this.#write(socket, ackText(false, `unknown command ${name}`));
        return;
      }
      isDone = result;
    } catch (error) {
      this.#log.rationed('error', () => `${request.command}: ${(error as Error).message}`);
      isDone = false;
    }
    this.#log.rationed('info', () => `${request.command} ${isDone ? 'done' : 'refused'}`);
    this.#write(socket, ackText(isDone));
  }

  #run(socket: Socket, { command, argument }: Request): boolean | Promise<boolean> | undefined {
    switch (command) {
      case 'destroy':
        this.#destroyer = socket;
        return this.#commands.run('destroy', { reason: 'asked by the command monitor' });
      case 'blkrescan':
        // Compat: C cuts a longer argument silently, and would open another file than the one meant.
        return Buffer.byteLength(argument) > MAX_ARGUMENT_BYTES
          ? false
          : this.#commands.run('blkrescan', { medium: argument });
      case 'eject':
      case 'insert':
        return this.#changeMedium(command, argument);
      case 'register_vm_event_client':
        if (this.#eventClient !== undefined) return false;
        this.#eventClient = socket;
        return true;
      default:
        return undefined;
    }
  }

  /** `SLOT[@PORT]` of a CD drive, and for `insert` behind a comma what is put into it. */
  async #changeMedium(command: 'eject' | 'insert', argument: string): Promise<boolean> {
    const [, slot, port, medium] = /^([\d:]+)(?:@(\d+))?(?:,(.+))?$/s.exec(argument) ?? [];
    if (slot === undefined || (command === 'insert') !== (medium !== undefined)) {
      throw new ConfigError(`expected SLOT[@PORT]${command === 'insert' ? ',PATH[,OPTIONS]' : ''}`);
    }
    const drive = { slot, port: Number(port ?? 0) };
    if (medium === undefined) await this.#commands.run('eject', drive);
    else await this.#commands.run('insert', { ...drive, medium });
    return true;
  }

  #sendEvent(text: string): void {
    if (this.#eventClient !== undefined) this.#write(this.#eventClient, text);
  }

  #write(socket: Socket, text: string): void {
    if (socket.destroyed || socket.writableEnded) return;
    if (socket.writableLength > MAX_UNREAD_BYTES) {
      this.#log.rationed('warn', () => 'a client does not read what it asked for and was cut off');
      socket.destroy();
      return;
    }
    socket.write(text);
  }
}
