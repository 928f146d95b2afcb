/**
 * swtpm, the TPM of another process, over its control channel (swtpm_ioctls(3): big endian, an answer for each order) and
 * a socket pair for commands. Nothing waits for it but promises. One that goes away is asked again each second.
 */
import { Socket } from 'node:net';
import { DmError, HostError } from '../../../core/errors.ts';
import { closeFd } from '../../../core/host/files.ts';
import { connectUnix, sendDescriptor, socketPair } from '../../../core/host/unix-sockets.ts';
import { InTurn } from '../../../core/in-turn.ts';
import type { Log } from '../../../core/log.ts';
import { HEADER_BYTES, plainResponse, ResponseCode, sizeOf, type TpmBackend } from './backend.ts';
import { CRB_BUFFER_BYTES } from './crb.ts';

/** Orders of the control channel. */
const Order = {
  Init: 0x02,
  Shutdown: 0x03,
  GetEstablished: 0x04,
  SetLocality: 0x05,
  Cancel: 0x09,
  Stop: 0x0e,
  SetDataFd: 0x10,
  SetBufferSize: 0x11,
} as const;
type OrderName = keyof typeof Order;

const RESULT_BYTES = 4;
/** Answers that are more than a result: u8 and padding; sizes in use, least and most. */
const ESTABLISHED_BYTES = 8;
const BUFFER_SIZES_BYTES = 16;
const LOCALITY_0 = new Uint8Array(4);
const INIT_FLAGS = new Uint8Array(4);

const RETRY_MS = 1_000;
/** Orders are answered at once, unless another VM has this swtpm, or it is at a long command. */
const ANSWER_MS = 5_000;
const SHUTDOWN_MS = 1_000;

export interface SwtpmTimes {
  readonly retryMs?: number;
  readonly answerMs?: number;
}

/** Bytes of a stream, taken in pieces whose sizes follow from what is there. */
class Inbox {
  #bytes: Buffer = Buffer.alloc(0);

  put(chunk: Uint8Array): void {
    this.#bytes = this.#bytes.length === 0 ? Buffer.from(chunk) : Buffer.concat([this.#bytes, chunk]);
  }

  /** Whatever is there now, without taking it. */
  get bytes(): Buffer {
    return this.#bytes;
  }

  /** @returns undefined until there are as many. */
  take(sizeBytes: number): Buffer | undefined {
    if (this.#bytes.length < sizeBytes) return undefined;
    const taken = this.#bytes.subarray(0, sizeBytes);
    this.#bytes = this.#bytes.subarray(sizeBytes);
    return taken;
  }
}

interface Waiting {
  readonly what: string;
  readonly sizeBytes: number;
  readonly resolve: (answer: Buffer) => void;
  readonly reject: (error: Error) => void;
}

/** One connection to one swtpm: over with the first thing that goes wrong. */
class Connection {
  readonly #control: Socket;
  readonly #data: Socket;
  readonly #answers = new Inbox();
  readonly #response = new Inbox();
  readonly #orders: Waiting[] = [];
  #command: Pick<Waiting, 'resolve' | 'reject'> | undefined;
  readonly #onLost: (why: string) => void;
  #isOver = false;

  /** @param onLost once, unless {@link end} came first. @throws HostError if nobody listens. */
  constructor(path: string, onLost: (why: string) => void) {
    this.#onLost = onLost;
    const control = connectUnix(path);
    let own: number;
    try {
      const [ours, theirs] = socketPair(path);
      own = ours;
      try {
        sendDescriptor(control, orderBytes('SetDataFd'), theirs, path);
      } catch (error) {
        closeFd(ours);
        throw error;
      } finally {
        closeFd(theirs);
      }
    } catch (error) {
      closeFd(control);
      throw error;
    }
    this.#control = this.#stream(control, (chunk) => this.#onAnswer(chunk));
    this.#data = this.#stream(own, (chunk) => this.#onResponse(chunk));
  }

