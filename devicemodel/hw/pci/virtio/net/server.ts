/** Frames of a network device on a data thread. */
import type { CounterPage } from '../../../../core/counters.ts';
import { isTapGone, tapFailure } from '../../../../core/host/tap.ts';
import type { Log } from '../../../../core/log.ts';
import {
  type DataService,
  type QueueServer,
  type ServerFactory,
  type ServerWires,
  Word,
} from '../data-thread/words.ts';
import { monotonicClock } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import { type NetFrameState, NetFrames, RECEIVE, TRANSMIT } from './frames.ts';
import { TapRing } from './tap-ring.ts';

/** What a data thread has to know of a network device. */
export interface NetService extends DataService {
  readonly kind: 'net';
  /** For messages. */
  readonly tap: string;
  readonly hasHeader: boolean;
}

/** Words that tell the server of the negotiation. */
export const NetWord = {
  TapFd: Word.OfServer,
  HeaderBytes: Word.OfServer + 1,
  Merges: Word.OfServer + 2,
  Segmented: Word.OfServer + 3,
  ReportsRead: Word.OfServer + 4,
} as const;

class NetServer implements QueueServer, NetFrameState {
  readonly hasHeader: boolean;
  readonly counts: CounterPage;
  fd: number | undefined;
  headerBytes = 0;
  merges = false;
  isSegmented = false;
  reportsRead = false;
  readonly #words: Int32Array;
  readonly #log: Log;
  readonly #tap: string;
  readonly #tellFailed: (errno: number) => void;
  readonly #frames: NetFrames;
  #receive: Virtqueue | undefined;
  /** Frames have somewhere to go. */
  #hasBuffers = false;

  constructor(service: NetService, { words, counts, log, tellFailed }: ServerWires) {
    this.#words = words;
    this.counts = counts;
    this.#log = log;
    this.#tap = service.tap;
    this.hasHeader = service.hasHeader;
    this.#tellFailed = tellFailed;
    this.#frames = new NetFrames(this, log, monotonicClock, openRing(log));
  }

  get waitFd(): number {
    return this.#hasBuffers && this.fd !== undefined ? this.fd : -1;
  }

  start(queues: readonly Virtqueue[]): void {
    const word = (index: number) => Atomics.load(this.#words, index);
    this.fd = word(NetWord.TapFd);
    this.headerBytes = word(NetWord.HeaderBytes);
    this.merges = word(NetWord.Merges) !== 0;
    this.isSegmented = word(NetWord.Segmented) !== 0;
    this.reportsRead = word(NetWord.ReportsRead) !== 0;
    this.#receive = queues.find((queue) => queue.index === RECEIVE);
    this.#hasBuffers = true;
  }

  serve(queue: Virtqueue): boolean {
    if (queue.index === TRANSMIT) return this.#frames.transmit(queue);
    this.onReadable();
    return true;
  }

  onReadable(): void {
    const queue = this.#receive;
    this.#hasBuffers = queue?.isReady === true && this.#frames.receive(queue);
  }

  failed(what: 'send' | 'receive', errno: number): void {
    this.#log.guest(() => tapFailure(this.#tap, what, errno));
    if (!isTapGone(errno) || this.fd === undefined) return;
    this.fd = undefined;
    this.#tellFailed(errno);
  }

  stop(): void {
    const queue = this.#receive;
    if (queue !== undefined) this.#frames.putBackBuffers(queue);
    this.#receive = undefined;
    this.#hasBuffers = false;
    this.fd = undefined;
  }

  dispose(): void {
    this.#frames.dispose();
  }
}

export const server: ServerFactory = (service, wires) => new NetServer(service as NetService, wires);

/** A ring, where the kernel has one and lets us. */
function openRing(log: Log): TapRing | undefined {
  try {
    return new TapRing();
  } catch (error) {
    log.guest(() => `${(error as Error).message}: frames are moved one by one`);
    return undefined;
  }
}
