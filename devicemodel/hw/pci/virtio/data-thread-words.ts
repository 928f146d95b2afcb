/** What the device thread and a data thread share: one block of memory, written by one side at a time. */
import type { BlockImage } from './block-backend.ts';

/** Indexes into the shared words. An order is written, its number raised, the control descriptor signalled, the answer awaited. */
export const Word = { Order: 0, Ordered: 1, Answered: 2, Writeback: 3, ReportsLength: 4, Count: 8 } as const;

export const Order = { Start: 1, Stop: 2, Quit: 3 } as const;

/** One queue as given over: fields of a Float64Array, since addresses are larger than 32 bits. */
export const QueueField = {
  index: 0,
  size: 1,
  desc: 2,
  avail: 3,
  used: 4,
  position: 5,
  indirect: 6,
  eventIdx: 7,
  notifyOnEmpty: 8,
  kickFd: 9,
  callFd: 10,
  count: 16,
} as const;

export interface DataThreadSetup {
  readonly words: SharedArrayBuffer;
  readonly queues: SharedArrayBuffer;
  /** How many queues are given at most. */
  readonly queueCount: number;
  readonly controlFd: number;
  readonly chunks: ReadonlyArray<{ readonly base: number; readonly sizeBytes: number; readonly hostAddress: bigint }>;
  readonly image: BlockImage;
  readonly serial: Uint8Array;
  /** CPUs of the Service VM to run on; empty: any. */
  readonly cpus: readonly number[];
}

/** What a data thread has to say; everything else goes through the words. */
export type DataThreadMessage =
  | { readonly kind: 'ready' }
  | { readonly kind: 'guest'; readonly text: string }
  | { readonly kind: 'broken'; readonly queue: number; readonly reason: string };
