/**
 * Unix sockets whose other end may be an attacker's, who can send a descriptor with any message (unix(7), SCM_RIGHTS). Whoever
 * takes the message and not the descriptor closes it, and so does who closes the socket with the message unread; and closing can
 * wait for whoever made it, as a TCP connection that lingers does for the one who does not read it. So nothing is taken that was
 * not looked at, and a connection with such a message stays open when it is done with. Linux 6.16 can refuse them. Nothing here
 * waits.
 */
import { rmSync } from 'node:fs';
import { getEnvironmentData, setEnvironmentData } from 'node:worker_threads';
import { Errno } from './errno.ts';
import { closeFd } from './files.ts';
import { hostCall, must } from './libc.ts';
import { SocketMessage } from './socket-message.ts';
import { OWNER_ONLY, withUmask } from './umask.ts';

const AF_UNIX = 1;
/** SOCK_STREAM: bytes. SOCK_SEQPACKET: one message a packet. */
const SOCKET_TYPES = { bytes: 1, packets: 5 } as const;
const SOCK_FLAGS = 0o4000 | 0o2000000; // SOCK_NONBLOCK | SOCK_CLOEXEC
const SOL_SOCKET = 1;
const Option = { outOfBandInline: 10, passCredentials: 16, passRights: 83 } as const;
const SHUT_BOTH = 2;
const MSG_PEEK = 0x02;
const MSG_CONTROL_CUT = 0x08;
const BACKLOG = 64;
/** struct sockaddr_un: family, then the path with its end. */
const ADDRESS_BYTES = 110;
/** Room for who sent a message, and for nothing else: a struct cmsghdr and a struct ucred, aligned. */
const CREDENTIALS_BYTES = 32;
/** What is looked at, at most. */
export const LOOK_BYTES = 0x1_0000;
/** Connections that stay open because of what they bring; who keeps a door lets nobody in any more, and calls nobody. */
const MAX_KEPT = 256;

export type SocketKind = keyof typeof SOCKET_TYPES;

const socket = hostCall<[family: number, type: number, protocol: number]>('int socket(int, int, int)');
const bind = hostCall<[fd: number, address: Uint8Array, bytes: number]>('int bind(int, const void *, unsigned int)');
const connect = hostCall<[fd: number, address: Uint8Array, bytes: number]>(
  'int connect(int, const void *, unsigned int)',
);
const listen = hostCall<[fd: number, backlog: number]>('int listen(int, int)');
const accept4 = hostCall<[fd: number, address: null, bytes: null, flags: number]>(
  'int accept4(int, void *, void *, int)',
);
const shutdown = hostCall<[fd: number, how: number]>('int shutdown(int, int)');
const setsockopt = hostCall<[fd: number, level: number, option: number, value: Int32Array, bytes: number]>(
  'int setsockopt(int, int, int, const void *, unsigned int)',
);
const recvmsg = hostCall<[fd: number, header: bigint, flags: number]>('int64_t recvmsg(int, uintptr_t, int)');

const set = (fd: number, option: number, isOn: boolean) =>
  setsockopt(fd, SOL_SOCKET, option, Int32Array.of(isOn ? 1 : 0), 4);

function address(path: string): Uint8Array {
  const out = new Uint8Array(ADDRESS_BYTES);
  out[0] = AF_UNIX;
  out.set(new TextEncoder().encode(path).subarray(0, ADDRESS_BYTES - 3), 2);
  return out;
}

/** @throws HostError */
function newSocket(kind: SocketKind, what: string): number {
  const fd = must(socket(AF_UNIX, SOCKET_TYPES[kind] | SOCK_FLAGS, 0), 'socket', what);
  if (kind === 'bytes') refuseRights(fd);
  return fd;
}

/** Before Linux 6.16 nothing is refused. A byte out of band would be passed over by who looks, and taken by who reads. */
function refuseRights(fd: number): void {
  set(fd, Option.passRights, false);
  set(fd, Option.outOfBandInline, true);
}

/** Who has called may send descriptors from now on. */
export function allowRights(fd: number): void {
  set(fd, Option.passRights, true);
}

/**
 * A file of that name must not be there. Who calls can send no descriptors until {@link allowRights}, where the kernel can say so.
 * @param mask what its mode does not have: for this user alone, if it is not given.
 * @returns a descriptor that is readable when somebody connects. @throws HostError
 */
export function listenAt(path: string, kind: SocketKind, mask = OWNER_ONLY): number {
  const fd = newSocket(kind, path);
  let isBound = false;
  try {
    refuseRights(fd);
    must(
      withUmask(mask, () => bind(fd, address(path), ADDRESS_BYTES)),
      'bind',
      path,
    );
    isBound = true;
    must(listen(fd, BACKLOG), 'listen', path);
    return fd;
  } catch (error) {
    closeFd(fd);
    if (isBound) rmSync(path, { force: true });
    throw error;
  }
}

