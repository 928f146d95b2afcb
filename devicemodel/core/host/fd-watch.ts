/** Descriptors that Node's event loop looks at. */
import koffi from 'koffi';

const watchAdded = new Set<() => void>();

/**
 * Be told of every watch that is added: the event loop looks at a new one only from its next turn on, and a thread that
 * has its own wait has to give it that turn. @returns how to stop.
 */
export function onWatchAdded(listener: () => void): () => void {
  watchAdded.add(listener);
  return () => void watchAdded.delete(listener);
}

/** Call back on the event loop whenever the descriptor is readable. @returns how to stop. Keeps the process alive until then. */
export function watchFd(fd: number, onReadable: () => void): () => void {
  const handle = koffi.node.poll(fd, { readable: true }, onReadable);
  for (const listener of watchAdded) listener();
  return () => handle.close();
}
