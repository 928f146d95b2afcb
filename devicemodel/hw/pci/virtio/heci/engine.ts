/**
 * The management engine as a guest's driver sees it: its clients by address, connections to them, and host bus messages
 * about both. What it has to say waits in order until the driver has a buffer for it.
 */
import { DmError, HostError } from '../../../../core/errors.ts';
import { Errno } from '../../../../core/host/errno.ts';
import type { MeiChannel, MeiListener } from '../../../../core/host/mei.ts';
import { EngineConnection, refusalOf } from './connection.ts';
import {
  Command,
  connectionMessage,
  enumResponse,
  flowControl,
  HbmStatus,
  isolationResponse,
  type MessageHeader,
  notifyResponse,
  propertiesResponse,
  RESPONSE,
  startResponse,
} from './hbm.ts';
import type { EngineClient } from './host.ts';

/** Fixed clients are numbered from 1, the others from 32. */
const FIRST_ADDRESS = { fixed: 1, dynamic: 32 } as const;
const ADDRESSES = 256;
/** Each is a descriptor of this process, or is to become one. */
const MAX_CONNECTIONS = 64;
/** Host bus messages that wait for the driver; it gets no answers, and is not heard, beyond that. */
const MAX_WAITING = 64;

export interface EngineHost {
  /** @throws HostError */
  clients(): EngineClient[];
  /**
   * May take as long as the engine does. @returns undefined: the listener did not want it any more.
   * @throws HostError with the errno of the refusal
   */
  connect(client: EngineClient, listener: MeiListener): Promise<MeiChannel | undefined>;
}

export interface EngineEvents {
  /** There is something for the driver. */
  onIncoming(): void;
  /** The engine was reset: nothing of what was agreed on is left. */
  onLost(): void;
  /** The engine takes no more now: ask again by `sendOutgoing` in a while. */
  onBusy(): void;
}

export class Engine {
  readonly #host: EngineHost;
  readonly #events: EngineEvents;
  readonly #clients = new Map<number, EngineClient>();
  readonly #connections: EngineConnection[] = [];
  readonly #messages: Uint8Array[] = [];
  /** Connections that the host was asked for and did not answer, wanted or not. */
  #pending = 0;

  constructor(host: EngineHost, events: EngineEvents) {
    this.#host = host;
    this.#events = events;
  }

