/**
 * Doorbells between User VMs of different processes without either process: each VM has an eventfd for every vector of a
 * region, and gives it to the others that have the region. Whoever has it can make the guest's register write ring it in
 * the kernel (ioeventfd), and the VM can have it interrupt its guest there (irqfd).
 *
 * Every two VMs have one connection, over which each says what it has. Its end takes everything back: a VM that is gone,
 * however it went, leaves nothing.
 */
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { Eventfd } from '../../devicemodel/core/host/eventfd.ts';
import { MAX_FDS, receiveFds, sendFds } from '../../devicemodel/core/host/fd-socket.ts';
import { watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { peerUser } from '../../devicemodel/core/host/peer-user.ts';
import { UnixDoor } from '../../devicemodel/core/host/unix-door.ts';
import { allowRights, connectTo, hangUp, isFullOfKept } from '../../devicemodel/core/host/wary-socket.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import { hostEventfds } from './host-eventfds.ts';
import type { MeetingFolder } from './meeting-folder.ts';

/** The vectors of another VM in a region: the function has to be done with them when it is told of `undefined`. */
export type OnBells = (vmid: number, bells: readonly number[] | undefined) => void;

/** This VM's vectors in one region, and the way to those of others. */
export interface RegionBells {
  /** An eventfd for each vector of this VM. */
  readonly own: readonly number[];
  /** Told of all that are there, and from then on of those that come and go. */
  onPeers(handler: OnBells): void;
  dispose(): void;
}

/** What VMs tell each other; the descriptors of `bells` come with it. */
type Message =
  | { readonly kind: 'hello'; readonly vmid: number }
  | { readonly kind: 'bells'; readonly region: string }
  | { readonly kind: 'gone'; readonly region: string };

/** A VM that lets nobody in is called again after this time. */
const CALL_AGAIN_MS = 1000;
/** Regions that another VM may have: what it gives for each is open here as long as it is there. */
const MAX_REGIONS = 64;
/**
 * What another user, or a VM of this one, may say at once, and each second: what is given and taken back is connected to the guest's
 * register in the kernel, which waits.
 */
const CHANGES = { atOnce: 256, perS: 32 } as const;
/** Connections: one for each VM there can be. */
const MAX_PEERS = 255;
/** More that have not said whose they are; another VM says so at once. */
const MAX_STRANGERS = 16;

interface Peer {
  /** 0: it has not said who it is. */
  vmid: number;
  /** The id under which we found it; undefined: it came to us. */
  readonly calledId: number | undefined;
  readonly fd: number;
  readonly unwatch: () => void;
  /** By region. The descriptors are ours. */
  readonly bells: Map<string, readonly number[]>;
}

interface Allowance {
  /** What may be changed still, as of `countedMs`. */
  changesLeft: number;
  countedMs: number;
}

interface Region {
  readonly own: readonly Eventfd[];
  handler: OnBells | undefined;
}

export class Doorbells {
  readonly #log: Log;
  readonly #peers = new Set<Peer>();
  /** Users who sent descriptors that are no eventfds: their doorbells come by message. */
  readonly #unheard = new Set<number | undefined>();
  /** As long as this VM is there, by user, or by VM of its own user. */
  readonly #allowances = new Map<string, Allowance>();
  readonly #regions = new Map<string, Region>();
  #folder: MeetingFolder | undefined;
  #door: UnixDoor | undefined;
  readonly #again = new Set<NodeJS.Timeout>();
  #vmid = 0;

  constructor(log: Log) {
    this.#log = log;
  }

  /**
   * Meet the others; under the lock of the run folder, so that no two VMs miss each other.
   * @param folder where nothing has this id any more. @param others who is there. @throws HostError
   */
  join(vmid: number, others: Iterable<number>, folder: MeetingFolder): void {
    this.#vmid = vmid;
    this.#folder = folder;
    const path = folder.pathOf(vmid, 'bells');
    this.#door = new UnixDoor({
      path,
      kind: 'packets',
      mask: folder.socketMask,
      onCaller: (fd) => this.#letIn(fd),
      onRest: (why) => this.#log.rationed('warn', () => `doorbells: ${why}; those of new VMs come by message`),
    });
    folder.share(path);
    for (const other of others) this.#call(other, folder);
  }

  /** @throws HostError without descriptors */
  #call(other: number, folder: MeetingFolder): void {
    if (isFullOfKept()) return;
    const way = folder.reach(other, 'bells');
    // One that came up without: its doorbells go the other way, by message.
    if (way === undefined) return;
    let fd: number;
    try {
      // Beside a VM that has none, anybody may have made one of that name.
      if (!folder.isOf(other, way.userId) || this.#unheard.has(way.userId)) return;
      fd = connectTo(way.path, 'packets');
    } finally {
      way.release();
    }
    if (fd >= 0) this.#adopt(fd, other);
    else if (fd === -Errno.EAGAIN) this.#callAgain(other, folder);
  }

  /** So many wait to be let in there, or it stands still. */
  #callAgain(other: number, folder: MeetingFolder): void {
    const timer = setTimeout(() => {
      this.#again.delete(timer);
      if ([...this.#peers].some((peer) => (peer.vmid || peer.calledId) === other)) return;
      try {
        this.#call(other, folder);
      } catch {
        this.#callAgain(other, folder);
      }
    }, CALL_AGAIN_MS);
    timer.unref();
    this.#again.add(timer);
  }

  #letIn(fd: number): void {
    if (!this.#unheard.has(peerUser(fd))) {
      this.#makeRoom();
      if (this.#peers.size < MAX_PEERS + MAX_STRANGERS) {
        allowRights(fd);
        this.#adopt(fd);
        return;
      }
    }
    this.#hangUp(fd);
  }

  /** However many connect and say nothing, the next VM is let in. */
  #makeRoom(): void {
    const strangers = [...this.#peers].filter((peer) => peer.vmid === 0 && peer.calledId === undefined);
    if (strangers.length < MAX_STRANGERS) return;
    this.#log.rationed('warn', () => 'doorbells: one that did not say who it is gave way to another');
    this.#drop(strangers[0] as Peer);
  }

  leave(): void {
    for (const timer of this.#again) clearTimeout(timer);
    for (const peer of this.#peers) this.#drop(peer);
    for (const name of [...this.#regions.keys()]) this.#forget(name);
    this.#door?.close();
  }

  /** @throws HostError */
  open(name: string, vectors: number): RegionBells {
    const own = makeEventfds(vectors);
    const region: Region = { own, handler: undefined };
    this.#regions.set(name, region);
    for (const peer of this.#peers) if (isListening(peer)) this.#offer(peer, name, region);
    return {
      own: own.map(({ fd }) => fd),
      onPeers: (handler) => {
        region.handler = handler;
        for (const { vmid, bells } of this.#peers) {
          const fds = bells.get(name);
          if (fds !== undefined) handler(vmid, fds);
        }
      },
      dispose: () => {
        if (this.#regions.get(name) === region) this.#forget(name);
      },
    };
  }

  #forget(name: string): void {
    const region = this.#regions.get(name);
    this.#regions.delete(name);
    for (const peer of this.#peers) this.#send(peer, { kind: 'gone', region: name });
    for (const eventfd of region?.own ?? []) eventfd.dispose();
  }

  /**
   * Of a VM whose descriptor cannot be watched the doorbells come by message, as of one that has none.
   * @param calledId whose socket was connected to; undefined: it came to us.
   */
  #adopt(fd: number, calledId?: number): void {
    let unwatch: () => void;
    try {
      unwatch = watchFd(fd, () => this.#receive(peer));
    } catch (error) {
      this.#hangUp(fd);
      this.#log.warn(`doorbells: ${(error as Error).message}; those of one VM come by message`);
      return;
    }
    const peer: Peer = { vmid: 0, calledId, fd, bells: new Map(), unwatch };
    this.#peers.add(peer);
    this.#send(peer, { kind: 'hello', vmid: this.#vmid });
    if (isListening(peer)) this.#offerAll(peer);
  }

  #offerAll(peer: Peer): void {
    for (const [name, region] of this.#regions) this.#offer(peer, name, region);
  }

  #offer(peer: Peer, name: string, { own }: Region): void {
    this.#send(
      peer,
      { kind: 'bells', region: name },
      own.map(({ fd }) => fd),
    );
  }

  /** Who does not read would ring eventfds that are gone: told nothing any more, its doorbells come by message. */
  #send(peer: Peer, message: Message, fds: readonly number[] = []): void {
    if (!this.#peers.has(peer) || sendFds(peer.fd, JSON.stringify(message), fds)) return;
    this.#log.rationed('warn', () => `doorbells: VM ${peer.vmid} cannot be told of them; they come by message`);
    this.#drop(peer);
  }

  #receive(peer: Peer): void {
    const received = receiveFds(peer.fd);
    if (received === undefined) return;
    if (received === 'no room') {
      this.#log.rationed('warn', () => `doorbells: no descriptors for those of VM ${peer.vmid}; they come by message`);
    }
    if (typeof received === 'string') {
      this.#drop(peer);
      return;
    }
    const message = parse(received.text);
    if (message === undefined || !this.#isRight(peer, message, received.fds)) {
      this.#giveBack(peerUser(peer.fd), received.fds);
      this.#log.warn('doorbells: a message that no VM sends; the connection is closed');
      this.#drop(peer);
      return;
    }
    const vmid = message.kind === 'hello' ? message.vmid : peer.vmid;
    if (!this.#mayChange(peerUser(peer.fd), vmid)) {
      this.#log.rationed('warn', () => `doorbells: VM ${vmid} changes its own too often; they come by message`);
      for (const fd of received.fds) closeFd(fd);
      this.#drop(peer);
      return;
    }
    switch (message.kind) {
      case 'hello':
        // One connection for each VM: that of whose the id is now. Who had it before may have kept its own.
        for (const other of this.#peers) {
          if (other !== peer && (other.vmid || other.calledId) === message.vmid) this.#drop(other);
        }
        peer.vmid = message.vmid;
        if (peer.calledId !== undefined) this.#offerAll(peer);
        break;
      case 'bells':
        this.#lose(peer, message.region);
        peer.bells.set(message.region, received.fds);
        this.#regions.get(message.region)?.handler?.(peer.vmid, received.fds);
        break;
      case 'gone':
        this.#lose(peer, message.region);
        break;
    }
  }

  /** Counts one. Who connects anew has no more left for that. Another user's VMs have one allowance, those of this VM's user one each. */
  #mayChange(user: number | undefined, vmid: number): boolean {
    const key = user === process.geteuid?.() ? `VM ${vmid}` : `user ${user}`;
    const nowMs = performance.now();
    const { changesLeft, countedMs } = this.#allowances.get(key) ?? { changesLeft: CHANGES.atOnce, countedMs: nowMs };
    const left = Math.min(CHANGES.atOnce, changesLeft + ((nowMs - countedMs) / 1000) * CHANGES.perS);
    const mayChange = left >= 1;
    this.#allowances.set(key, { changesLeft: mayChange ? left - 1 : left, countedMs: nowMs });
    return mayChange;
  }

  /** A VM says who it is once, first, and not that it is this one; descriptors are those of a region. */
  #isRight({ vmid, calledId, fd, bells }: Peer, message: Message, fds: readonly number[]): boolean {
    switch (message.kind) {
      case 'hello':
        if (vmid !== 0 || message.vmid === this.#vmid || fds.length !== 0) return false;
        // Also where it was found under that id: it may be another's by now.
        return [undefined, message.vmid].includes(calledId) && this.#folder?.isOf(message.vmid, peerUser(fd)) === true;
      case 'bells':
        return (
          vmid !== 0 &&
          (bells.has(message.region) || bells.size < MAX_REGIONS) &&
          fds.length <= MAX_FDS &&
          fds.every(isEventfd)
        );
      case 'gone':
        return vmid !== 0 && fds.length === 0;
    }
  }

  /**
   * Descriptors of a message that is not one. Those that are no eventfds stay open: closing one can wait for whoever sent it, as
   * one of a file system of that user's own making. So their sender is heard no more.
   * @returns whether they are all closed.
   */
  #giveBack(user: number | undefined, fds: readonly number[]): boolean {
    const [eventfds, others] = [fds.filter(isEventfd), fds.filter((fd) => !isEventfd(fd))];
    for (const fd of eventfds) closeFd(fd);
    if (others.length === 0) return true;
    this.#unheard.add(user);
    for (const peer of this.#peers) if (peerUser(peer.fd) === user) this.#drop(peer);
    return false;
  }

  /** With what it has said that was not heard yet. */
  #hangUp(fd: number): void {
    hangUp(fd, 'packets', () => {
      const user = peerUser(fd);
      const received = this.#unheard.has(user) ? undefined : receiveFds(fd);
      return typeof received === 'object' && this.#giveBack(user, received.fds);
    });
  }

  #lose(peer: Peer, name: string): void {
    const fds = peer.bells.get(name);
    if (fds === undefined) return;
    peer.bells.delete(name);
    this.#regions.get(name)?.handler?.(peer.vmid, undefined);
    for (const fd of fds) closeFd(fd);
  }

  #drop(peer: Peer): void {
    if (!this.#peers.delete(peer)) return;
    for (const name of [...peer.bells.keys()]) this.#lose(peer, name);
    peer.unwatch();
    this.#hangUp(peer.fd);
  }
}

/** Who is called takes descriptors once it has let us in, and says who it is then. */
const isListening = ({ calledId, vmid }: Peer) => calledId === undefined || vmid !== 0;

const isEventfd = (fd: number) => hostEventfds.check(fd) === 0;

/** @throws HostError, with nothing left open. */
function makeEventfds(count: number): Eventfd[] {
  const made: Eventfd[] = [];
  try {
    while (made.length < count) made.push(new Eventfd());
    return made;
  } catch (error) {
    for (const eventfd of made) eventfd.dispose();
    throw error;
  }
}

function parse(text: string): Message | undefined {
  let message: Partial<Record<string, unknown>>;
  try {
    message = JSON.parse(text) as Partial<Record<string, unknown>>;
  } catch {
    return undefined;
  }
  const { kind, vmid, region } = message ?? {};
  const isVmid = Number.isInteger(vmid) && (vmid as number) > 0 && (vmid as number) <= 0xffff;
  const isRegion = typeof region === 'string' && region !== '';
  return (kind === 'hello' && isVmid) || ((kind === 'bells' || kind === 'gone') && isRegion)
    ? (message as Message)
    : undefined;
}
