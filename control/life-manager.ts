/**
 * Power management over a virtual UART (`--pm_notify_channel uart`): the guest's life manager listens on the other end
 * of a serial line. `acrnctl stop` becomes `shutdown` on that line; with `allow_trigger_s5` everything the guest says
 * goes to the life manager of the Service VM and back (C: core/pm_vuart.c).
 */
import { createConnection, type Socket } from 'node:net';
import { constants } from 'node:os';
import { HostError } from '../devicemodel/core/errors.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { FrontDoor } from './front-doors.ts';
import type { VmCommands } from './vm-commands.ts';

/** The serial line's other end, as hw/uart's back ends are. */
export interface PmLine {
  read(): number;
  write(byte: number): void;
  flush(): void;
  onReadable: (() => void) | undefined;
}

/** Where the Service VM's life manager listens [SERVICE_VM_SOCKET_PORT]. */
const LIFE_MANAGER_PORT = 0x2000;
/** A message ends with one of these, or at this length [CMD_LEN]. */
const MAX_MESSAGE_BYTES = 16;
/** Of what a guest said and the life manager has not read: more would be the guest's way to all memory. */
const MAX_UNREAD_BYTES = 64 * 1024;
const NUL = 0x00;
const NEWLINE = 0x0a;
/** What life managers before release 3 know. */
const SHUTDOWN = Buffer.from('shutdown\0');
/** What those of release 3 know; they announce themselves by `sync:NAME`. */
const USER_VM_SHUTDOWN = Buffer.from('user_vm_shutdown\0');
const SYNC = Buffer.from('sync:');
/** They wait 5 s for this, and give up for good without it. */
const ACK_SYNC = Buffer.from('ack_sync\0');

/** Cuts a byte stream into messages; the end mark belongs to the message. */
export class MessageSplitter {
  readonly #onMessage: (message: Uint8Array) => void;
  #kept: number[] = [];

  constructor(onMessage: (message: Uint8Array) => void) {
    this.#onMessage = onMessage;
  }

  push(byte: number): void {
    this.#kept.push(byte);
    if (byte !== NUL && byte !== NEWLINE && this.#kept.length < MAX_MESSAGE_BYTES) return;
    const message = Uint8Array.from(this.#kept);
    this.#kept = [];
    this.#onMessage(message);
  }
}

export interface PmVuartOptions {
  readonly line: PmLine;
  /** `allow_trigger_s5`: relay to the life manager. */
  readonly relay: boolean;
  readonly commands: VmCommands;
  readonly log: Log;
  readonly port?: number;
}

export class PmVuart implements FrontDoor {
  readonly #options: PmVuartOptions;
  #manager: Socket | undefined;
  /** The guest's life manager is one of release 3. */
  #hasSynced = false;

  constructor(options: PmVuartOptions) {
    this.#options = options;
  }

  /**
   * The line is started by its owner.
   * @param giveUp the VM is not wanted any more: whoever does not answer is not waited for.
   * @throws HostError when the life manager is wanted and not there.
   */
  async start(giveUp?: AbortSignal): Promise<void> {
    const { relay, log } = this.#options;
    if (!relay) {
      this.#listen((message) => {
        log.debug(`life manager: the guest says ${shown(message)}`);
        // Compat: C does not answer, and the guest's life manager is gone before it could be asked to shut down.
        if (isSync(message)) this.#send(ACK_SYNC);
      });
      return;
    }
    if (this.#manager !== undefined) return;
    const manager = await connect(this.#options.port ?? LIFE_MANAGER_PORT, giveUp);
    this.#manager = manager;
    const toGuest = new MessageSplitter((message) => {
      log.info(`life manager: the Service VM says ${shown(message)}`);
      this.#send(message);
    });
    this.#listen((message) => {
      log.rationed('info', () => `life manager: the guest says ${shown(message)}`);
      if (manager.writableLength < MAX_UNREAD_BYTES) manager.write(message);
      else log.rationed('info', () => 'life manager: it does not read, what the guest says is lost');
    });
    manager.on('data', (chunk) => {
      for (const byte of chunk) toGuest.push(byte);
    });
    manager.on('error', () => {});
    manager.on('close', () => {
      if (this.#manager !== manager) return;
      this.#manager = undefined;
      // The life manager is gone: the platform is going down, and so must the VM.
      this.#options.commands.run('power-off', { reason: 'the connection to the life manager was closed' });
    });
  }

  /** `acrnctl stop`: ask the guest to shut down. Whether it does is up to the guest. */
  requestShutdown(): void {
    this.#options.log.info('life manager: asking the guest to shut down');
    this.#send(this.#hasSynced ? USER_VM_SHUTDOWN : SHUTDOWN);
  }

  /** Hear what the guest says, what it said before included. */
  #listen(onMessage: (message: Uint8Array) => void): void {
    const { line } = this.#options;
    const splitter = new MessageSplitter((message) => {
      if (isSync(message)) this.#hasSynced = true;
      onMessage(message);
    });
    line.onReadable = () => {
      for (let byte = line.read(); byte >= 0; byte = line.read()) splitter.push(byte);
    };
    line.onReadable();
  }

  close(): void {
    const manager = this.#manager;
    this.#manager = undefined;
    this.#options.line.onReadable = undefined;
    manager?.destroy();
  }

  #send(message: Uint8Array): void {
    const { line } = this.#options;
    for (const byte of message) line.write(byte);
    line.flush();
  }
}

function isSync(message: Uint8Array): boolean {
  return SYNC.equals(message.subarray(0, SYNC.length));
}

function shown(message: Uint8Array): string {
  return JSON.stringify(
    Buffer.from(message)
      .toString('latin1')
      .replace(/[\0\n]$/, ''),
  );
}

function connect(port: number, giveUp: AbortSignal | undefined): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const socket = createConnection(port, '127.0.0.1');
    const onGiveUp = () => socket.destroy(new Error('the VM is not wanted any more'));
    giveUp?.addEventListener('abort', onGiveUp, { once: true });
    socket.once('connect', () => {
      giveUp?.removeEventListener('abort', onGiveUp);
      resolve(socket);
    });
    socket.once('error', (error) => {
      giveUp?.removeEventListener('abort', onGiveUp);
      const { errno, message } = error as NodeJS.ErrnoException;
      const hint = 'allow_trigger_s5 needs the life manager of the Service VM to run first';
      reject(new HostError(`life manager: ${message}`, Math.abs(errno ?? constants.errno.EIO), { hint, cause: error }));
    });
  });
}
