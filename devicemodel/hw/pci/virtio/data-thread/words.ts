/** What the device thread and a data thread share: one block of memory, written by one side at a time. */
import type { CounterPage } from '../../../../core/counters.ts';
import type { Log } from '../../../../core/log.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';

/**
 * Indexes into the shared words. An order is written, its number raised, the control descriptor signalled. The thread
 * carries it out, writes the positions of the queues, then the number as the answer, and says so in a message. `Asked` is
 * raised to see whether the thread still comes round: it makes `Alive` the same.
 */
export const Word = {
  Order: 0,
  Ordered: 1,
  Answered: 2,
  Standing: 3,
  Asked: 4,
  Alive: 5,
  OfServer: 8,
  Count: 24,
} as const;

/** Whether the positions in the queue fields are the queues': what counts of a thread that ended by an error. */
export const Standing = { Unknown: 0, /** Everything before them is used. */ Known: 1 } as const;

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
  packed: 11,
  count: 16,
} as const;

/** What a device tells its server in a data thread, as plain data: `kind` is the folder whose server.ts has the server. */
export interface DataService {
  readonly kind: string;
}

export interface DataThreadSetup {
  readonly words: SharedArrayBuffer;
  readonly queues: SharedArrayBuffer;
  /** How many queues are given at most. */
  readonly queueCount: number;
  readonly controlFd: number;
  readonly chunks: ReadonlyArray<{ readonly base: number; readonly sizeBytes: number; readonly hostAddress: bigint }>;
  readonly service: DataService;
  /** What the thread counts in. */
  readonly counts: CounterPage;
  /** CPUs of the Service VM to run on; empty: any. */
  readonly cpus: readonly number[];
}

/** What a data thread has to say; everything else goes through the words. */
export type DataThreadMessage =
  | { readonly kind: 'ready' }
  /** The latest order is carried out. */
  | { readonly kind: 'answered' }
  /** The thread ends by an error. */
  | { readonly kind: 'ended'; readonly reason: string }
  | { readonly kind: 'guest'; readonly text: string }
  /** `order` is the number of the order to start: after another one the driver that broke the ring is gone. */
  | { readonly kind: 'broken'; readonly order: number; readonly queue: number; readonly reason: string }
  /** What is behind the queues has failed, and how; the queues stand still until they are taken back. */
  | { readonly kind: 'failed'; readonly errno: number };

/** The work of a data thread. The loop in data-thread-main.ts waits and tells it when there is something to do. */
export interface QueueServer {
  /** A descriptor to wait for besides the kicks, or -1 while there is none. */
  readonly waitFd: number;
  /** Queues to serve from now on, set up and at their position. */
  start(queues: readonly Virtqueue[]): void;
  /** @returns false if there may be more in the queue: call again once the others had their turn. */
  serve(queue: Virtqueue): boolean;
  /** `waitFd` is readable, or in trouble. */
  onReadable(): void;
  /** Finish what is in flight and put back what was only taken: everything before the queues' position is used. */
  stop(): void;
  /** The thread ends. */
  dispose(): void;
}

/** What a data thread gives to the server it makes. */
export interface ServerWires {
  /** Shared with the device; its own are those from `Word.OfServer` on. */
  readonly words: Int32Array;
  /** Of the device's kind, of this thread. */
  readonly counts: CounterPage;
  readonly log: Log;
  /** What is behind the queues is gone. */
  tellFailed(errno: number): void;
}

/** Makes the server of one kind of service. */
export type ServerFactory = (service: DataService, wires: ServerWires) => QueueServer;
