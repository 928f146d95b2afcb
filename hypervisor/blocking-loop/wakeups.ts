/**
 * How the outside world reaches a thread that sits in a blocking ioctl.
 *
 * The device model runs on one thread: the one that waits for the guest also owns Node's event loop. While it waits, a
 * watcher thread polls the event loop's own descriptor (uv_backend_fd, libuv's interface for embedding) and *kicks*:
 * a directed signal makes the blocking call return, and the loop gives the event loop a turn. Timers kick the same way,
 * by a POSIX timer aimed at this thread.
 *
 * A signal that lands just before the blocking call is entered is lost. So a kick is a number: the watcher bumps it and
 * signals again until this thread has copied it; a timer repeats until it was served.
 */
import type { Worker } from 'node:worker_threads';
import { eventLoopFd, eventLoopTimeoutMs, freshEventLoopTimeoutMs } from '../../devicemodel/core/host/event-loop.ts';
import { createEventfd, Eventfd, signalEventfd } from '../../devicemodel/core/host/eventfd.ts';
import { onWatchAdded, watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { PollSet } from '../../devicemodel/core/host/poll.ts';
import { threadId } from '../../devicemodel/core/host/scheduling.ts';
import { KICK_SIGNAL } from '../../devicemodel/core/host/signals.ts';
import { startWorker } from '../../devicemodel/core/host/worker.ts';
import { monotonicMs } from '../../devicemodel/core/monotonic.ts';
import { Watcher, type WatcherData, Word, watcherThread } from './watcher-thread.ts';

/** The event loop counts in milliseconds: a timer seems to move by as much from turn to turn. */
const SAME_TIMER_MS = 2;

export class Wakeups {
  readonly #words = new Int32Array(new SharedArrayBuffer(Word.Count * Int32Array.BYTES_PER_ELEMENT));
  /** Brings a turn of the event loop to its end: readable as soon as the loop polls. */
  readonly #turnEnd = new Eventfd();
  #endTurn: () => void = () => {};
  readonly #unwatch: () => void;
  readonly #unlisten: () => void;
  #turnRequested = false;
  readonly #onTurnEnd: () => void;
  readonly #onLost: () => void;
  readonly #onError: (error: Error) => void;
  #worker: Worker | undefined;
  #workerEnded: Promise<void> | undefined;
  #controlFd = -1;
  readonly #look = new PollSet(1);
  /** Until when the watcher may sleep: the latest that it was told since it last kicked, as a later one reaches it by chance. */
  #watchedUntilMs = Number.POSITIVE_INFINITY;

  /**
   * @param onTurnEnd called at the end of each turn, the last thing before what waits for it goes on.
   * @param onLost the watcher has ended by itself: nothing becomes pending until it is started again.
   * @param onError why, in a later turn.
   * @throws HostError
   */
  constructor(
    onTurnEnd: () => void = () => {},
    onLost: () => void = () => {},
    onError: (error: Error) => void = () => {},
  ) {
    this.#onError = onError;
    this.#onTurnEnd = onTurnEnd;
    this.#onLost = onLost;
    this.#look.watch(0, eventLoopFd());
    try {
      this.#unwatch = watchFd(this.#turnEnd.fd, () => {
        this.#turnEnd.take();
        this.#endTurn();
      });
    } catch (error) {
      this.#turnEnd.dispose();
      throw error;
    }
    this.#unlisten = onWatchAdded(() => this.requestTurn());
  }

  /** Start watching. From now on {@link pending} becomes true when the event loop has something to do. @throws HostError */
  start(koffiPath: string): void {
    if (this.#worker !== undefined) return;
    const controlFd = createEventfd({ blocking: true });
    // Not published yet: the descriptor just added is registered only in the first turn.
    Atomics.store(this.#words, Word.TimeoutMs, 0);
    const data: WatcherData = {
      words: this.#words,
      koffiPath,
      backendFd: eventLoopFd(),
      controlFd,
      pid: process.pid,
      tid: threadId(),
      signal: KICK_SIGNAL,
    };
    // The thread's code is one self-contained function: its source is all it needs, bundled or not.
    let worker: Worker;
    try {
      worker = startWorker(
        `(${watcherThread.toString()})()`,
        { eval: true, workerData: data, stdin: false },
        'the thread that watches descriptors',
      );
    } catch (error) {
      closeFd(controlFd);
      throw error;
    }
    this.#controlFd = controlFd;
    this.#worker = worker;
    this.#workerEnded = new Promise((resolve) => {
      worker.once('exit', () => {
        this.#lose(worker);
        resolve();
      });
    });
    // Its end follows.
    worker.on('error', (error) => this.#onError(error));
    worker.unref();
  }

  #lose(worker: Worker): void {
    if (this.#worker !== worker || Atomics.load(this.#words, Word.Stop) !== 0) return;
    this.#worker = undefined;
    Atomics.store(this.#words, Word.Up, Watcher.none);
    closeFd(this.#controlFd);
    this.#controlFd = -1;
    this.#watchedUntilMs = Number.POSITIVE_INFINITY;
    this.#onLost();
  }

  /** Whether the watcher is up. Until then nothing becomes {@link pending} by itself. */
  get isWatched(): boolean {
    return Atomics.load(this.#words, Word.Up) === Watcher.up;
  }

  /** Whether the event loop should get a turn before this thread blocks again. Cheap enough for every request. */
  get pending(): boolean {
    // Plain loads: a kick that is not seen yet is repeated, and Atomics.load is a call of a hundred instructions.
    const words = this.#words;
    return this.#turnRequested || words[Word.Kicked] !== words[Word.Answered];
  }

  /** Look for what the watcher would kick for, where there is none. */
  look(): boolean {
    return this.#look.wait(1, 0) > 0 || freshEventLoopTimeoutMs() === 0;
  }

  /** Something was handed to the event loop that its descriptor does not show yet, such as a stream that was resumed. */
  requestTurn(): void {
    this.#turnRequested = true;
  }

  /**
   * One turn of the event loop: what is due runs, then this thread's work goes on from inside the loop's poll phase.
   * (From a setImmediate it would go on with Node's idle handle active, and libuv would never report a time to sleep.)
   * What a callback of this turn leaves to be done makes the descriptor ready again, or the time to sleep 0.
   */
  turn(): Promise<void> {
    this.#turnRequested = false;
    // Before the kick is read: one that comes later is not answered by this turn.
    this.#giveThread();
    const kick = Atomics.load(this.#words, Word.Kicked);
    return new Promise<void>((resolve) => {
      this.#endTurn = () => {
        this.#publishTimeout(kick);
        this.#takeThread();
        const worker = this.#worker;
        if (worker !== undefined && Atomics.load(this.#words, Word.Up) === Watcher.lost) this.#lose(worker);
        resolve();
        this.#onTurnEnd();
      };
      this.#turnEnd.signal();
    });
  }

  /** The event loop has this thread to itself for a while: it needs no kicks until {@link endRest}. */
  rest(): void {
    this.#giveThread();
  }

  endRest(): void {
    this.#takeThread();
    // What was published before is out of date.
    this.#watchedUntilMs = Number.POSITIVE_INFINITY;
    this.#turnRequested = true;
  }

  /**
   * While the event loop has the thread the watcher does not look at its descriptor: what is readable there is being
   * served, and the end of each turn is an event, too.
   */
  #giveThread(): void {
    Atomics.add(this.#words, Word.Given, 1);
  }

  #takeThread(): void {
    if (Atomics.sub(this.#words, Word.Given, 1) === 1) Atomics.notify(this.#words, Word.Given);
  }

  /**
   * Tell the watcher to end, without waiting for it. A process that exits waits for its threads, and this one would
   * otherwise sit in its system call for ever.
   */
  stopNow(): void {
    if (this.#worker === undefined) return;
    Atomics.store(this.#words, Word.Stop, 1);
    this.#giveThread();
    for (const word of [Word.Given, Word.Answered]) Atomics.notify(this.#words, word);
    this.#wakeWatcher();
  }

  /** Stop watching and give everything back. Safe twice. */
  async stop(): Promise<void> {
    const worker = this.#worker;
    if (worker !== undefined) {
      worker.ref();
      this.stopNow();
      this.#worker = undefined;
      await this.#workerEnded;
      closeFd(this.#controlFd);
    }
    this.#unlisten();
    this.#unwatch();
    this.#turnEnd.dispose();
  }

  /**
   * Node's own timers are not in the descriptor: tell the watcher how long it may sleep (-1: no timer), and that its kick
   * was answered. If it sleeps already, by what was published before, it has to look again where that is too late.
   */
  #publishTimeout(kick: number): void {
    const words = this.#words;
    const nowMs = monotonicMs();
    const timeoutMs = eventLoopTimeoutMs();
    const dueMs = timeoutMs < 0 ? Number.POSITIVE_INFINITY : nowMs + timeoutMs;
    Atomics.store(words, Word.TimeoutMs, timeoutMs);
    if (Atomics.exchange(words, Word.Answered, kick) !== kick) {
      Atomics.notify(words, Word.Answered);
      this.#watchedUntilMs = dueMs;
    } else if (dueMs < this.#watchedUntilMs - SAME_TIMER_MS) {
      this.#wakeWatcher();
      this.#watchedUntilMs = dueMs;
    } else {
      this.#watchedUntilMs = Math.max(this.#watchedUntilMs, dueMs);
    }
  }

  #wakeWatcher(): void {
    if (this.#worker !== undefined) signalEventfd(this.#controlFd);
  }
}