  /** Look for clients anew. @throws HostError */
  scan(): void {
    this.disconnectAll();
    this.#clients.clear();
    for (const client of this.#host.clients()) {
      let address: number = client.isFixed ? FIRST_ADDRESS.fixed : FIRST_ADDRESS.dynamic;
      while (this.#clients.has(address)) address++;
      if (address < ADDRESSES) this.#clients.set(address, client);
    }
  }

  /** The driver starts: fixed clients are connected from the beginning. */
  start(): void {
    this.disconnectAll();
    for (const [address, client] of this.#clients) {
      if (client.isFixed && this.#pending < MAX_CONNECTIONS) this.#connect(address, 0, client, false);
    }
  }

  /** Everything of the driver's is forgotten. */
  disconnectAll(): void {
    for (const connection of this.#connections.splice(0)) connection.close();
    this.#messages.length = 0;
  }

  get isFull(): boolean {
    return this.#messages.length >= MAX_WAITING;
  }

  /** What the driver sent. @returns false for what is no message. */
  receive(header: MessageHeader, payload: Uint8Array): boolean {
    if (header.me === 0 && header.host === 0) return this.#busMessage(payload);
    const connection = this.#find(header.me, header.host);
    // To a fixed client it waits for the connection, which its driver did not ask for.
    if (connection === undefined || (connection.channel === undefined && header.host !== 0)) return false;
    if (!connection.add(payload, header.isComplete)) {
      this.#end(connection);
      this.#say(connectionMessage(Command.ClientDisconnect, header.me, header.host, 0));
    } else if (header.isComplete) this.#send(connection);
    return true;
  }

  /** The next piece for the driver. */
  takeIncoming(roomBytes: number): { readonly header: MessageHeader; readonly bytes: Uint8Array } | undefined {
    const message = this.#messages.shift();
    if (message !== undefined) {
      const bytes = message.subarray(0, roomBytes);
      return { header: { me: 0, host: 0, length: bytes.length, isComplete: true }, bytes };
    }
    const connection = this.#connections.find((each) => each.hasIncoming);
    if (connection === undefined) return undefined;
    const { me, host } = connection;
    const { bytes, isComplete } = connection.takeIncoming(roomBytes);
    return { header: { me, host, length: bytes.length, isComplete }, bytes };
  }

  get hasIncoming(): boolean {
    return this.#messages.length > 0 || this.#connections.some((each) => each.hasIncoming);
  }

  /** What the engine did not take before. */
  sendOutgoing(): void {
    for (const connection of [...this.#connections]) if (connection.isWaiting) this.#send(connection);
  }

  #send(connection: EngineConnection): void {
    const result = connection.sendOutgoing();
    if (-result === Errno.EAGAIN) this.#events.onBusy();
    else if (-result === Errno.ENODEV) this.#events.onLost();
    else if (result < 0) this.#drop(connection);
    else if (connection.host !== 0) this.#say(flowControl(connection.me, connection.host));
  }

  /** The engine has ended it. */
  #drop(connection: EngineConnection): void {
    if (!this.#connections.includes(connection)) return;
    this.#end(connection);
    if (connection.host !== 0) {
      this.#say(connectionMessage(Command.ClientDisconnect, connection.me, connection.host, 0));
    }
  }

  #busMessage(message: Uint8Array): boolean {
    const [command = 0, me = 0, host = 0] = message;
    const client = this.#clients.get(me);
    switch (command & ~RESPONSE) {
      case Command.HostStart:
        this.#say(startResponse(message));
        return true;
      case Command.HostEnum:
        this.#say(enumResponse(this.#clients.keys()));
        return true;
      case Command.ClientProperties:
        this.#say(propertiesResponse(me, client));
        return true;
      case Command.ClientConnect:
        this.#answerConnect(me, host, client);
        return true;
      case Command.ClientDisconnect:
        this.#answerDisconnect(me, host, (command & RESPONSE) !== 0);
        return true;
      case Command.FlowControl:
        this.#find(me, host)?.addCredit();
        return true;
      case Command.PgIsolationEntry:
        this.#say(isolationResponse());
        return true;
      case Command.Notify: {
        // Notifications are not offered.
        const status = this.#find(me, host) === undefined ? HbmStatus.Invalid : HbmStatus.Rejected;
        this.#say(notifyResponse(me, host, status, message[3] ?? 0));
        return true;
      }
      default:
        // The driver's farewell, and what only the engine asks.
        return command === Command.HostStop;
    }
  }

  #answerConnect(me: number, host: number, client: EngineClient | undefined): void {
    const refusal = this.#refusal(me, host, client);
    if (refusal === undefined) this.#connect(me, host, client as EngineClient, true);
    else this.#sayConnected(me, host, refusal);
  }

  #refusal(me: number, host: number, client: EngineClient | undefined): number | undefined {
    if (client === undefined) return HbmStatus.NotFound;
    if (this.#find(me, host) !== undefined) return HbmStatus.Exists;
    const isFull = this.#connections.length >= MAX_CONNECTIONS || this.#pending >= MAX_CONNECTIONS;
    return isFull ? HbmStatus.Rejected : undefined;
  }

  #sayConnected(me: number, host: number, status: number): void {
    this.#say(connectionMessage(Command.ClientConnect | RESPONSE, me, host, status));
    if (status === HbmStatus.Success && host !== 0) this.#say(flowControl(me, host));
  }

  #answerDisconnect(me: number, host: number, isResponse: boolean): void {
    const connection = this.#find(me, host);
    if (connection !== undefined) this.#end(connection);
    const status = connection === undefined ? HbmStatus.NotFound : HbmStatus.Success;
    if (!isResponse) this.#say(connectionMessage(Command.ClientDisconnect | RESPONSE, me, host, status));
  }

  /** A driver that asked is answered when the host has; until then the connection is there without a channel. */
  #connect(me: number, host: number, client: EngineClient, isAsked: boolean): void {
    const connection = new EngineConnection(me, host, client.maxMessageBytes);
    const isWanted = () => this.#connections.includes(connection);
    this.#connections.push(connection);
    this.#pending++;
    void this.#host
      .connect(client, {
        isWanted,
        onMessage: (message) => {
          connection.onMessage(message);
          this.#events.onIncoming();
        },
        onLost: (errno) => {
          if (errno === Errno.ENODEV) this.#events.onLost();
          else this.#drop(connection);
        },
      })
      .catch((error: unknown) => {
        if (!(error instanceof DmError)) throw error;
        return error instanceof HostError ? refusalOf(error.errno) : HbmStatus.Rejected;
      })
      .then((answer) => {
        this.#pending--;
        if (isWanted()) this.#connected(connection, answer, isAsked);
        else if (typeof answer === 'object') answer.close();
      });
  }

  /** @param answer the channel, or why there is none */
  #connected(connection: EngineConnection, answer: MeiChannel | number | undefined, isAsked: boolean): void {
    const { me, host } = connection;
    const hasChannel = typeof answer === 'object';
    if (hasChannel) connection.channel = answer;
    else this.#end(connection);
    if (isAsked) this.#sayConnected(me, host, hasChannel ? HbmStatus.Success : (answer ?? HbmStatus.Rejected));
    connection.listen();
    if (hasChannel && connection.isWaiting) this.#send(connection);
  }

  #end(connection: EngineConnection): void {
    connection.close();
    this.#connections.splice(this.#connections.indexOf(connection), 1);
  }

  #find(me: number, host: number): EngineConnection | undefined {
    return this.#connections.find((each) => each.me === me && each.host === host);
  }

  #say(message: Uint8Array): void {
    this.#messages.push(message);
    this.#events.onIncoming();
  }
}
