/** Disk requests on a data thread. */
import type { CounterPage } from '../../../../core/counters.ts';
import type { Log } from '../../../../core/log.ts';
import type { DiskImage } from '../../../storage/disk-image.ts';
import { ImageIo } from '../../../storage/image-io.ts';
import { SECTOR_BYTES } from '../../../storage/image-options.ts';
import { type DataService, type QueueServer, type ServerFactory, Word } from '../data-thread/words.ts';
import { monotonicClock } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import { BlockRing } from './io-ring.ts';
import { BlockRequests } from './requests.ts';
import { NOTE_WORDS, WorkNote } from './work-note.ts';

/** What a data thread has to know of a disk. */
export interface BlockService extends DataService {
  readonly kind: 'block';
  readonly image: DiskImage;
  readonly serial: Uint8Array;
  /** `aio=threads`: plain system calls. */
  readonly usesRing: boolean;
}

/** Words that tell the server of the negotiation; `Writeback` changes while it runs. */
export const BlockWord = {
  Writeback: Word.OfServer,
  ReportsLength: Word.OfServer + 1,
  /** What the thread waits for: NOTE_WORDS. */
  Note: Word.OfServer + 2,
  /** Size of the disk in sectors, the two halves; and how often it has changed, which is written last. */
  SizeLow: Word.OfServer + 6,
  SizeHigh: Word.OfServer + 7,
  Resizes: Word.OfServer + 8,
} as const;

/** The note in the words of a data thread. */
export function noteIn(words: Int32Array): WorkNote {
  return new WorkNote(words.subarray(BlockWord.Note, BlockWord.Note + NOTE_WORDS));
}

class BlockServer implements QueueServer {
  readonly #backend: ImageIo;
  readonly #requests: BlockRequests;
  readonly #ring: BlockRing | undefined;
  readonly #words: Int32Array;
  #queues: readonly Virtqueue[] = [];
  #resizes = 0;

  constructor(service: BlockService, words: Int32Array, counts: CounterPage, log: Log) {
    const backend = new ImageIo(service.image);
    this.#words = words;
    this.#backend = backend;
    this.#ring = service.usesRing ? openRing(log) : undefined;
    this.#requests = new BlockRequests(
      {
        backend,
        serial: service.serial,
        runsBesideDriver: true,
        note: noteIn(words),
        counts,
        get isWriteback() {
          return Atomics.load(words, BlockWord.Writeback) !== 0;
        },
        get reportsLength() {
          return Atomics.load(words, BlockWord.ReportsLength) !== 0;
        },
      },
      log,
      monotonicClock,
      this.#ring,
    );
    this.#requests.lookAtSize = () => this.#lookAtSize();
  }

  get waitFd(): number {
    return this.#ring !== undefined && this.#ring.inFlight > 0 ? this.#ring.fd : -1;
  }

  start(queues: readonly Virtqueue[]): void {
    this.#queues = queues;
  }

  serve(queue: Virtqueue): boolean {
    return this.#requests.serve(queue);
  }

  #lookAtSize(): void {
    if (Atomics.load(this.#words, BlockWord.Resizes) === this.#resizes) return;
    const word = (index: number) => Atomics.load(this.#words, index) >>> 0;
    this.#resizes = word(BlockWord.Resizes);
    this.#backend.resize((word(BlockWord.SizeHigh) * 2 ** 32 + word(BlockWord.SizeLow)) * SECTOR_BYTES);
  }

  onReadable(): void {
    this.#requests.finish();
  }

  stop(): void {
    this.#requests.settle(this.#queues);
    this.#queues = [];
  }

  dispose(): void {
    this.#ring?.dispose();
    this.#backend.dispose();
  }
}

export const server: ServerFactory = (service, { words, counts, log }) =>
  new BlockServer(service as BlockService, words, counts, log);

/** A ring, where the kernel has one and lets us. */
function openRing(log: Log): BlockRing | undefined {
  try {
    return new BlockRing();
  } catch (error) {
    log.guest(() => `${(error as Error).message}: requests are served one after the other`);
    return undefined;
  }
}
