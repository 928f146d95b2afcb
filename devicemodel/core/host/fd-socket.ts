/**
 * Unix sockets that carry descriptors: SOCK_SEQPACKET, one message a packet, with SCM_RIGHTS (unix(7)). Node's own sockets
 * cannot. Nothing here waits.
 */
import { rmSync } from 'node:fs';
import { Errno } from './errno.ts';
import { closeFd } from './files.ts';
import { hostCall, must } from './libc.ts';
import { type Mapping, mapForThread } from './mapping.ts';
import { OWNER_ONLY, withUmask } from './umask.ts';

const AF_UNIX = 1;
const SOCK_SEQPACKET = 5;
const SOCK_FLAGS = 0o4000 | 0o2000000; // SOCK_NONBLOCK | SOCK_CLOEXEC
const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** Control data or text was cut off. */
const MSG_TRUNCATED = 0x20 | 0x08;
const BACKLOG = 64;
/** struct sockaddr_un: family, then the path with its end. */
const ADDRESS_BYTES = 110;
/** struct msghdr, iovec and cmsghdr on x86-64. */
const Header = { iov: 16, iovCount: 24, control: 32, controlBytes: 40, flags: 48, sizeBytes: 56 } as const;
const Control = { length: 0, level: 8, type: 12, data: 16 } as const;

/** Descriptors in one message, at most. */
export const MAX_FDS = 16;
/** Bytes of text in one message, at most. */
const MAX_TEXT_BYTES = 1024;
const CONTROL_BYTES = Control.data + 4 * MAX_FDS;
/** Places in the page that the calls read and write. */
const Place = { header: 0, iov: 64, control: 128, text: 512 } as const;
const PAGE_BYTES = 4096;

const socket = hostCall<[family: number, type: number, protocol: number]>('int socket(int, int, int)');
const bind = hostCall<[fd: number, address: Uint8Array, bytes: number]>('int bind(int, const void *, unsigned int)');
const connect = hostCall<[fd: number, address: Uint8Array, bytes: number]>(
  'int connect(int, const void *, unsigned int)',
);
const listen = hostCall<[fd: number, backlog: number]>('int listen(int, int)');
const accept4 = hostCall<[fd: number, address: null, bytes: null, flags: number]>(
  'int accept4(int, void *, void *, int)',
);
const sendmsg = hostCall<[fd: number, header: bigint, flags: number]>('int64_t sendmsg(int, uintptr_t, int)');
const recvmsg = hostCall<[fd: number, header: bigint, flags: number]>('int64_t recvmsg(int, uintptr_t, int)');

/** Memory that does not move, for what the header points at. */
let page: { readonly mapping: Mapping; readonly view: DataView } | undefined;

function scratch() {
  if (page === undefined) {
    const mapping = mapForThread(PAGE_BYTES, 'messages with descriptors');
    page = { mapping, view: new DataView(mapping.bytes.buffer, mapping.bytes.byteOffset, PAGE_BYTES) };
  }
  const { mapping, view } = page;
  const at = (place: number) => mapping.address + BigInt(place);
  mapping.bytes.fill(0, 0, Place.text);
  view.setBigUint64(Place.header + Header.iov, at(Place.iov), true);
  view.setBigUint64(Place.header + Header.iovCount, 1n, true);
  view.setBigUint64(Place.iov, at(Place.text), true);
  view.setBigUint64(Place.header + Header.control, at(Place.control), true);
  return { bytes: mapping.bytes, view, header: at(Place.header) };
}

function address(path: string): Uint8Array {
  const out = new Uint8Array(ADDRESS_BYTES);
  out[0] = AF_UNIX;
  out.set(new TextEncoder().encode(path).subarray(0, ADDRESS_BYTES - 3), 2);
  return out;
}

function newSocket(what: string): number {
  return must(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_FLAGS, 0), 'socket', what);
}

/**
 * A file of that name must not be there. @param mask what its mode does not have: for this user alone, if it is not given.
 * @returns a descriptor that is readable when somebody connects. @throws HostError
 */
export function listenForFds(path: string, mask = OWNER_ONLY): number {
  const fd = newSocket(path);
  let isBound = false;
  try {
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
export function acceptFds(listener: number): number | undefined {
  const fd = accept4(listener, null, null, SOCK_FLAGS);
  return NOBODY.has(-fd) ? undefined : must(fd, 'accept', 'a connection');
}

/** @returns a connection, or undefined when nobody listens there. @throws HostError without descriptors. */
export function connectForFds(path: string): number | undefined {
  const fd = newSocket(path);
  if (connect(fd, address(path), ADDRESS_BYTES) === 0) return fd;
  closeFd(fd);
  return undefined;
}

/** The other side gets descriptors of its own. @returns false when it is gone, or does not read. */
export function sendFds(fd: number, text: string, fds: readonly number[]): boolean {
  const { bytes, view, header } = scratch();
  const encoded = new TextEncoder().encode(text);
  if (encoded.length > MAX_TEXT_BYTES || fds.length > MAX_FDS) return false;
  bytes.set(encoded, Place.text);
  view.setBigUint64(Place.iov + 8, BigInt(encoded.length), true);
  if (fds.length > 0) {
    const length = Control.data + 4 * fds.length;
    view.setBigUint64(Place.header + Header.controlBytes, BigInt(Math.ceil(length / 8) * 8), true);
    view.setBigUint64(Place.control + Control.length, BigInt(length), true);
    view.setInt32(Place.control + Control.level, SOL_SOCKET, true);
    view.setInt32(Place.control + Control.type, SCM_RIGHTS, true);
    for (const [i, value] of fds.entries()) view.setInt32(Place.control + Control.data + 4 * i, value, true);
  } else {
    view.setBigUint64(Place.header + Header.control, 0n, true);
  }
  return sendmsg(fd, header, MSG_NOSIGNAL) === encoded.length;
}

/**
 * The descriptors are the caller's. @returns undefined when there is nothing yet, 'ended' when the other side is gone; no
 * text for what is no message of ours.
 */
export function receiveFds(fd: number): { readonly text: string; readonly fds: number[] } | 'ended' | undefined {
  const { bytes, view, header } = scratch();
  view.setBigUint64(Place.iov + 8, BigInt(MAX_TEXT_BYTES), true);
  view.setBigUint64(Place.header + Header.controlBytes, BigInt(CONTROL_BYTES), true);
  const length = recvmsg(fd, header, MSG_CMSG_CLOEXEC);
  if (length === -Errno.EAGAIN) return undefined;
  if (length < 0) return 'ended';
  const fds: number[] = [];
  const controlBytes = Number(view.getBigUint64(Place.header + Header.controlBytes, true));
  const isRights =
    controlBytes >= Control.data &&
    view.getInt32(Place.control + Control.level, true) === SOL_SOCKET &&
    view.getInt32(Place.control + Control.type, true) === SCM_RIGHTS;
  if (isRights) {
    const end = Number(view.getBigUint64(Place.control + Control.length, true));
    for (let at: number = Control.data; at + 4 <= Math.min(end, CONTROL_BYTES); at += 4) {
      fds.push(view.getInt32(Place.control + at, true));
    }
  }
  if (length === 0 && fds.length === 0) return 'ended';
  if ((view.getInt32(Place.header + Header.flags, true) & MSG_TRUNCATED) !== 0) return { text: '', fds };
  return { text: new TextDecoder().decode(bytes.subarray(Place.text, Place.text + length)), fds };
}
