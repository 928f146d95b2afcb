/** What a VM does with the sockets of doorbells, or somebody else in its place. */
import { sendFds } from '../../devicemodel/core/host/fd-socket.ts';
import { acceptCaller, allowRights, connectTo, listenAt } from '../../devicemodel/core/host/wary-socket.ts';

/** @returns undefined when nobody listens there. */
export function connectForFds(path: string): number | undefined {
  const fd = connectTo(path, 'packets');
  return fd < 0 ? undefined : fd;
}

export const listenForFds = (path: string) => listenAt(path, 'packets');

export function acceptFds(listener: number): number | undefined {
  const fd = acceptCaller(listener);
  if (fd !== undefined) allowRights(fd);
  return fd;
}

/** Send descriptors as soon as who was called takes them, or hangs up. */
export async function offerFds(fd: number, text: string, fds: readonly number[]): Promise<void> {
  const end = performance.now() + 10_000;
  while (!sendFds(fd, text, fds)) {
    if (performance.now() > end) throw new Error('nobody takes descriptors');
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}
