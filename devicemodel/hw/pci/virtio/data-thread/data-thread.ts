/**
 * Data threads of a device, seen from the device thread: they take queues over until reset, from DRIVER_OK (a disk's
 * `iothread`) or from when there is much to do. Where they cannot be had (an engine whose RAM has no address, a program built without the worker) the device thread
 * serves the queues itself.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import type { Worker } from 'node:worker_threads';
import type { Counters } from '../../../../core/counters.ts';
import { HostError, StorageHangError } from '../../../../core/errors.ts';
import { Errno } from '../../../../core/host/errno.ts';
import { Eventfd } from '../../../../core/host/eventfd.ts';
import { leaveThreadBehind, onProcessEnd } from '../../../../core/host/exit-hooks.ts';
import { startWorker } from '../../../../core/host/worker.ts';
import type { Log } from '../../../../core/log.ts';
import type { ThreadPulse } from '../../../../core/thread-pulses.ts';
import type { QueueOwner, QueueWires, VirtioTransport } from '../transport/device.ts';
import {
  type DataService,
  type DataThreadMessage,
  type DataThreadSetup,
  Order,
  QueueField,
  Standing,
  Word,
} from './words.ts';

/** The worker is a file of its own beside this one, whatever this one was built to. */
const ownExtension = /\.[a-z]+$/.exec(import.meta.url)?.[0] ?? '.js';
const workerUrl = new URL(`./data-thread-main${ownExtension === '.ts' ? '.ts' : '.js'}`, import.meta.url);
/** A thread that sleeps or serves answers within this; this thread waits so long for it before it turns to other work. */
const QUICK_ANSWER_MS = 1;
/** After a thread has ended by an error this often, the device thread serves the device for good. */
const MAX_RESTARTS = 3;
/** At the process's end nobody waits for long. */
const EXIT_TIMEOUT_MS = 500;

interface Thread {
  readonly worker: Worker;
  readonly words: Int32Array;
  readonly fields: Float64Array;
  readonly control: Eventfd;
  readonly exited: Promise<unknown>;
  /** It ended by an error, or was told to when it stood still: it touches nothing any more. */
  hasEnded: boolean;
  /** Storage keeps it in a system call, and perhaps for ever. */
  isStuck: boolean;
  /** Called at every sign of life. */
  onAnswer: () => void;
  /** The thread sleeps in the kernel, where the process's end does not reach it by itself. */
  readonly removeExitHook: () => void;
  /** Nobody watches it any more. */
  readonly unwatch: () => void;
}

export interface DataThreadOptions {
  readonly threads: number;
  /** CPUs of each thread; missing or empty: any. */
  readonly cpus: readonly (readonly number[])[];
  readonly queueCount: number;
  readonly service: DataService;
  /** Of the device. */
  readonly counters: Counters;
  /** What is behind the queues, for messages: the file of a disk. */
  readonly what: string;
  readonly log: Log;
  /** What is behind the queues failed for good; the queues stand still. */
  readonly onFailed?: (errno: number) => void;
  /** What a thread is at, from its words; undefined: nothing that could be named. */
  readonly describeWork?: (words: Int32Array) => string | undefined;
  /** Another place of the worker, for tests. */
  readonly workerUrl?: URL | undefined;
}

/** A queue in a thread's hands. */
interface Loan {
  readonly wires: QueueWires;
  readonly thread: Thread;
  /** Which queue among the thread's. */
  readonly slot: number;
  /** The set-up of the queue it was lent with: a position of another one is no use. */
  readonly generation: number;
}

export class DataThreads implements QueueOwner {
  readonly queueCount: number;
  readonly usesAsyncio = true;
  readonly #options: DataThreadOptions;
  readonly #transport: VirtioTransport;
  readonly #threads: Thread[] = [];
  readonly #settings = new Map<number, number>();
  #loans: readonly Loan[] = [];
  /** The threads serve, or may still. False: they stand still, and queues are where they left them. */
  #isServing = false;
  #stopping: Promise<void> | undefined;
  #starting: Promise<void> | undefined;
  #restarts = 0;

