/**
 * What the device thread and a copying thread share: one block of words. A job is a read or a write that the device thread
 * described and published. It belongs to whoever takes it, which is one step of `Taken`; what the thread took is the thread's until
 * it has written the job's state.
 */
import { QUEUE_CAPACITY } from '../image-queue.ts';

export const Word = {
  /** Jobs that were published, and how many of them somebody has taken: both count on without an end. */
  Published: 0,
  Taken: 1,
  /** Jobs that the thread is through with. */
  Done: 2,
  /** The thread sleeps, and wants to be woken when `Bell` rings. */
  Sleeps: 3,
  /** The device thread has turned to other work: it wants a message when the job that the thread is at is done. */
  IsLate: 4,
  /** The thread is to end; and it touches nothing any more. */
  Quit: 5,
  HasQuit: 6,
  /** `Asked` is raised to see whether the thread still comes round: it makes `Alive` the same. */
  Asked: 7,
  Alive: 8,
  /** Counts whatever the thread is to look at: it sleeps on this word, so that nothing which comes first is slept through. */
  Bell: 9,
  /** The n-th job that was published has its number at `n % QUEUE_CAPACITY`. */
  Order: 10,
  Jobs: 10 + QUEUE_CAPACITY,
} as const;

/** Words of a job. */
export const JobWord = { State: 0, Pieces: 1, Bytes: 2, AtLow: 3, AtHigh: 4, IsWrite: 5, Count: 8 } as const;
export const JobState = {
  Open: 0,
  /** All bytes are there. */ Done: 1,
  /** Not all, for whatever reason. */ Failed: 2,
} as const;

export const WORDS = Word.Jobs + QUEUE_CAPACITY * JobWord.Count;

export function wordOf(job: number, word: number): number {
  return Word.Jobs + job * JobWord.Count + word;
}

/** @returns the number of a job that is the caller's from now on, or -1: there is none. */
export function takeJob(words: Int32Array): number {
  for (;;) {
    const taken = Atomics.load(words, Word.Taken);
    if (taken === Atomics.load(words, Word.Published)) return -1;
    const job = Atomics.load(words, Word.Order + (taken & (QUEUE_CAPACITY - 1)));
    if (Atomics.compareExchange(words, Word.Taken, taken, (taken + 1) | 0) === taken) return job;
  }
}

export interface CopyThreadSetup {
  readonly words: SharedArrayBuffer;
  /** The image. */
  readonly fd: number;
  /** Where it is mapped, to be written; 0: nothing is written. */
  readonly mapped: bigint;
  /** The pieces of guest memory of each job: so many bytes of struct iovec, one after the other. */
  readonly iovecs: bigint;
  readonly iovecBytes: number;
}

/** What the thread has to say; everything else goes through the words. */
export type CopyThreadMessage = 'ready' | 'done';
