/** Disk requests on a data thread. */
import type { Log } from '../../../core/log.ts';
import { BlockBackend, type BlockImage } from './block-backend.ts';
import { BlockRequests } from './block-requests.ts';
import { BlockWord, type QueueServer } from './data-thread-words.ts';
import type { Virtqueue } from './virtqueue.ts';

/** What a data thread has to know of a disk. */
export interface BlockService {
  readonly kind: 'block';
  readonly image: BlockImage;
  readonly serial: Uint8Array;
}

export class BlockServer implements QueueServer {
  readonly waitFd = -1;
  readonly #backend: BlockBackend;
  readonly #requests: BlockRequests;

  constructor(service: BlockService, words: Int32Array, log: Log) {
    const backend = new BlockBackend(service.image);
    this.#backend = backend;
    this.#requests = new BlockRequests(
      {
        backend,
        serial: service.serial,
        get isWriteback() {
          return Atomics.load(words, BlockWord.Writeback) !== 0;
        },
        get reportsLength() {
          return Atomics.load(words, BlockWord.ReportsLength) !== 0;
        },
      },
      log,
    );
  }

  start(): void {}

  serve(queue: Virtqueue): boolean {
    return this.#requests.serve(queue);
  }

  onReadable(): void {}

  /** Requests are served to their end: nothing is in flight between two turns. */
  stop(): void {}

  dispose(): void {
    this.#backend.dispose();
  }
}