/** Of accept(2): nobody waits, or who waited went away. */
const NOBODY: ReadonlySet<number> = new Set([Errno.EAGAIN, Errno.ECONNABORTED]);

/**
 * @returns a connection, or undefined when nobody waits for one.
 * @throws HostError when there is no room for one now: who waits goes on waiting, and the listener stays readable.
 */
export function acceptCaller(listener: number): number | undefined {
  const fd = accept4(listener, null, null, SOCK_FLAGS);
  if (NOBODY.has(-fd)) return undefined;
  must(fd, 'accept', 'a connection');
  set(fd, Option.outOfBandInline, true);
  return fd;
}

/** @returns a connection, or a negative errno. @throws HostError without descriptors. */
export function connectTo(path: string, kind: SocketKind): number {
  const fd = newSocket(kind, path);
  const result = connect(fd, address(path), ADDRESS_BYTES);
  if (result === 0) return fd;
  closeFd(fd);
  return result;
}

const message = new SocketMessage('what comes by sockets', CREDENTIALS_BYTES, LOOK_BYTES);

export interface Seen {
  /** How many bytes came. */
  readonly sizeBytes: number;
  /** Descriptors came with them. */
  readonly hasRights: boolean;
  /** It has said who sent it, which it does when it was asked to: so it is a message, even of no bytes. */
  readonly hasCredentials: boolean;
}

function receive(fd: number, flags: number, sizeBytes: number, controlBytes = 0): Seen | number {
  const result = recvmsg(fd, message.prepare(sizeBytes, controlBytes), flags);
  if (result < 0) return result;
  return {
    sizeBytes: result,
    hasRights: (message.flags & MSG_CONTROL_CUT) !== 0,
    hasCredentials: message.controlBytes !== 0,
  };
}

/** What would be taken next, left where it is. @returns undefined: nothing yet; 'ended': nothing any more. */
export function look(fd: number): Seen | 'ended' | undefined {
  const seen = receive(fd, MSG_PEEK, LOOK_BYTES);
  if (seen === -Errno.EAGAIN) return undefined;
  if (typeof seen === 'number' || (seen.sizeBytes === 0 && !seen.hasRights)) return 'ended';
  return seen;
}

/** What {@link look} saw, and no byte more. @returns bytes that are right until the next call. */
export function takeBytes(fd: number, { sizeBytes }: Seen): Uint8Array {
  const taken = receive(fd, 0, sizeBytes);
  return message.data.subarray(0, typeof taken === 'number' ? 0 : taken.sizeBytes);
}

/** One for all threads of the process: those that are started from now on have it, too. */
const KEPT_COUNT = 'acrn-dm: connections that stay open';

function keptCount(): Int32Array {
  const shared = getEnvironmentData(KEPT_COUNT);
  if (shared instanceof SharedArrayBuffer) return new Int32Array(shared);
  const made = new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT);
  setEnvironmentData(KEPT_COUNT, made);
  return new Int32Array(made);
}

const kept = keptCount();

/** So much stays open here for good that nobody is let in, or called, any more: else it would be any number. */
export const isFullOfKept = () => Atomics.load(kept, 0) >= MAX_KEPT;

/**
 * Hang up, and close the connection if that cannot wait for the other end.
 * @param takeRights for a message with descriptors: whether it took it, with none of them left to wait for.
 * @returns false for one that stays open.
 */
export function hangUp(fd: number, kind: SocketKind, takeRights: (fd: number) => boolean = () => false): boolean {
  // Nothing more can come.
  shutdown(fd, SHUT_BOTH);
  set(fd, Option.passCredentials, true);
  for (;;) {
    const seen = receive(fd, MSG_PEEK, LOOK_BYTES, CREDENTIALS_BYTES);
    // That the other end has gone without reading is said once, before what it left.
    if (seen === -Errno.ECONNRESET) continue;
    const isOver =
      typeof seen === 'number' ||
      (seen.sizeBytes === 0 && !seen.hasRights && (kind === 'bytes' || !seen.hasCredentials));
    if (isOver) {
      closeFd(fd);
      return true;
    }
    if (!seen.hasRights) {
      receive(fd, 0, seen.sizeBytes);
    } else {
      set(fd, Option.passCredentials, false);
      if (!takeRights(fd)) {
        Atomics.add(kept, 0, 1);
        return false;
      }
      set(fd, Option.passCredentials, true);
    }
  }
}

/** Nobody is let in any more, and who was not yet is hung up on. Where there is no descriptor left for that, it stays open. */
export function closeDoor(listener: number, kind: SocketKind): void {
  shutdown(listener, SHUT_BOTH);
  for (;;) {
    const fd = accept4(listener, null, null, SOCK_FLAGS);
    if (fd >= 0) {
      set(fd, Option.outOfBandInline, true);
      hangUp(fd, kind);
    } else if (fd === -Errno.EMFILE || fd === -Errno.ENFILE) {
      return;
    } else if (fd !== -Errno.ECONNABORTED) {
      closeFd(listener);
      return;
    }
  }
}
