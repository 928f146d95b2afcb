/** A Unix stream socket of somebody who is there and accepts nobody: what waits for it is full. */
import { connect } from 'node:net';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { native } from '../../devicemodel/core/host/libc.ts';

const AF_UNIX = 1;
const SOCK_STREAM_CLOEXEC = 1 | 0o2000000;

/** Whoever connects now gets EAGAIN. @returns how to end it; the file stays, as after a kill. */
export async function stuckListener(path: string): Promise<() => void> {
  const fd = native('int socket(int, int, int)')(AF_UNIX, SOCK_STREAM_CLOEXEC, 0);
  const address = Buffer.alloc(110);
  address[0] = AF_UNIX;
  address.write(path, 2);
  if (native('int bind(int, const void *, unsigned int)')(fd, address, address.length) !== 0) throw new Error(path);
  if (native('int listen(int, int)')(fd, 0) !== 0) throw new Error(path);
  // The kernel lets one more wait than was said.
  const first = connect(path);
  first.on('error', () => {});
  await new Promise((resolve) => first.once('connect', resolve));
  return () => {
    first.destroy();
    closeFd(fd);
  };
}