  constructor(options: DataThreadOptions, transport: VirtioTransport) {
    this.#options = options;
    this.#transport = transport;
    this.queueCount = options.queueCount;
  }

  /** Whether threads can be had here at all. */
  static isPossible(transport: VirtioTransport, url: URL = workerUrl): boolean {
    return transport.ram.hasHostAddresses && !transport.ram.isObserved && existsSync(fileURLToPath(url));
  }

  /** All of them are there. */
  get isUp(): boolean {
    return this.#threads.length === this.#wanted && this.#threads.every((thread) => !thread.hasEnded);
  }

  get #wanted(): number {
    return Math.min(this.#options.threads, this.queueCount);
  }

  /** Also after a thread has ended by an error, a few times. @throws HostError when a thread does not come up. */
  start(): Promise<void> {
    this.#starting ??= this.#startThreads().finally(() => {
      this.#starting = undefined;
    });
    return this.#starting;
  }

  async #startThreads(): Promise<void> {
    for (let i = 0; i < this.#wanted; i++) {
      const old = this.#threads[i];
      if (old !== undefined && !old.hasEnded) continue;
      if (old !== undefined && ++this.#restarts > MAX_RESTARTS) {
        throw new HostError(`data thread: it ended ${MAX_RESTARTS} times already`, Errno.EAGAIN);
      }
      if (old !== undefined) await this.#bury(old);
      this.#threads[i] = await this.#startThread(i);
    }
  }

  async #startThread(index: number): Promise<Thread> {
    const { service, queueCount, cpus, counters } = this.#options;
    const words = new SharedArrayBuffer(Word.Count * 4);
    const queues = new SharedArrayBuffer(queueCount * QueueField.count * 8);
    const control = new Eventfd();
    const setup: DataThreadSetup = {
      words,
      queues,
      queueCount,
      controlFd: control.fd,
      chunks: this.#transport.ram.describeChunks(),
      service,
      counts: counters.ofThread(index),
      cpus: cpus[index] ?? [],
    };
    let worker: Worker;
    try {
      worker = startWorker(this.#options.workerUrl ?? workerUrl, { workerData: setup, stdin: false }, 'data thread');
    } catch (error) {
      control.dispose();
      throw error;
    }
    const exited = new Promise((resolve) => worker.once('exit', resolve));
    const shared = new Int32Array(words);
    const thread: Thread = {
      worker,
      words: shared,
      fields: new Float64Array(queues),
      control,
      exited,
      hasEnded: false,
      isStuck: false,
      onAnswer: () => {},
      // From the start: an order that comes before the thread is up is found by it.
      removeExitHook: onProcessEnd(() => quitAtProcessEnd(thread)),
      unwatch: this.#transport.threads.add(pulseOf(this.#options.what, () => thread)),
    };
    try {
      await new Promise<void>((resolve, reject) => {
        worker.on('message', (message: DataThreadMessage) => {
          if (message.kind === 'ready') resolve();
          else this.#hear(thread, message);
        });
        worker.once('error', reject);
        worker.once('exit', () => reject(new Error('it is gone')));
      });
    } catch (error) {
      thread.removeExitHook();
      thread.unwatch();
      control.dispose();
      throw new HostError(`data thread: ${(error as Error).message}`, Errno.EAGAIN, { cause: error });
    }
    worker.on('error', (error) => this.#ended(thread, error.message));
    worker.once('exit', () => this.#ended(thread, 'it is gone'));
    // It ends by order; until then it need not keep the process alive.
    worker.unref();
    return thread;
  }

  #hear(thread: Thread, message: DataThreadMessage): void {
    const { log } = this.#options;
    switch (message.kind) {
      case 'answered':
        thread.onAnswer();
        break;
      case 'guest':
        log.guest(() => message.text);
        break;
      case 'failed':
        this.#options.onFailed?.(message.errno);
        break;
      case 'broken':
        if (message.order !== Atomics.load(thread.words, Word.Ordered)) break;
        this.#transport.needsReset(`queue ${message.queue}: ${message.reason}`);
        break;
      case 'ended':
        this.#ended(thread, message.reason);
        break;
      default:
        break;
    }
  }

  /** A thread ended by an error: its queues come back, and the VM lives on. */
  #ended(thread: Thread, reason: string): void {
    if (thread.hasEnded) return;
    thread.hasEnded = true;
    thread.unwatch();
    const { log, what } = this.#options;
    log.error(`data thread of ${what}: ${reason}; the device is served without it`);
    thread.onAnswer();
    if (this.#isServing) this.#transport.reclaimQueues();
  }

  /** Set a word of the server's own (from `Word.OfServer` on), which it sees at once. */
  set(word: number, value: number): void {
    this.#settings.set(word, value);
    for (const { words } of this.#threads) Atomics.store(words, word, value);
  }

  takeOver(wires: readonly QueueWires[]): boolean {
    const threads = this.#threads;
    // What was ordered before and is not answered belongs to another set-up.
    if (!this.isUp || this.#stopping !== undefined) return false;
    for (const { fields, words } of threads) {
      fields.fill(0);
      for (const [word, value] of this.#settings) Atomics.store(words, word, value);
    }
    this.#loans = wires.map((wire, i) => ({
      wires: wire,
      thread: threads[i % threads.length] as Thread,
      slot: i,
      generation: wire.queue.generation,
    }));
    for (const { wires: wire, thread, slot } of this.#loans) writeLoan(thread.fields, slot, wire);
    // Nobody waits for the answer: kicks that come before it wait in their descriptors.
    for (const { words, control } of threads) postOrder(words, control, Order.Start);
    this.#isServing = true;
    return true;
  }

  giveBack(): Promise<void> | undefined {
    const wait = this.suspend();
    if (wait === undefined) this.#loans = [];
    return wait?.then(() => {
      this.#loans = [];
    });
  }

  /** Finish what is in flight and stand still. The queues on this side are then where the threads left them. */
  suspend(): Promise<void> | undefined {
    if (!this.#isServing) return undefined;
    if (this.#stopping !== undefined) return this.#stopping;
    const orders = this.#threads.map((thread) => ({ thread, number: thread.hasEnded ? 0 : postStop(thread) }));
    const late = orders.filter(({ thread, number }) => !isAnsweredSoon(thread, number));
    if (late.length === 0) {
      this.#takePositions();
      return undefined;
    }
    this.#stopping = Promise.all(late.map(({ thread, number }) => this.#answer(thread, number))).then(() => {
      this.#stopping = undefined;
      this.#takePositions();
    });
    return this.#stopping;
  }

  resume(): void {
    if (this.#isServing || this.#loans.length === 0) return;
    const wires = this.#loans.map((loan) => loan.wires);
    // A thread ended meanwhile: nobody serves the queues it was lent.
    if (!this.takeOver(wires)) this.#transport.reclaimQueues();
  }

  /** When the order is answered, or there is nobody any more who could. @throws StorageHangError */
  #answer(thread: Thread, number: number): Promise<void> {
    const { patience } = this.#transport;
    const limitMs = patience.limitMs;
    return new Promise((resolve, reject) => {
      const isAnswered = () => thread.hasEnded || Atomics.load(thread.words, Word.Answered) === number;
      const endPatience = patience.start(() => {
        thread.onAnswer = () => {};
        thread.isStuck = true;
        leaveThreadBehind();
        reject(this.#hang(thread, limitMs));
      });
      thread.onAnswer = () => {
        if (!isAnswered()) return;
        thread.onAnswer = () => {};
        endPatience();
        resolve();
      };
      // The answer may have come while nobody listened.
      thread.onAnswer();
    });
  }

  #hang({ words }: Thread, limitMs: number): StorageHangError {
    const { what, describeWork } = this.#options;
    return new StorageHangError(what, describeWork?.(words) ?? 'a request', limitMs);
  }

  /** The threads stand still: what they wrote for their last order is where the queues go on. */
  #takePositions(): void {
    this.#isServing = false;
    let isLost = false;
    for (const { wires, thread, slot, generation } of this.#loans) {
      const { queue } = wires;
      if (queue.generation !== generation) continue;
      // Of a thread that could not say where it was nothing can be known.
      if (thread.hasEnded && Atomics.load(thread.words, Word.Standing) !== Standing.Known) isLost = true;
      else queue.resumeAt(thread.fields[slot * QueueField.count + QueueField.position] as number);
    }
    if (isLost) this.#transport.needsReset('the data thread ended in the middle of a request');
  }

  /** End the threads. Safe twice. @throws StorageHangError */
  async stop(): Promise<void> {
    // One that is still coming up is waited for: it could not be told to end.
    await this.#starting?.catch(() => {});
    await this.giveBack();
    for (const thread of this.#threads.splice(0)) await this.#bury(thread);
  }

  async #bury(thread: Thread): Promise<void> {
    if (!thread.hasEnded) {
      thread.hasEnded = true;
      thread.worker.ref();
      postOrder(thread.words, thread.control, Order.Quit);
    }
    thread.unwatch();
    await thread.exited;
    thread.removeExitHook();
    thread.control.dispose();
  }
}

