/** Which {@link ImageQueue} an image gets: the best that its host and the guest's memory allow. */
import type { Clock } from '../../core/clock.ts';
import type { GuestRam } from '../../core/guest-buffers.ts';
import type { Log } from '../../core/log.ts';
import type { ThreadPulses } from '../../core/thread-pulses.ts';
import type { ImageIo } from './image-io.ts';
import type { ImageQueue } from './image-queue.ts';
import { RingQueue } from './ring-queue.ts';
import { SlicedQueue } from './sliced-queue.ts';

/** @param usesRing false: io_uring is not wanted (`aio=threads`). */
export function openImageQueue(
  io: ImageIo,
  ram: GuestRam,
  clock: Clock,
  log: Log,
  usesRing: boolean,
  pulses: ThreadPulses,
): ImageQueue {
  if (!usesRing || !ram.hasHostAddresses) return new SlicedQueue(io, clock);
  try {
    return new RingQueue(io, clock, log, pulses);
  } catch (error) {
    log.debug(`${(error as Error).message}: requests on ${io.image.path} are served one after the other`);
    return new SlicedQueue(io, clock);
  }
}
