/**
 * The User VMs of a host that have no common hypervisor: each is a process of its own. They find each other in a
 * folder, one Unix socket a VM named after its id, every two VMs with one connection. Over it go doorbells and vUART
 * bytes, one JSON object a line.
 */
import { existsSync, readdirSync } from 'node:fs';
import { DmError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { isSameFile } from '../../devicemodel/core/host/dead-regions.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { lockWhenFree } from '../../devicemodel/core/host/file-lock.ts';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { pathFailure } from '../../devicemodel/core/host/path-failure.ts';
import { checkSocketPath } from '../../devicemodel/core/host/socket-path.ts';
import { UnixDoor } from '../../devicemodel/core/host/unix-door.ts';
import { connectTo, hangUp, isFullOfKept } from '../../devicemodel/core/host/wary-socket.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import { Doorbells, type RegionBells } from './doorbells.ts';
import { LocalVuart } from './local-vuart.ts';
import { identityOf, type MeetingFolder, meetingFolder } from './meeting-folder.ts';
import type { MeetingPlace } from './meeting-place.ts';
import { MAX_VMID, type Message } from './neighbour-messages.ts';
import { Peer } from './neighbour-peer.ts';
import type { VuartAddress } from './scenario.ts';
import { sweepDeadRegions } from './shared-region.ts';
import type { VuartWire } from './vpci/vuart.ts';

/** Of an id as it is written. */
const SOCKET_NAME = /^vm-([1-9]\d{0,2})\.sock$/;
const SOCKET_KINDS = ['sock', 'bells'] as const;
/** vUARTs of another VM that count; ACRN gives a VM eight. */
const MAX_VUARTS = 64;
/** That were taken one after the other, and were not those of the folder any more. */
const MAX_LOCKS = 10;
/** Of connect(2): there is no such file, or nobody has it open to listen any more. */
const NOBODY: ReadonlySet<number> = new Set([Errno.ENOENT, Errno.ECONNREFUSED]);
/** Connections that have not said whose they are; another VM says so at once. */
const MAX_STRANGERS = 16;
/** After this time a lost connection is made anew: by the VM with the lower id, or else by the other. */
const AGAIN_MS = { lower: 1000, higher: 3000 } as const;

export class Neighbours {
  readonly #place: MeetingPlace;
  readonly #folder: MeetingFolder;
  readonly #log: Log;
  #door: UnixDoor | undefined;
  #name = '';
  #vmid = 0;
  readonly #peers = new Set<Peer>();
  readonly #doorbells = new Map<string, (vector: number) => void>();
  readonly #vuarts = new Map<number, LocalVuart>();
  readonly #bells: Doorbells | undefined;
  /** By VM: when it is connected to anew. */
  readonly #again = new Map<number, NodeJS.Timeout>();
  /** By VM: its connection was lost, and is made anew or not. All of them are looked at under one lock. */
  readonly #lost = new Map<number, boolean>();
  /** By VM: its socket, as it was when who listens there sent descriptors. It is not called again. */
  readonly #shunned = new Map<number, string>();
  #isLooking = false;
  /** Aborted when it leaves: it waits for nothing any more. */
  readonly #leaving = new AbortController();

  /** @param hasBells the engine can ring and be rung by eventfds: doorbells need not come this way. */
  constructor(place: MeetingPlace, log: Log, { hasBells = false }: { readonly hasBells?: boolean } = {}) {
    this.#place = place;
    this.#folder = meetingFolder(place);
    this.#log = log.child('neighbours');
    if (hasBells) this.#bells = new Doorbells(this.#log);
  }

  /**
   * Take the lowest free id, and meet who is there already. @param ending gives up.
   * @throws HostError when the folder is unusable, or the signal's reason
   */
  async join(name: string, ending?: AbortSignal): Promise<{ readonly vmid: number; release(): void }> {
    this.#name = name;
    this.#prepareFolder();
    try {
      await this.#underLock(() => this.#claim(), ending);
      sweepDeadRegions(this.#place);
    } catch (error) {
      this.#leave();
      if (ending?.aborted === true) throw ending.reason;
      throw error instanceof DmError ? error : pathFailure(`folder ${this.#folder.path}: cannot be used`, error);
    }
    return { vmid: this.#vmid, release: () => this.#leave() };
  }

  /** Who looks at which sockets are dead must not be disturbed: a fresh one of another process would look dead, too. */
  async #underLock(work: () => void, ending = this.#leaving.signal): Promise<void> {
    const lockPath = `${this.#folder.path}/lock`;
    const lock = await this.#lock(lockPath, ending);
    try {
      work();
    } finally {
      closeFd(lock);
    }
  }

  /** One that was waited for may have been made anew meanwhile. */
  async #lock(path: string, ending: AbortSignal): Promise<number> {
    for (let tries = 0; tries < MAX_LOCKS; tries++) {
      const lock = this.#openLock(path);
      let isIt = false;
      try {
        await lockWhenFree(lock, 'exclusive', path, this.#folder.lockPatienceMs, ending);
        isIt = isSameFile(lock, path);
        if (isIt) return lock;
      } finally {
        if (!isIt) closeFd(lock);
      }
    }
    throw new HostError(`${path}: it comes and goes`, Errno.EAGAIN);
  }

  #openLock(path: string): number {
    try {
      return this.#folder.openLock();
    } catch (error) {
      if (error instanceof DmError && error.hint !== undefined) throw error;
      throw pathFailure(`${path}, by which the VMs of this host find each other: cannot be opened`, error);
    }
  }

  /**
   * @returns a connection; 'nobody' where nobody listens any more, or where there is no socket of a VM's; 'unreachable' when there
   * cannot be a connection now: one that stands still has no room for who waits, and from some time on nobody is called any more.
   * @throws HostError without descriptors
   */
  #connect(vmid: number): number | 'nobody' | 'unreachable' {
    if (isFullOfKept()) return 'unreachable';
    const way = this.#folder.reach(vmid);
    if (way === undefined) return 'nobody';
    try {
      const fd = connectTo(way.path, 'bytes');
      if (fd >= 0) return fd;
      return NOBODY.has(-fd) ? 'nobody' : 'unreachable';
    } finally {
      way.release();
    }
  }

  /**
   * The connection to a VM was lost, or could not be made. One that was killed leaves its sockets behind; the others clear
   * them away. With one that goes on, or another that has its id now, there is a connection again after a while.
   */
  #lookAfter(vmid: number, isAgain = false): void {
    const files = SOCKET_KINDS.map((kind) => this.#folder.pathOf(vmid, kind));
    if (this.#isMet(vmid) || !this.#mayCall(vmid) || !files.some((file) => existsSync(file))) return;
    this.#lost.set(vmid, isAgain || this.#lost.get(vmid) === true);
    if (this.#isLooking) return;
    this.#isLooking = true;
    this.#underLock(() => {
      for (const [lost, isAgainToo] of this.#lost) {
        this.#look(lost, isAgainToo);
        this.#lost.delete(lost);
      }
    })
      .catch((error) => {
        this.#log.debug(`sockets of other VMs cannot be looked at yet: ${error}`);
        for (const lost of this.#lost.keys()) this.#lookAgain(lost);
        this.#lost.clear();
      })
      .finally(() => {
        this.#isLooking = false;
      });
  }

  /** Or there is nothing to be met for. */
  #isMet(vmid: number): boolean {
    return this.#door === undefined || [...this.#peers].some((peer) => peer.vmid === vmid);
  }

  /** Each call of one that sends descriptors can be one more that stays open. */
  #mayCall(vmid: number): boolean {
    const shunned = this.#shunned.get(vmid);
    return !isFullOfKept() && (shunned === undefined || shunned !== identityOf(this.#folder.pathOf(vmid)));
  }

  #shun(vmid: number, socket: string | undefined): void {
    if (socket !== undefined) this.#shunned.set(vmid, socket);
  }

  /** Under the lock. @throws HostError without descriptors */
  #look(vmid: number, isAgain: boolean): void {
    const found = this.#connect(vmid);
    if (found === 'nobody') {
      for (const kind of SOCKET_KINDS) this.#folder.clear(vmid, kind);
    } else if (found !== 'unreachable' && isAgain && !this.#isMet(vmid)) {
      this.#adopt(found, vmid);
    } else {
      if (found !== 'unreachable' && !hangUp(found, 'bytes')) this.#shun(vmid, identityOf(this.#folder.pathOf(vmid)));
      this.#lookAgain(vmid);
    }
  }

  /** Whoever has its id now connects to this VM by itself, and has time to. */
  #lookAgain(vmid: number): void {
    if (this.#door === undefined) return;
    clearTimeout(this.#again.get(vmid));
    const timer = setTimeout(
      () => {
        this.#again.delete(vmid);
        this.#lookAfter(vmid, true);
      },
      this.#vmid < vmid ? AGAIN_MS.lower : AGAIN_MS.higher,
    );
    timer.unref();
    this.#again.set(vmid, timer);
  }

  /** @throws HostError when it cannot be made, is not ours alone (or the group's), or has too long a path for sockets in it. */
  #prepareFolder(): void {
    try {
      checkSocketPath(this.#folder.pathOf(MAX_VMID, 'bells'));
    } catch (cause) {
      // The system would cut it, and VMs would meet elsewhere, or not at all.
      throw new HostError(`folder ${this.#folder.path}: ${(cause as Error).message}`, Errno.ENAMETOOLONG, {
        exitCode: ExitCode.CannotCreate,
        hint: 'a shorter XDG_RUNTIME_DIR (or TMPDIR, where that is not set) will do',
      });
    }
    this.#folder.prepare();
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

  #claim(): void {
    const taken = new Set<number>();
    for (const file of readdirSync(this.#folder.path)) {
      const match = SOCKET_NAME.exec(file);
      // Others' are nobody's, however many somebody has put there.
      if (match !== null && Number(match[1]) <= MAX_VMID) taken.add(Number(match[1]));
    }
    // They stand still, or nobody is called any more: their ids are taken all the same.
    const unreachable: number[] = [];
    const others: number[] = [];
    for (const vmid of [...taken]) {
      const found = this.#connect(vmid);
      if (found === 'nobody') {
        if (this.#isCleared(vmid)) taken.delete(vmid);
        continue;
      }
      others.push(vmid);
      if (found === 'unreachable') unreachable.push(vmid);
      // Whose socket it is, is known before the other side has time to say hello: its guest may be rung at once.
      else this.#adopt(found, vmid);
    }
    for (let vmid = 1; vmid <= MAX_VMID; vmid++) {
      if (taken.has(vmid) || !this.#isCleared(vmid)) continue;
      this.#vmid = vmid;
      this.#listen();
      for (const peer of this.#peers) this.#introduce(peer);
      for (const other of unreachable) this.#lookAgain(other);
      this.#bells?.join(vmid, others, this.#folder);
      return;
    }
    throw new HostError(`${this.#folder.path}: all ${MAX_VMID} ids are taken`, 0, {
      hint: 'a file vm-N.sock there keeps the id N; its owner, or root, can remove that of a VM that is gone',
    });
  }

  /** Of an id that nobody has. */
  #isCleared(vmid: number): boolean {
    return SOCKET_KINDS.map((kind) => this.#folder.clear(vmid, kind)).every((isFree) => isFree);
  }

  #leave(): void {
    this.#leaving.abort();
    // While nobody else can have the id, which is that of `vm-N.sock`.
    this.#bells?.leave();
    this.#door?.close();
    this.#door = undefined;
    for (const timer of this.#again.values()) clearTimeout(timer);
    this.#again.clear();
    for (const peer of this.#peers) peer.close();
    this.#peers.clear();
    this.#doorbells.clear();
    this.#vuarts.clear();
  }

  /** @throws HostError */
  #listen(): void {
    const path = this.#folder.pathOf(this.#vmid);
    try {
      this.#door = new UnixDoor({
        path,
        kind: 'bytes',
        mask: this.#folder.socketMask,
        onCaller: (fd) => this.#letIn(fd),
        onRest: (why) => this.#log.rationed('warn', () => why),
      });
    } catch (error) {
      throw pathFailure(path, error, ExitCode.CannotCreate);
    }
    this.#folder.share(path);
  }

  #letIn(fd: number): void {
    this.#makeRoom();
    if (this.#peers.size < MAX_VMID + MAX_STRANGERS) this.#adopt(fd);
    else hangUp(fd, 'bytes');
  }

  /** @param vmid who is at the other end, 0: not known yet. */
  #adopt(fd: number, vmid = 0): void {
    const called = vmid === 0 ? undefined : identityOf(this.#folder.pathOf(vmid));
    let peer: Peer;
    try {
      peer = new Peer(
        fd,
        (message) => this.#take(peer, message),
        (why) => {
          if (why !== undefined) this.#log.rationed('warn', () => `connection to "${peer.name}" dropped: ${why}`);
          this.#peers.delete(peer);
          for (const vuart of this.#vuarts.values()) this.#lose(vuart, peer, undefined);
          if (peer.isKept) this.#shun(vmid, called);
          if (peer.vmid !== 0) this.#lookAfter(peer.vmid);
        },
      );
    } catch (error) {
      this.#log.warn(`${(error as Error).message}; one VM is not met`);
      return;
    }
    peer.vmid = vmid;
    this.#peers.add(peer);
    if (this.#vmid !== 0) this.#introduce(peer);
  }

  /** However many connect and say nothing, the next VM is met. */
  #makeRoom(): void {
    const strangers = [...this.#peers].filter((peer) => peer.vmid === 0);
    if (strangers.length >= MAX_STRANGERS) strangers[0]?.end('it did not say who it is, and gave way to another');
  }

  #introduce(peer: Peer): void {
    peer.send({ kind: 'hello', vmid: this.#vmid, name: this.#name });
    for (const vuart of this.#vuarts.values()) {
      peer.send({ kind: 'vuart', index: vuart.index, wants: vuart.wants ?? null });
    }
  }

  /** @throws Error for what no VM says. */
  #take(peer: Peer, message: Message): void {
    if (!peer.hasIntroduced && message.kind !== 'hello') throw new Error('it does not say first who it is');
    switch (message.kind) {
      case 'hello':
        if (peer.hasIntroduced || message.vmid === this.#vmid || ![0, message.vmid].includes(peer.vmid)) {
          throw new Error(`it cannot be VM ${message.vmid}`);
        }
        // Also where it was found under that id: it may be another's by now.
        if (!this.#folder.isOf(message.vmid, peer.userId)) {
          throw new Error(`VM ${message.vmid} is another user's than ${peer.userId}`);
        }
        // One connection for each VM: that of whose the id is now. Who had it before may have kept its own.
        for (const other of this.#peers) {
          if (other === peer || other.vmid !== message.vmid) continue;
          this.#peers.delete(other);
          other.end(`VM ${message.vmid} has another now`);
        }
        peer.hasIntroduced = true;
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
        if (!peer.vuarts.has(message.index) && peer.vuarts.size >= MAX_VUARTS) {
          this.#log.rationed('warn', () => `VM ${peer.vmid} "${peer.name}": vUART ${message.index} is one too many`);
          return;
        }
        peer.vuarts.set(message.index, message.wants ?? undefined);
        for (const vuart of this.#vuarts.values()) vuart.refused.delete(`${peer.vmid}:${message.index}`);
        for (const vuart of this.#vuarts.values()) this.#findPeerFor(vuart);
        return;
      }
      case 'vuart-gone':
        peer.vuarts.delete(message.index);
        for (const vuart of this.#vuarts.values()) {
          vuart.refused.delete(`${peer.vmid}:${message.index}`);
          this.#lose(vuart, peer, message.index);
        }
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
  #lose(vuart: LocalVuart, peer: Peer, index: number | undefined): void {
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
