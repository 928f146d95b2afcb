/** Who is at a Unix stream socket. */
import { createConnection, type Socket } from 'node:net';

/** Of connect(2): there is no such file, or nobody has it open to listen any more. */
const NOBODY: ReadonlySet<string | undefined> = new Set(['ENOENT', 'ECONNREFUSED']);

/**
 * @returns a connection; 'nobody' when nobody listens there any more; 'unreachable' when there cannot be a connection now,
 * and somebody may well listen: one that stands still has no room for who waits (EAGAIN), this process no descriptor left.
 */
export function connectUnix(path: string): Promise<Socket | 'nobody' | 'unreachable'> {
  return new Promise((resolve) => {
    const socket = createConnection({ path });
    socket.once('connect', () => resolve(socket));
    socket.on('error', ({ code }: NodeJS.ErrnoException) => resolve(NOBODY.has(code) ? 'nobody' : 'unreachable'));
  });
}

/** Whether somebody listens at this Unix socket, as far as can be known: then the file is not to be removed. */
export async function isServed(path: string): Promise<boolean> {
  const found = await connectUnix(path);
  if (typeof found !== 'string') found.destroy();
  return found !== 'nobody';
}
