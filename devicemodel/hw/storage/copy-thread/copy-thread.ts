/**
 * A second thread for what a guest reads or writes at once of a busy image in memory, seen from the device thread. Both take jobs
 * from one list, so that two CPUs copy; where the other thread has no CPU, this one does them all. Who asked for what, and
 * what is to be told to the guest, stays with the device thread, which only waits when nothing is left to take, for a
 * millisecond at most. Where the other thread has no CPU that costs more than it gains: nothing is shared for a while then.
 *
 * Linux lets one thread at a time write to a file, but any number to memory that it is mapped to: that is how the other
 * thread writes, beside this one, which does not.
 */
import { existsSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import type { Worker } from 'node:worker_threads';
import type { Clock } from '../../../core/clock.ts';
import { HostError } from '../../../core/errors.ts';
import { leaveThreadBehind, onProcessEnd } from '../../../core/host/exit-hooks.ts';
import { mapUnseen, type UnseenMapping } from '../../../core/host/mapping.ts';
import { MemoryWriter } from '../../../core/host/process-memory.ts';
import { startWorker } from '../../../core/host/worker.ts';
import type { Log } from '../../../core/log.ts';
import type { ThreadPulse, ThreadPulses } from '../../../core/thread-pulses.ts';
import { QUEUE_CAPACITY } from '../image-queue.ts';
import {
  type CopyThreadMessage,
  type CopyThreadSetup,
  JobState,
  JobWord,
  takeJob,
  WORDS,
  Word,
  wordOf,
} from './words.ts';

const ownExtension = /\.[a-z]+$/.exec(import.meta.url)?.[0] ?? '.js';
const workerUrl = new URL(`./copy-thread-main${ownExtension === '.ts' ? '.ts' : '.js'}`, import.meta.url);
/** So many copies that the thread could have shared within this time make an image busy: as of a virtio disk. */
const BUSY_COPIES = 300;
const BUSY_WINDOW_NS = 2e9;
/** A thread that ended by an error is started anew this often. */
const MAX_STARTS = 3;
/** What the thread has taken is done within microseconds where it has a CPU: so often this one looks, for some 40 us. */
const LOOKS = 10_000;
/** What is not done by then was late: so long this one waits for it. */
const LATE_MS = 1;
/** Late so often, in jobs that were last and in time, and nothing is shared for a while: longer each time until that helps. */
const LATE_COUNTS = 4;
const MAX_IN_TIME = 8;
const MIN_REST_NS = 20_000_000;
const MAX_REST_NS = 1_000_000_000;
/** At the process's end nobody waits for long. */
const EXIT_TIMEOUT_MS = 500;

const TWO_32 = 0x1_0000_0000;

export interface CopyThreadOptions {
  readonly fd: number;
  /** So many bytes of its file may be written. */
  readonly writableBytes: () => number;
  /** Where the pieces of each job are (words.ts). */
  readonly iovecs: bigint;
  readonly iovecBytes: number;
  /** The file, for messages. */
  readonly what: string;
  readonly clock: Pick<Clock, 'nowNs'>;
  readonly log: Log;
  readonly pulses: ThreadPulses;
  /** The thread is through with a job that was late, or has ended. */
  readonly onLate: () => void;
  /** Another place of the worker, for tests. */
  readonly workerUrl?: URL | undefined;
}

export class CopyThread {
  readonly #options: CopyThreadOptions;
  /** From the first thread on, for all of them. */
  #words: Int32Array | undefined;
  /** The image, and how much of its file, for the thread to write. */
  #image: UnseenMapping | undefined;
  #imageBytes = 0;
  #worker: Worker | undefined;
  #isReady = false;
  #starts = 0;
  #copies = 0;
  #sinceNs = 0;
  /** Goes up with each wait that was none, and down with each that was one. */
  #inTime = 0;
  #restNs = MIN_REST_NS;
  #restsUntilNs = 0;

  constructor(options: CopyThreadOptions) {
    this.#options = options;
    if (availableParallelism() === 1 || !existsSync(fileURLToPath(this.#workerUrl))) this.#starts = MAX_STARTS;
  }

  get #workerUrl(): URL {
    return this.#options.workerUrl ?? workerUrl;
  }

  // The thread.

  /** A copy was made here that the thread could have shared: enough of them, and it is started. */
  couldShare(): void {
    if (this.#worker !== undefined || this.#starts === MAX_STARTS || ++this.#copies < BUSY_COPIES) return;
    const nowNs = this.#options.clock.nowNs();
    const isBusy = nowNs - this.#sinceNs < BUSY_WINDOW_NS;
    this.#copies = 0;
    this.#sinceNs = nowNs;
    if (isBusy) this.#start();
  }

  #start(): void {
    const { fd, iovecs, iovecBytes, what, log, pulses } = this.#options;
    const words = (this.#words ??= new Int32Array(new SharedArrayBuffer(WORDS * 4)));
    this.#starts++;
    if (this.#image === undefined) this.#mapImage();
    const workerData: CopyThreadSetup = {
      words: words.buffer as SharedArrayBuffer,
      fd,
      mapped: this.#image?.address ?? 0n,
      iovecs,
      iovecBytes,
    };
    let worker: Worker;
    try {
      worker = startWorker(this.#workerUrl, { workerData, stdin: false }, 'copying thread');
    } catch (error) {
      this.#starts = MAX_STARTS;
      log.warn(`${(error as Error).message}: ${what} is copied by one thread`);
      return;
    }
    this.#worker = worker;
    const removeExitHook = onProcessEnd(() => quitAtProcessEnd(words));
    const unwatch = pulses.add(pulseOf(what, words));
    worker.on('message', (message: CopyThreadMessage) => {
      if (message === 'ready') this.#isReady = this.#worker === worker;
      else this.#options.onLate();
    });
    worker.on('error', (error) => log.error(`copying thread of ${what}: ${error.message}; it is copied without`));
    worker.once('exit', () => {
      removeExitHook();
      unwatch();
      if (this.#worker !== worker) return;
      // One that does not come up here never will.
      if (!this.#isReady) this.#starts = MAX_STARTS;
      this.#worker = undefined;
      this.#isReady = false;
      this.#options.onLate();
    });
    // It ends by a word; until then it need not keep the process alive.
    worker.unref();
  }

  /** Where the host does not let us, the thread reads alone. */
  #mapImage(): void {
    const { fd, writableBytes, what, log } = this.#options;
    const sizeBytes = writableBytes();
    if (sizeBytes === 0 || !new MemoryWriter().isAllowed) return;
    try {
      this.#image = mapUnseen(sizeBytes, what, fd, 0);
      this.#imageBytes = sizeBytes;
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      log.debug(`${error.message}: writes are not shared`);
    }
  }

  /**
   * No job is under way. The thread ends by itself. @returns when nothing is mapped any more, which would stay open and locked;
   * undefined: nothing is.
   */
  dispose(): Promise<void> | undefined {
    this.#starts = MAX_STARTS;
    const unmapped = this.#image?.disposeAside();
    this.#image = undefined;
    this.#imageBytes = 0;
    this.#worker = undefined;
    this.#isReady = false;
    if (this.#words !== undefined) {
      Atomics.store(this.#words, Word.Quit, 1);
      wake(this.#words);
    }
    return unmapped;
  }

  // Jobs.

  /** Whether there is somebody to share with. */
  get isUp(): boolean {
    return this.#isReady;
  }

  /** Whether that one can write the file up to this byte. */
  canWriteTo(end: number): boolean {
    return end <= this.#imageBytes;
  }

  /** Whether that one had no CPU lately. */
  get rests(): boolean {
    if (this.#restsUntilNs !== 0 && this.#options.clock.nowNs() >= this.#restsUntilNs) this.#restsUntilNs = 0;
    return this.#restsUntilNs !== 0;
  }

  /** Let whoever comes first carry out a transfer whose pieces are described. @param at byte in the file. */
  publish(job: number, pieces: number, bytes: number, at: number, isWrite: boolean): void {
    const words = this.#words as Int32Array;
    const first = wordOf(job, 0);
    words[first + JobWord.State] = JobState.Open;
    words[first + JobWord.Pieces] = pieces;
    words[first + JobWord.Bytes] = bytes;
    words[first + JobWord.IsWrite] = isWrite ? 1 : 0;
    words[first + JobWord.AtLow] = at % TWO_32;
    words[first + JobWord.AtHigh] = Math.floor(at / TWO_32);
    const published = Atomics.load(words, Word.Published);
    words[Word.Order + (published & (QUEUE_CAPACITY - 1))] = job;
    Atomics.store(words, Word.Published, (published + 1) | 0);
    wake(words);
  }

  /** @returns a job that nobody has taken, and that this thread has to carry out now; -1: there is none. */
  take(): number {
    return this.#words === undefined ? -1 : takeJob(this.#words);
  }

  /** Of a job that the other thread has taken. What a thread had that is gone has failed. */
  stateOf(job: number): number {
    const state = Atomics.load(this.#words as Int32Array, wordOf(job, JobWord.State));
    return state === JobState.Open && this.#worker === undefined ? JobState.Failed : state;
  }

  /** Wait for a job that the other thread has, for a moment. @returns whether it is done; if not, `onLate` will be called. */
  waitFor(job: number): boolean {
    const words = this.#words as Int32Array;
    // It was waited for before, and a message will come.
    if (Atomics.load(words, Word.IsLate) !== 0) return this.stateOf(job) !== JobState.Open;
    for (let look = 0; look < LOOKS; look++) {
      if (this.stateOf(job) === JobState.Open) continue;
      this.#wasInTime();
      return true;
    }
    this.#wasLate();
    for (
      let done = Atomics.load(words, Word.Done);
      this.stateOf(job) === JobState.Open;
      done = Atomics.load(words, Word.Done)
    )
      if (Atomics.wait(words, Word.Done, done, LATE_MS) === 'timed-out') break;
    if (this.stateOf(job) !== JobState.Open) return true;
    Atomics.store(words, Word.IsLate, 1);
    // Done before that was to be seen.
    if (this.stateOf(job) === JobState.Open) return false;
    Atomics.store(words, Word.IsLate, 0);
    return true;
  }

  #wasInTime(): void {
    if (this.#inTime < MAX_IN_TIME) this.#inTime++;
    else this.#restNs = MIN_REST_NS;
  }

  #wasLate(): void {
    this.#inTime -= LATE_COUNTS;
    if (this.#inTime >= 0) return;
    this.#inTime = 0;
    this.#restsUntilNs = this.#options.clock.nowNs() + this.#restNs;
    this.#restNs = Math.min(2 * this.#restNs, MAX_REST_NS);
  }
}

/** There is something to look at: a job, or a word to the thread. */
function wake(words: Int32Array): void {
  Atomics.add(words, Word.Bell, 1);
  // Once, however often it is told before it has woken.
  if (Atomics.load(words, Word.Sleeps) === 0 || Atomics.exchange(words, Word.Sleeps, 0) === 0) return;
  Atomics.notify(words, Word.Bell);
}

function pulseOf(what: string, words: Int32Array): ThreadPulse {
  return {
    what,
    get hasAnswered() {
      return Atomics.load(words, Word.Alive) === Atomics.load(words, Word.Asked);
    },
    ask() {
      if (!this.hasAnswered) return;
      Atomics.add(words, Word.Asked, 1);
      wake(words);
    },
  };
}

/** The process's end must not meet the thread in the middle of a system call on guest memory. */
function quitAtProcessEnd(words: Int32Array): void {
  Atomics.store(words, Word.Quit, 1);
  wake(words);
  if (Atomics.wait(words, Word.HasQuit, 0, EXIT_TIMEOUT_MS) === 'timed-out') leaveThreadBehind();
}
