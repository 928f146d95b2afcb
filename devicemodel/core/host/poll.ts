/** poll(2) over a fixed number of places; nothing here allocates per call. */
import { hostCall } from './libc.ts';

const POLLIN = 1;
/** What `poll` answers without being asked. */
export const PollResult = { Error: 8, Hangup: 16 } as const;
/** struct pollfd: s32 fd, s16 events, s16 revents. */
const POLLFD_BYTES = 8;

const poll = hostCall<[fds: Uint8Array, count: number, timeoutMs: number]>('int poll(void *, unsigned long, int)');

export class PollSet {
  readonly #fds: DataView;
  readonly #bytes: Uint8Array;

  constructor(places: number) {
    this.#fds = new DataView(new ArrayBuffer(POLLFD_BYTES * places));
    this.#bytes = new Uint8Array(this.#fds.buffer);
  }

  /** Look at `fd` in this place; a negative one is skipped. */
  watch(place: number, fd: number): void {
    this.#fds.setInt32(place * POLLFD_BYTES, fd, true);
    this.#fds.setInt16(place * POLLFD_BYTES + 4, POLLIN, true);
  }

  /**
   * Wait for the first `places` of them.
   * @param timeoutMs -1: for ever.
   * @returns how many have something, or a negative errno.
   */
  wait(places: number, timeoutMs: number): number {
    return poll(this.#bytes, places, timeoutMs);
  }

  /** After `wait`: whether there is something to read. */
  isReadable(place: number): boolean {
    return (this.results(place) & POLLIN) !== 0;
  }

  /** After `wait`: whether there is anything, an error or the end of the other side included. */
  isReady(place: number): boolean {
    return this.results(place) !== 0;
  }

  /** After `wait`: all of it. */
  results(place: number): number {
    return this.#fds.getInt16(place * POLLFD_BYTES + 6, true);
  }
}
