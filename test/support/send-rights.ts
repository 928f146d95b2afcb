import { native } from '../../devicemodel/core/host/libc.ts';
import { map } from '../../devicemodel/core/host/mapping.ts';

const SCM_RIGHTS = 1;
const SOL_SOCKET = 1;
const MSG_NOSIGNAL = 0x4000;
/** struct msghdr, iovec, cmsghdr with its descriptors, and the bytes. */
const At = { iov: 64, control: 96, bytes: 2048 } as const;

const sendmsg = native('int64_t sendmsg(int, uintptr_t, int)');

/** As many descriptors as the kernel lets through, with flags of the caller's. @returns whether it was sent. */
export function sendRights(fd: number, text: string, fds: readonly number[], flags = 0): boolean {
  const memory = map(4096, 'a message');
  const { bytes, address } = memory;
  try {
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    bytes.set(new TextEncoder().encode(text), At.bytes);
    view.setBigUint64(At.iov, address + BigInt(At.bytes), true);
    view.setBigUint64(At.iov + 8, BigInt(text.length), true);
    view.setBigUint64(At.control, BigInt(16 + 4 * fds.length), true);
    view.setInt32(At.control + 8, SOL_SOCKET, true);
    view.setInt32(At.control + 12, SCM_RIGHTS, true);
    for (const [i, each] of fds.entries()) view.setInt32(At.control + 16 + 4 * i, each, true);
    view.setBigUint64(16, address + BigInt(At.iov), true);
    view.setBigUint64(24, 1n, true);
    if (fds.length > 0) {
      view.setBigUint64(32, address + BigInt(At.control), true);
      view.setBigUint64(40, BigInt(16 + 4 * fds.length), true);
    }
    return sendmsg(fd, address, MSG_NOSIGNAL | flags) === text.length;
  } finally {
    memory.dispose();
  }
}
