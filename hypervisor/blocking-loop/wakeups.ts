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
import { Worker } from 'node:worker_threads';
import { eventLoopFd, eventLoopTimeoutMs } from '../../devicemodel/core/host/event-loop.ts';
import { createEventfd, Eventfd, signalEventfd } from '../../devicemodel/core/host/eventfd.ts';
import { onWatchAdded, watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import { threadId } from '../../devicemodel/core/host/scheduling.ts';
import { KICK_SIGNAL } from '../../devicemodel/core/host/signals.ts';
import { type WatcherData, Word, watcherThread } from './watcher-thread.ts';

export class Wakeups {
  readonly #words = new Int32Array(new SharedArrayBuffer(Word.Count * Int32Array.BYTES_PER_ELEMENT));
  /** Brings a turn of the event loop to its end: readable as soon as the loop polls. */
  readonly #turnEnd = new Eventfd();
  #endTurn: () => void = () => {};
  readonly #unwatch: () => void;
  readonly #unlisten: () => void;
  #turnRequested = false;
  #worker: Worker | undefined;
  #stopFd = -1;

  constructor() {
    this.#unwatch = watchFd(this.#turnEnd.fd, () => {
      this.#turnEnd.take();
      this.#endTurn();
    });
    this.#unlisten = onWatchAdded(() => this.requestTurn());
  }

  /** Start watching. From now on {@link pending} becomes true when the event loop has something to do. */
  start(koffiPath: string): void {
    if (this.#worker !== undefined) return;
    this.#stopFd = createEventfd({ blocking: true });
    // Not published yet: the descriptor just added is registered only in the first turn.
    Atomics.store(this.#words, Word.TimeoutMs, 0);
    const data: WatcherData = {
      words: this.#words,
      koffiPath,
      backendFd: eventLoopFd(),
      stopFd: this.#stopFd,
      pid: process.pid,
      tid: threadId(),
      signal: KICK_SIGNAL,
    };
    // The thread's code is one self-contained function: its source is all it needs, bundled or not.
    this.#worker = new Worker(`(${watcherThread.toString()})()`, { eval: true, workerData: data, stdin: false });
    this.#worker.unref();
  }

  /** Whether the event loop should get a turn before this thread blocks again. Cheap enough for every request. */
  get pending(): boolean {
    return this.#turnRequested || Atomics.load(this.#words, Word.Kicked) !== Atomics.load(this.#words, Word.Answered);
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
  async turn(): Promise<void> {
    this.#turnRequested = false;
    const kick = Atomics.load(this.#words, Word.Kicked);
    await new Promise<void>((resolve) => {
      this.#endTurn = resolve;
      this.#turnEnd.signal();
    });
    this.#publishTimeout();
    Atomics.store(this.#words, Word.Answered, kick);
    Atomics.notify(this.#words, Word.Answered);
  }

  /** The event loop has this thread to itself for a while: it needs no kicks until {@link endRest}. */
  rest(): void {
    Atomics.store(this.#words, Word.Resting, 1);
  }

  endRest(): void {
    Atomics.store(this.#words, Word.Resting, 0);
    Atomics.notify(this.#words, Word.Resting);
    // What was published before is out of date.
    this.#turnRequested = true;
  }

  /**
   * Tell the watcher to end, without waiting for it. A process that exits waits for its threads, and this one would
   * otherwise sit in its system call for ever.
   */
  stopNow(): void {
    if (this.#worker === undefined) return;
    Atomics.store(this.#words, Word.Stop, 1);
    this.endRest();
    Atomics.store(this.#words, Word.Answered, Atomics.load(this.#words, Word.Kicked));
    Atomics.notify(this.#words, Word.Answered);
    signalEventfd(this.#stopFd);
  }

  /** Stop watching and give everything back. Safe twice. */
  async stop(): Promise<void> {
    const worker = this.#worker;
    if (worker !== undefined) {
      const ended = new Promise((resolve) => worker.once('exit', resolve));
      worker.ref();
      this.stopNow();
      this.#worker = undefined;
      await ended;
      closeFd(this.#stopFd);
    }
    this.#unlisten();
    this.#unwatch();
    this.#turnEnd.dispose();
  }

  /** Node's own timers are not in the descriptor: tell the watcher how long it may sleep (-1: no timer). */
  #publishTimeout(): void {
    Atomics.store(this.#words, Word.TimeoutMs, eventLoopTimeoutMs());
  }
}
