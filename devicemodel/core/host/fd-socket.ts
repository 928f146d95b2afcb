/**
 * Messages with descriptors over Unix sockets (wary-socket.ts, `packets`). Node's own sockets cannot. Nothing here waits.
 */
import { readdirSync } from 'node:fs';
import { Errno } from './errno.ts';
import { hostCall } from './libc.ts';
import { processLimit, processLimitsText } from './process-limits.ts';
import { SocketMessage } from './socket-message.ts';
import { look } from './wary-socket.ts';

const SOL_SOCKET = 1;
const SCM_RIGHTS = 1;
const MSG_NOSIGNAL = 0x4000;
const MSG_CMSG_CLOEXEC = 0x4000_0000;
/** Control data or text was cut off. */
const MSG_TRUNCATED = 0x20 | 0x08;
/** struct cmsghdr on x86-64. */
const Control = { length: 0, level: 8, type: 12, data: 16 } as const;

/** Descriptors in one message of ours, at most. */
export const MAX_FDS = 16;
/** In one of anybody's [SCM_MAX_FD]: what there is no room for the kernel closes, and may wait. */
const MAX_TAKEN_FDS = 253;
/** Bytes of text in one message, at most. */
const MAX_TEXT_BYTES = 1024;
const CONTROL_BYTES = Control.data + 4 * (MAX_TAKEN_FDS + 1);
const sendmsg = hostCall<[fd: number, header: bigint, flags: number]>('int64_t sendmsg(int, uintptr_t, int)');
const recvmsg = hostCall<[fd: number, header: bigint, flags: number]>('int64_t recvmsg(int, uintptr_t, int)');

/** Memory that does not move, for what the header points at. */
const message = new SocketMessage('messages with descriptors', CONTROL_BYTES, MAX_TEXT_BYTES);

/** The other side gets descriptors of its own. @returns false when it is gone, or does not read. */
export function sendFds(fd: number, text: string, fds: readonly number[]): boolean {
  const encoded = new TextEncoder().encode(text);
  if (encoded.length > MAX_TEXT_BYTES || fds.length > MAX_FDS) return false;
  const length = fds.length === 0 ? 0 : Control.data + 4 * fds.length;
  const header = message.prepare(encoded.length, Math.ceil(length / 8) * 8);
  message.data.set(encoded);
  if (fds.length > 0) {
    const { control } = message;
    control.setBigUint64(Control.length, BigInt(length), true);
    control.setInt32(Control.level, SOL_SOCKET, true);
    control.setInt32(Control.type, SCM_RIGHTS, true);
    for (const [i, value] of fds.entries()) control.setInt32(Control.data + 4 * i, value, true);
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
  const length = recvmsg(fd, message.prepare(MAX_TEXT_BYTES, CONTROL_BYTES), MSG_CMSG_CLOEXEC);
  if (length === -Errno.EAGAIN) return undefined;
  if (length < 0) return 'ended';
  const fds: number[] = [];
  const { control, controlBytes } = message;
  const isRights =
    controlBytes >= Control.data &&
    control.getInt32(Control.level, true) === SOL_SOCKET &&
    control.getInt32(Control.type, true) === SCM_RIGHTS;
  if (isRights) {
    const end = Number(control.getBigUint64(Control.length, true));
    for (let at: number = Control.data; at + 4 <= Math.min(end, CONTROL_BYTES); at += 4) {
      fds.push(control.getInt32(at, true));
    }
  }
  if (length === 0 && fds.length === 0) return 'ended';
  if ((message.flags & MSG_TRUNCATED) !== 0) return { text: '', fds };
  return { text: new TextDecoder().decode(message.data.subarray(0, length)), fds };
}