/** @param of asked only when the thread is made. */
function pulseOf(what: string, of: () => Pick<Thread, 'words' | 'control'>): ThreadPulse {
  return {
    what,
    get hasAnswered() {
      const { words } = of();
      return Atomics.load(words, Word.Alive) === Atomics.load(words, Word.Asked);
    },
    ask() {
      if (!this.hasAnswered) return;
      const { words, control } = of();
      Atomics.store(words, Word.Asked, (Atomics.load(words, Word.Asked) + 1) | 0);
      control.signal();
    },
  };
}

function writeLoan(fields: Float64Array, slot: number, { queue, kickFd, callFd }: QueueWires): void {
  const { desc, avail, used } = queue.addresses;
  const { packed, indirect, eventIdx, notifyOnEmpty } = queue.features;
  const values = [queue.index, queue.size, desc, avail, used, queue.position];
  fields.set([...values, +indirect, +eventIdx, +notifyOnEmpty, kickFd, callFd, +packed], slot * QueueField.count);
}

/** @returns the order's number, with which it is answered. */
function postOrder(words: Int32Array, control: Eventfd, order: number): number {
  Atomics.store(words, Word.Order, order);
  const number = (Atomics.load(words, Word.Ordered) + 1) | 0;
  Atomics.store(words, Word.Ordered, number);
  control.signal();
  return number;
}

function postStop({ words, control }: Thread): number {
  return postOrder(words, control, Order.Stop);
}

/** Whether the order is answered, or there is nobody to answer; most are within microseconds. */
function isAnsweredSoon({ words, hasEnded }: Thread, number: number): boolean {
  if (hasEnded) return true;
  const answered = Atomics.load(words, Word.Answered);
  if (answered !== number) Atomics.wait(words, Word.Answered, answered, QUICK_ANSWER_MS);
  return Atomics.load(words, Word.Answered) === number;
}

/** The process's end must not meet the thread in the middle of a system call on guest memory. */
function quitAtProcessEnd(thread: Thread): void {
  if (thread.hasEnded || thread.isStuck) return;
  const { words, control } = thread;
  const number = postOrder(words, control, Order.Quit);
  for (let answered = Atomics.load(words, Word.Answered); answered !== number; ) {
    if (Atomics.wait(words, Word.Answered, answered, EXIT_TIMEOUT_MS) === 'timed-out') {
      leaveThreadBehind();
      return;
    }
    answered = Atomics.load(words, Word.Answered);
  }
  thread.hasEnded = true;
}
