/** Descriptors that Node's event loop looks at. */
import koffi from 'koffi';
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';

const watchAdded = new Set<() => void>();

/**
 * Be told of every watch that is added: the event loop looks at a new one only from its next turn on, and a thread that
 * has its own wait has to give it that turn. @returns how to stop.
 */
export function onWatchAdded(listener: () => void): () => void {
  watchAdded.add(listener);
  return () => void watchAdded.delete(listener);
}

/**
 * Call back on the event loop whenever the descriptor is readable. @returns how to stop. Keeps the process alive until then.
 * @throws HostError when the event loop cannot take another descriptor.
 */
export function watchFd(fd: number, onReadable: () => void): () => void {
  return watchFdFor(fd, 'readable', onReadable);
}

export type FdEvent = 'readable' | 'writable' | 'either';

/**
 * As {@link watchFd}, for one of the two directions or both; an error of the descriptor counts as ready. A descriptor has one
 * watch at a time. @param keepsProcess false: the process may end meanwhile.
 */
export function watchFdFor(fd: number, event: FdEvent, onReady: () => void, keepsProcess = true): () => void {
  const handle = poll(fd, event, onReady);
  if (!keepsProcess) handle.unref();
  watches.add(handle);
  for (const listener of watchAdded) listener();
  return () => {
    watches.delete(handle);
    handle.close();
  };
}

/** Of this thread. */
const watches = new Set<{ close(): void }>();

/**
 * Before a thread other than the main one ends, however it does: a watch that is left then makes the process end by a
 * fault, in koffi's clean-up. What a callback throws is lost, too: no event tells of it.
 */
export function closeWatches(): void {
  for (const handle of watches) handle.close();
  watches.clear();
}

function poll(fd: number, event: FdEvent, onReady: () => void) {
  try {
    return koffi.node.poll(fd, { readable: event !== 'writable', writable: event !== 'readable' }, onReady);
  } catch (cause) {
    // koffi says in words what libuv answered.
    const message = `descriptor ${fd}: the event loop cannot look at it: ${(cause as Error).message}`;
    throw new HostError(message, Errno.ENOMEM, { cause });
  }
}
