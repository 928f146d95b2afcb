/**
 * The User VMs of a host that have no common hypervisor: each is a process of its own. They find each other in a run
 * directory, one Unix socket a VM named after its id, every two VMs with one connection. Over it go doorbells and vUART
 * bytes, one JSON object a line.
 */
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { connect, createServer, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { basename, dirname } from 'node:path';
import { DmError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { onProcessExit } from '../../devicemodel/core/host/exit-hooks.ts';
import { lockWhenFree } from '../../devicemodel/core/host/file-lock.ts';
import { closeFd, OpenFlag, openFile } from '../../devicemodel/core/host/files.ts';
import { ensureOwnFolder, FolderMode, makeParents } from '../../devicemodel/core/host/folders.ts';
import { pathFailure } from '../../devicemodel/core/host/path-failure.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import { Doorbells, type RegionBells } from './doorbells.ts';
import type { VuartAddress } from './scenario.ts';
import { sweepDeadRegions } from './shared-region.ts';
import { VUART_FIFO_BYTES, VUART_FIFO_RESERVE, type VuartWire } from './vpci/vuart.ts';

/** Ids a User VM can have; ACRN counts them from the Service VM's 0. */
const MAX_VMID = 255;
const SOCKET_NAME = /^vm-(\d+)\.sock$/;
/** A line longer than this is no message of ours. */
const MAX_LINE_BYTES = 64 * 1024;
/** So much waits for a VM that does not read; further doorbells become one of each kind. */
const MAX_UNREAD_BYTES = 64 * 1024;

/** What VMs tell each other. */
type Message =
  | { readonly kind: 'hello'; readonly vmid: number; readonly name: string }
  | { readonly kind: 'doorbell'; readonly region: string; readonly vector: number }
  /** A vUART is here, and whom it is wired to, if that is fixed. */
  | { readonly kind: 'vuart'; readonly index: number; readonly wants: VuartAddress | null }
  | { readonly kind: 'vuart-gone'; readonly index: number }
  /** Be my peer; answered by `paired` or `busy`. `to` is the receiver's index. */
  | { readonly kind: 'pair' | 'paired' | 'busy'; readonly from: number; readonly to: number }
  | { readonly kind: 'data'; readonly to: number; readonly bytes: readonly number[] }
  /** The guest took so many bytes. */
  | { readonly kind: 'taken'; readonly to: number; readonly count: number };

const ROOT_DIRECTORY = '/run/acrn/soft';

/** The directory VMs of this user meet in: /run for root, else the user's own. */
export function defaultRunDirectory(): string {
  if (process.getuid?.() === 0) return ROOT_DIRECTORY;
  const user = process.env['XDG_RUNTIME_DIR'];
  return user === undefined || user === '' ? `${tmpdir()}/acrn-${process.getuid?.()}/soft` : `${user}/acrn/soft`;
}

export class Neighbours {
  readonly #directory: string;
  readonly #log: Log;
  #server: Server | undefined;
  #name = '';
  #vmid = 0;
  readonly #peers = new Set<Peer>();
  readonly #doorbells = new Map<string, (vector: number) => void>();
  readonly #vuarts = new Map<number, LocalVuart>();
  readonly #bells: Doorbells | undefined;

  /** @param hasBells the engine can ring and be rung by eventfds: doorbells need not come this way. */
  constructor(directory: string, log: Log, { hasBells = false }: { readonly hasBells?: boolean } = {}) {
    this.#directory = directory;
    this.#log = log.child('neighbours');
    if (hasBells) this.#bells = new Doorbells(this.#log);
  }

  /** Take the lowest free id, and meet who is there already. @throws HostError when the run directory is unusable. */
  async join(name: string): Promise<{ readonly vmid: number; release(): void }> {
    this.#name = name;
    this.#makeDirectory();
    try {
      await this.#underLock(() => this.#claim());
      sweepDeadRegions();
    } catch (error) {
      this.#leave();
      throw error instanceof DmError ? error : pathFailure(`folder ${this.#directory}: cannot be used`, error);
    }
    return { vmid: this.#vmid, release: () => this.#leave() };
  }

  /** Who looks at which sockets are dead must not be disturbed: a fresh one of another process would look dead, too. */
  async #underLock(work: () => Promise<void>): Promise<void> {
    const lockPath = `${this.#directory}/lock`;
    const lock = this.#openLock(lockPath);
    try {
      await lockWhenFree(lock, 'exclusive', lockPath);
      await work();
    } finally {
      closeFd(lock);
    }
  }

  #openLock(path: string): number {
    try {
      return openFile(path, OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.CloseOnExec, 0o600);
    } catch (error) {
      throw pathFailure(`${path}, by which the VMs of this host find each other: cannot be opened`, error);
    }
  }

  #pathOf(vmid: number, kind: 'sock' | 'bells' = 'sock'): string {
    return `${this.#directory}/vm-${vmid}.${kind}`;
  }

  /** A VM that was killed leaves its sockets behind; the others clear them away. */
  #clearAfter(vmid: number): void {
    const files = [this.#pathOf(vmid), this.#pathOf(vmid, 'bells')];
    if (this.#server === undefined || !files.some((file) => existsSync(file))) return;
    this.#underLock(async () => {
      const successor = await tryConnect(this.#pathOf(vmid));
      if (successor === undefined) for (const file of files) rmSync(file, { force: true });
      successor?.destroy();
    }).catch((error) => this.#log.debug(`sockets of VM ${vmid} stay until the next VM comes: ${error}`));
  }

  /** @throws HostError when it cannot be made, or is not ours alone. */
  #makeDirectory(): void {
    const parent = dirname(this.#directory);
    makeParents(parent);
    // Below /run there are folders of other programs' sockets beside ours.
    if (this.#directory === ROOT_DIRECTORY) ensureOwnFolder(parent, FolderMode.public);
    else if (basename(parent).startsWith('acrn')) ensureOwnFolder(parent, FolderMode.private);
    ensureOwnFolder(this.#directory, FolderMode.private);
  }

  /** This VM's vectors in a region, as eventfds; undefined where the engine has no use for them. @throws HostError */
  bells(region: string, vectors: number): RegionBells | undefined {
    return this.#bells?.open(region, vectors);
  }

  onDoorbell(region: string, handler: (vector: number) => void): void {
    this.#doorbells.set(region, handler);
  }

  offDoorbell(region: string): void {
    this.#doorbells.delete(region);
  }

  /** Ring `vmid`, which may be this VM itself. @returns false when there is no such VM. */
  ring(region: string, vmid: number, vector: number): boolean {
    if (vmid === this.#vmid) {
      const handler = this.#doorbells.get(region);
      handler?.(vector);
      return handler !== undefined;
    }
    for (const peer of this.#peers) {
      if (peer.vmid !== vmid) continue;
      peer.ring({ kind: 'doorbell', region, vector });
      return true;
    }
    return false;
  }

  /** The wire of this VM's vUART `index`; it finds its other end by itself. */
  wire(index: number, wants: VuartAddress | undefined): VuartWire {
    const vuart = new LocalVuart(index, wants, () => {
      this.#vuarts.delete(index);
      for (const peer of this.#peers) peer.send({ kind: 'vuart-gone', index });
    });
    this.#vuarts.set(index, vuart);
    for (const peer of this.#peers) {
      peer.send({ kind: 'vuart', index, wants: wants ?? null });
    }
    this.#findPeerFor(vuart);
    return vuart;
  }

  async #claim(): Promise<void> {
    const sockets = new Map<number, string>();
    for (const file of readdirSync(this.#directory)) {
      const match = SOCKET_NAME.exec(file);
      if (match !== null) sockets.set(Number(match[1]), `${this.#directory}/${file}`);
    }
    for (const [vmid, path] of sockets) {
      const socket = await tryConnect(path);
      if (socket === undefined) {
        rmSync(path, { force: true }); // nobody listens any more
        rmSync(this.#pathOf(vmid, 'bells'), { force: true });
        sockets.delete(vmid);
      } else {
        // Whose socket it is, is known before the other side has time to say hello: its guest may be rung at once.
        this.#adopt(socket, vmid);
      }
    }
    for (let vmid = 1; vmid <= MAX_VMID; vmid++) {
      if (sockets.has(vmid)) continue;
      this.#vmid = vmid;
      this.#server = await listen(this.#pathOf(vmid), (socket) => this.#adopt(socket));
      for (const peer of this.#peers) this.#introduce(peer);
      this.#bells?.join(vmid, sockets.keys(), (id) => this.#pathOf(id, 'bells'));
      return;
    }
    throw new HostError(`${this.#directory}: ${MAX_VMID} VMs run on this host already`, 0);
  }

  #leave(): void {
    this.#server?.close(); // removes the socket
    this.#server = undefined;
    for (const peer of this.#peers) peer.close();
    this.#peers.clear();
    this.#doorbells.clear();
    this.#bells?.leave();
    this.#vuarts.clear();
  }

  /** @param vmid who is at the other end, 0: not known yet. */
  #adopt(socket: Socket, vmid = 0): void {
    const peer = new Peer(
      socket,
      (message) => this.#take(peer, message),
      (why) => {
        if (why !== undefined) this.#log.warn(`connection to "${peer.name}" dropped: ${why}`);
        this.#peers.delete(peer);
        for (const vuart of this.#vuarts.values()) this.#lost(vuart, peer, undefined);
        if (peer.vmid !== 0) this.#clearAfter(peer.vmid);
      },
    );
    peer.vmid = vmid;
    this.#peers.add(peer);
    if (this.#vmid !== 0) this.#introduce(peer);
  }

  #introduce(peer: Peer): void {
    peer.send({ kind: 'hello', vmid: this.#vmid, name: this.#name });
    for (const vuart of this.#vuarts.values()) {
      peer.send({ kind: 'vuart', index: vuart.index, wants: vuart.wants ?? null });
    }
  }

  #take(peer: Peer, message: Message): void {
    switch (message.kind) {
      case 'hello':
        peer.vmid = message.vmid;
        peer.name = message.name;
        this.#log.debug(`VM ${message.vmid} "${message.name}" is there`);
        return;
      case 'doorbell': {
        const handler = this.#doorbells.get(message.region);
        if (handler === undefined) this.#log.guest(() => `doorbell for ${message.region}, which this VM does not have`);
        handler?.(message.vector);
        return;
      }
      case 'vuart': {
        peer.vuarts.set(message.index, message.wants ?? undefined);
        for (const vuart of this.#vuarts.values()) vuart.refused.delete(`${peer.vmid}:${message.index}`);
        for (const vuart of this.#vuarts.values()) this.#findPeerFor(vuart);
        return;
      }
      case 'vuart-gone':
        peer.vuarts.delete(message.index);
        for (const vuart of this.#vuarts.values()) this.#lost(vuart, peer, message.index);
        return;
      case 'pair': {
        const vuart = this.#vuarts.get(message.to);
        const isFree = vuart !== undefined && vuart.peer === undefined && this.#fits(vuart, peer, message.from);
        peer.send({ kind: isFree ? 'paired' : 'busy', from: message.to, to: message.from });
        if (isFree) vuart.connect(peer, message.from);
        return;
      }
      case 'paired': {
        const vuart = this.#vuarts.get(message.to);
        if (vuart !== undefined && vuart.asked?.peer === peer) vuart.connect(peer, message.from);
        // It was asked, and has agreed with somebody else meanwhile.
        else peer.send({ kind: 'busy', from: message.to, to: message.from });
        return;
      }
      case 'busy': {
        const vuart = this.#vuarts.get(message.to);
        if (vuart === undefined) return;
        if (vuart.peer === peer && vuart.peerIndex === message.from) {
          this.#disconnect(vuart);
        } else if (vuart.asked?.peer === peer) {
          vuart.refused.add(`${peer.vmid}:${message.from}`);
          vuart.asked = undefined;
          this.#findPeerFor(vuart);
        }
        return;
      }
      case 'data':
        this.#vuarts.get(message.to)?.receive(peer, message.bytes);
        return;
      case 'taken':
        this.#vuarts.get(message.to)?.acknowledge(peer, message.count);
        return;
    }
  }

  /** Ask the first vUART that fits. Of two VMs the one with the lower id asks, so that they do not cross. */
  #findPeerFor(vuart: LocalVuart): void {
    if (vuart.peer !== undefined || vuart.asked !== undefined) return;
    const peers = [...this.#peers].sort((a, b) => a.vmid - b.vmid);
    for (const peer of peers) {
      if (peer.vmid < this.#vmid) continue;
      for (const index of peer.vuarts.keys()) {
        if (vuart.refused.has(`${peer.vmid}:${index}`) || !this.#fits(vuart, peer, index)) continue;
        vuart.asked = { peer, index };
        peer.send({ kind: 'pair', from: vuart.index, to: index });
        return;
      }
    }
  }

  #fits(vuart: LocalVuart, peer: Peer, index: number): boolean {
    const theirs = peer.vuarts.get(index);
    if (!peer.vuarts.has(index)) return false;
    if (theirs !== undefined && (theirs.vm !== this.#name || theirs.index !== vuart.index)) return false;
    if (vuart.wants !== undefined) return vuart.wants.vm === peer.name && vuart.wants.index === index;
    return theirs !== undefined || vuart.index === index;
  }

  /** A peer, or one of its vUARTs, is gone. */
  #lost(vuart: LocalVuart, peer: Peer, index: number | undefined): void {
    const isIt = (of: Peer | undefined, at: number | undefined) => of === peer && (index === undefined || at === index);
    if (isIt(vuart.peer, vuart.peerIndex)) {
      this.#disconnect(vuart);
    } else if (isIt(vuart.asked?.peer, vuart.asked?.index)) {
      vuart.asked = undefined;
      this.#findPeerFor(vuart);
    }
  }

  #disconnect(vuart: LocalVuart): void {
    vuart.disconnect();
    // Said again: who found it busy may ask now.
    for (const peer of this.#peers) peer.send({ kind: 'vuart', index: vuart.index, wants: vuart.wants ?? null });
    this.#findPeerFor(vuart);
  }
}

/** Another VM. */
class Peer {
  vmid = 0;
  name = '';
  /** Its vUARTs by index, and whom they want. */
  readonly vuarts = new Map<number, VuartAddress | undefined>();
  readonly #socket: Socket;
  #rest = '';
  /** Doorbells that wait until it reads; rung again, they are still one, as an interrupt that is pending. */
  readonly #pending = new Set<string>();

  constructor(socket: Socket, onMessage: (message: Message) => void, onClose: (why: string | undefined) => void) {
    this.#socket = socket;
    let why: string | undefined;
    socket.setEncoding('utf8');
    socket.unref(); // it is the VM that keeps the process
    socket.on('data', (text: string) => {
      const lines = (this.#rest + text).split('\n');
      this.#rest = lines.pop() ?? '';
      try {
        if (this.#rest.length > MAX_LINE_BYTES) throw new Error('line too long');
        for (const line of lines) onMessage(parseMessage(line));
      } catch (error) {
        why = (error as Error).message;
        socket.destroy();
      }
    });
    socket.on('drain', () => {
      for (const line of this.#pending) socket.write(line);
      this.#pending.clear();
    });
    socket.on('error', () => {}); // 'close' follows
    socket.on('close', () => onClose(why));
  }

  send(message: Message): void {
    if (this.#socket.writable) this.#socket.write(`${JSON.stringify(message)}\n`);
  }

  /** As `send`; a VM that does not read makes this one keep no more than a doorbell of each kind. */
  ring(message: Message & { readonly kind: 'doorbell' }): void {
    if (this.#socket.writableLength < MAX_UNREAD_BYTES) this.send(message);
    else this.#pending.add(`${JSON.stringify(message)}\n`);
  }

  close(): void {
    this.#socket.destroy();
  }
}

/** This VM's end of a wire. */
class LocalVuart implements VuartWire {
  readonly index: number;
  readonly wants: VuartAddress | undefined;
  peer: Peer | undefined;
  peerIndex = 0;
  /** Who was asked to be the peer and has not answered. */
  asked: { readonly peer: Peer; readonly index: number } | undefined;
  /** Who had a peer already. */
  readonly refused = new Set<string>();
  readonly #gone: () => void;
  #handlers: { receive(byte: number): void; changed(): void } | undefined;
  /** Bytes sent that the other guest has not taken. */
  #inFlight = 0;
  /** Bytes collected in this turn of the event loop, one message for all. */
  #outgoing: number[] = [];
  #taken = 0;
  #isFlushDue = false;

  constructor(index: number, wants: VuartAddress | undefined, gone: () => void) {
    this.index = index;
    this.wants = wants;
    this.#gone = gone;
  }

  get isConnected(): boolean {
    return this.peer !== undefined;
  }
  get hasRoom(): boolean {
    return this.#inFlight <= VUART_FIFO_BYTES - VUART_FIFO_RESERVE;
  }

  attach(handlers: { receive(byte: number): void; changed(): void }): void {
    this.#handlers = handlers;
  }

  send(byte: number): void {
    this.#outgoing.push(byte);
    this.#inFlight++;
    this.#flushSoon();
  }

  consumed(): void {
    if (this.peer === undefined) return;
    this.#taken++;
    this.#flushSoon();
  }

  dispose(): void {
    this.disconnect();
    this.#handlers = undefined;
    this.#gone();
  }

  connect(peer: Peer, index: number): void {
    this.peer = peer;
    this.peerIndex = index;
    this.asked = undefined;
    this.#inFlight = 0;
    this.#taken = 0;
    this.#outgoing = [];
    this.#handlers?.changed();
  }

  disconnect(): void {
    this.peer = undefined;
    this.asked = undefined;
    this.#inFlight = 0;
    this.#handlers?.changed();
  }

  receive(peer: Peer, bytes: readonly number[]): void {
    if (peer !== this.peer) return;
    for (const byte of bytes) this.#handlers?.receive(byte & 0xff);
  }

  acknowledge(peer: Peer, count: number): void {
    if (peer !== this.peer) return;
    const hadRoom = this.hasRoom;
    this.#inFlight = Math.max(0, this.#inFlight - count);
    if (!hadRoom && this.hasRoom) this.#handlers?.changed();
  }

  #flushSoon(): void {
    if (this.#isFlushDue) return;
    this.#isFlushDue = true;
    setImmediate(() => {
      this.#isFlushDue = false;
      if (this.#outgoing.length > 0) this.peer?.send({ kind: 'data', to: this.peerIndex, bytes: this.#outgoing });
      if (this.#taken > 0) this.peer?.send({ kind: 'taken', to: this.peerIndex, count: this.#taken });
      this.#outgoing = [];
      this.#taken = 0;
    });
  }
}

/** @throws Error for anything that is not a message of ours. */
function parseMessage(line: string): Message {
  const message = JSON.parse(line) as Record<string, unknown>;
  const isIndex = (value: unknown) => Number.isInteger(value) && (value as number) >= 0 && (value as number) <= 0xffff;
  const isAddress = (value: unknown) =>
    value === null ||
    (typeof value === 'object' &&
      typeof (value as { vm?: unknown }).vm === 'string' &&
      isIndex((value as { index?: unknown }).index));
  const isRight = () => {
    switch (message['kind']) {
      case 'hello':
        return isIndex(message['vmid']) && typeof message['name'] === 'string';
      case 'doorbell':
        return typeof message['region'] === 'string' && isIndex(message['vector']);
      case 'vuart':
        return isIndex(message['index']) && isAddress(message['wants']);
      case 'vuart-gone':
        return isIndex(message['index']);
      case 'pair':
      case 'paired':
      case 'busy':
        return isIndex(message['from']) && isIndex(message['to']);
      case 'data':
        return isIndex(message['to']) && Array.isArray(message['bytes']) && message['bytes'].every(isIndex);
      case 'taken':
        return isIndex(message['to']) && isIndex(message['count']);
      default:
        return false;
    }
  };
  if (typeof message !== 'object' || message === null || !isRight()) throw new Error('not a message of a User VM');
  return message as unknown as Message;
}

/** @returns undefined when nobody listens there. */
function tryConnect(path: string): Promise<Socket | undefined> {
  return new Promise((resolve) => {
    const socket = connect(path);
    socket.once('connect', () => {
      socket.removeAllListeners('error');
      resolve(socket);
    });
    socket.once('error', () => resolve(undefined));
  });
}

/** @throws HostError */
function listen(path: string, onConnection: (socket: Socket) => void): Promise<Server> {
  return new Promise((resolve, reject) => {
    const server = createServer(onConnection);
    server.once('error', (cause) => {
      reject(new HostError(`${path}: ${cause.message}`, 0, { exitCode: ExitCode.CannotCreate, cause }));
    });
    server.listen(path, () => {
      server.unref();
      // Closed, it removes its file itself.
      server.once(
        'close',
        onProcessExit(() => rmSync(path, { force: true })),
      );
      resolve(server);
    });
  });
}