  #stream(fd: number, onData: (chunk: Uint8Array) => void): Socket {
    const socket = new Socket({ fd });
    socket.on('data', onData);
    socket.on('error', (error) => this.#fail(error.message));
    socket.on('close', () => this.#fail('it closed the connection'));
    return socket;
  }

  /** The answer to the descriptor, which is under way. @throws HostError */
  handedOver(answerMs: number): Promise<Buffer> {
    return this.#await('SetDataFd', RESULT_BYTES, answerMs);
  }

  /** @returns what follows the result. @throws HostError */
  order(name: OrderName, answerMs: number, payload = new Uint8Array(0), answerBytes = RESULT_BYTES): Promise<Buffer> {
    if (this.#isOver) return Promise.reject(new HostError('it is gone', 0));
    this.#control.write(Buffer.concat([orderBytes(name), payload]));
    return this.#await(name, answerBytes, answerMs);
  }

  #await(what: OrderName, sizeBytes: number, answerMs: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      const timeout = setTimeout(() => this.#fail(`it does not answer ${what}; does another VM use it?`), answerMs);
      this.#orders.push({
        what,
        sizeBytes,
        resolve: (answer) => {
          clearTimeout(timeout);
          resolve(answer);
        },
        reject: (error) => {
          clearTimeout(timeout);
          reject(error);
        },
      });
    });
  }

  /** One at a time. @throws HostError if there is no response. */
  execute(command: Uint8Array): Promise<Buffer> {
    if (this.#isOver) return Promise.reject(new HostError('it is gone', 0));
    return new Promise((resolve, reject) => {
      this.#command = { resolve, reject };
      this.#data.write(command);
    });
  }

  /** Nothing of it is told any more. Safe twice. */
  end(why: string): void {
    if (this.#isOver) return;
    this.#isOver = true;
    // A constructor that throws has no streams yet.
    this.#control?.destroy();
    this.#data?.destroy();
    const error = new HostError(why, 0);
    for (const waiting of this.#orders.splice(0)) waiting.reject(error);
    this.#command?.reject(error);
    this.#command = undefined;
  }

  #fail(why: string): void {
    if (this.#isOver) return;
    this.end(why);
    this.#onLost(why);
  }

  #onAnswer(chunk: Uint8Array): void {
    this.#answers.put(chunk);
    for (;;) {
      const [waiting] = this.#orders;
      if (waiting === undefined) {
        if (this.#answers.bytes.length > 0) this.#fail('it answers what was not asked');
        return;
      }
      // A refusal has no more than its result.
      const result = this.#answers.bytes.length < RESULT_BYTES ? undefined : this.#answers.bytes.readUInt32BE(0);
      if (result === undefined) return;
      const answer = this.#answers.take(result === 0 ? waiting.sizeBytes : RESULT_BYTES);
      if (answer === undefined) return;
      this.#orders.shift();
      if (result === 0) waiting.resolve(answer.subarray(RESULT_BYTES));
      else waiting.reject(new HostError(`it answers ${waiting.what} with error 0x${result.toString(16)}`, 0));
    }
  }

  #onResponse(chunk: Uint8Array): void {
    this.#response.put(chunk);
    const { bytes } = this.#response;
    if (this.#command === undefined) {
      this.#fail('it responds to no command');
      return;
    }
    if (bytes.length < HEADER_BYTES) return;
    const sizeBytes = sizeOf(bytes);
    if (sizeBytes < HEADER_BYTES || sizeBytes > CRB_BUFFER_BYTES || bytes.length > sizeBytes) {
      this.#fail(`its response has ${sizeBytes} bytes`);
      return;
    }
    const response = this.#response.take(sizeBytes);
    if (response === undefined) return;
    const command = this.#command;
    this.#command = undefined;
    command.resolve(response);
  }
}

/** The TPM of one VM, over its lives. */
export class Swtpm implements TpmBackend {
  readonly #path: string;
  readonly #log: Log;
  readonly #retryMs: number;
  readonly #answerMs: number;
  #connection: Connection | undefined;
  #isEstablished = false;
  /** It was there once. */
  #isFound = false;
  #retry: NodeJS.Timeout | undefined;
  #isClosed = false;
  #isBusy = false;
  /** The command under way was told to end: once is enough, however often a guest says it. */
  #isCancelled = false;
  /** Commands and power cycles. */
  readonly #line = new InTurn();

  constructor(path: string, log: Log, { retryMs = RETRY_MS, answerMs = ANSWER_MS }: SwtpmTimes = {}) {
    this.#path = path;
    this.#log = log;
    this.#retryMs = retryMs;
    this.#answerMs = answerMs;
  }

  get isEstablished(): boolean {
    return this.#isEstablished;
  }

  /**
   * The machine is switched on. The first time swtpm must be there.
   * @throws HostError with how to start it.
   */
  async powerOn(): Promise<void> {
    if (this.#isFound) return this.powerCycle();
    try {
      await this.#connect();
      this.#isFound = true;
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      throw new HostError(`swtpm at ${this.#path}: ${error.message.replace(`${this.#path}: `, '')}`, 0, {
        cause: error,
        hint: `start it before the VM: swtpm socket --tpm2 --tpmstate dir=DIR --ctrl type=unixio,path=${this.#path}`,
      });
    }
  }

  execute(command: Uint8Array): Promise<Uint8Array> {
    return this.#line.run(async () => {
      this.#isBusy = true;
      this.#isCancelled = false;
      try {
        return (await this.#connection?.execute(command)) ?? plainResponse(ResponseCode.Failure);
      } catch {
        // The loss itself was logged.
        return plainResponse(ResponseCode.Failure);
      } finally {
        this.#isBusy = false;
      }
    });
  }

  cancel(): void {
    if (!this.#isBusy || this.#isCancelled) return;
    this.#isCancelled = true;
    // It may be answered only after the command, however long that takes.
    this.#connection?.order('Cancel', 2 ** 31 - 1).catch(() => {});
  }

  powerCycle(): void {
    const giveUp = this.#isBusy ? this.#giveUpSoon() : undefined;
    void this.#line.run(async () => {
      clearTimeout(giveUp);
      const connection = this.#connection;
      if (connection === undefined) return;
      try {
        await connection.order('Stop', this.#answerMs);
        await this.#powerOn(connection);
      } catch (error) {
        this.#lost(connection, (error as Error).message);
      }
    });
  }

  /** The command under way is to end: what waits in line behind it does not wait for ever. */
  #giveUpSoon(): NodeJS.Timeout {
    this.cancel();
    const connection = this.#connection;
    return setTimeout(() => {
      if (connection !== undefined) this.#lost(connection, 'it does not end a command');
    }, this.#answerMs);
  }

  /** The VM is over: swtpm stores its state and ends, as with C. */
  async close(): Promise<void> {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearTimeout(this.#retry);
    await this.#connection?.order('Shutdown', SHUTDOWN_MS).catch(() => {});
    this.#connection?.end('the VM is over');
    this.#connection = undefined;
  }

  /** @throws DmError; there is no connection then. */
  async #connect(): Promise<void> {
    const connection: Connection = new Connection(this.#path, (why) => this.#lost(connection, why));
    try {
      await connection.handedOver(this.#answerMs);
      // The size of the buffer can be set only while it is stopped. One whose TPM never ran has nothing to stop.
      await connection.order('Stop', this.#answerMs);
      const size = Buffer.alloc(4);
      size.writeUInt32BE(CRB_BUFFER_BYTES);
      await connection.order('SetBufferSize', this.#answerMs, size, BUFFER_SIZES_BYTES);
      await this.#powerOn(connection);
    } catch (error) {
      connection.end('it is given up');
      throw error;
    }
    if (this.#isClosed) connection.end('the VM is over');
    else this.#connection = connection;
  }

  async #powerOn(connection: Connection): Promise<void> {
    await connection.order('Init', this.#answerMs, INIT_FLAGS);
    await connection.order('SetLocality', this.#answerMs, LOCALITY_0);
    const established = await connection.order('GetEstablished', this.#answerMs, undefined, ESTABLISHED_BYTES);
    this.#isEstablished = established[0] === 1;
  }

  #lost(connection: Connection, why: string): void {
    connection.end(why);
    if (this.#connection !== connection || this.#isClosed) return;
    this.#connection = undefined;
    this.#log.rationed('warn', () => `swtpm at ${this.#path} is gone: ${why}; TPM commands fail until it is back`);
    this.#askAgain();
  }

  #askAgain(): void {
    this.#retry = setTimeout(async () => {
      try {
        await this.#connect();
        this.#log.rationed('notice', () => `swtpm at ${this.#path} is back; its TPM was powered on`);
      } catch {
        if (!this.#isClosed) this.#askAgain();
      }
    }, this.#retryMs);
  }
}

function orderBytes(name: OrderName): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(Order[name]);
  return bytes;
}
