/**
 * Messages with descriptors over Unix sockets (wary-socket.ts, `packets`). Node's own sockets cannot. Nothing here waits.
 */
import { readdirSync } from 'node:fs';
import { Errno } from './errno.ts';
import { hostCall } from './libc.ts';
import { type Mapping, mapForThread } from './mapping.ts';
import { processLimit, processLimitsText } from './process-limits.ts';
import { look } from './wary-socket.ts';

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** Control data or text was cut off. */
const MSG_TRUNCATED = 0x20 | 0x08;
/** struct msghdr, iovec and cmsghdr on x86-64. */
const Header = { iov: 16, iovCount: 24, control: 32, controlBytes: 40, flags: 48, sizeBytes: 56 } as const;
const Control = { length: 0, level: 8, type: 12, data: 16 } as const;

/** Descriptors in one message of ours, at most. */
export const MAX_FDS = 16;
/** In one of anybody's [SCM_MAX_FD]: what there is no room for the kernel closes, and may wait. */
const MAX_TAKEN_FDS = 253;
/** Bytes of text in one message, at most. */
const MAX_TEXT_BYTES = 1024;
const CONTROL_BYTES = Control.data + 4 * (MAX_TAKEN_FDS + 1);
/** Places in the page that the calls read and write. */
const Place = { header: 0, iov: 64, control: 128, text: 2048 } as const;
const PAGE_BYTES = 4096;

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

/** Half of what this process may have stays its own. Where there is no descriptor to ask with there is no room. */
function hasRoomForOthers(): boolean {
  const limits = processLimitsText();
  if (limits === '') return false;
  const limit = processLimit('Max open files', limits);
  if (limit === Number.POSITIVE_INFINITY) return true;
  try {
    return limit - readdirSync('/proc/self/fd').length > Math.max(limit / 2, 2 * MAX_TAKEN_FDS);
  } catch {
    return false;
  }
}

/**
 * The descriptors are the caller's, however many. @returns undefined when there is nothing yet, 'ended' when the other side is
 * gone, 'no room' for a message with descriptors that are too many: it stays there; no text for what is no message of ours.
 */
export function receiveFds(
  fd: number,
): { readonly text: string; readonly fds: readonly number[] } | 'ended' | 'no room' | undefined {
  const seen = look(fd);
  if (typeof seen !== 'object') return seen;
  if (seen.hasRights && !hasRoomForOthers()) return 'no room';
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
