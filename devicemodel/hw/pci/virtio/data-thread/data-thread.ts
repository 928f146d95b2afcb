/**
 * Data threads of a device, seen from the device thread: they take queues over until reset, from DRIVER_OK (a disk's
 * `iothread`) or from when there is much to do. Where they cannot be had (an engine whose RAM has no address, a program built without the worker) the device thread
 * serves the queues itself.
 */
import { existsSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { HostError } from '../../../../core/errors.ts';
import { Eventfd } from '../../../../core/host/eventfd.ts';
import { onProcessEnd } from '../../../../core/host/exit-hooks.ts';
import { Errno } from '../../../../core/host/libc.ts';
import type { Log } from '../../../../core/log.ts';
import type { QueueOwner, QueueWires, VirtioTransport } from '../transport/device.ts';
import { type DataService, type DataThreadMessage, type DataThreadSetup, Order, QueueField, Word } from './words.ts';

/** The worker is a file of its own beside this one, whatever this one was built to. */
const ownExtension = /\.[a-z]+$/.exec(import.meta.url)?.[0] ?? '.js';
const workerUrl = new URL(`./data-thread-main${ownExtension === '.ts' ? '.ts' : '.js'}`, import.meta.url);
/** An order is answered at the end of the request being served. */
const ANSWER_TIMEOUT_MS = 10_000;
/** At the process's end nobody waits for long. */
const EXIT_TIMEOUT_MS = 500;

interface Thread {
  readonly worker: Worker;
  readonly words: Int32Array;
  readonly fields: Float64Array;
  readonly control: Eventfd;
  readonly exited: Promise<unknown>;
  /** It ended without being told to: there is nobody to answer. */
  hasDied: boolean;
  /** The thread sleeps in the kernel, where the process's end does not reach it by itself. */
  readonly removeExitHook: () => void;
}

export interface DataThreadOptions {
  readonly threads: number;
  /** CPUs of each thread; missing or empty: any. */
  readonly cpus: readonly (readonly number[])[];
  readonly queueCount: number;
  readonly service: DataService;
  readonly log: Log;
  /** What is behind the queues failed for good; the queues stand still. */
  readonly onFailed?: (errno: number) => void;
  /** Another place of the worker, for tests. */
  readonly workerUrl?: URL | undefined;
}

export class DataThreads implements QueueOwner {
  readonly queueCount: number;
  readonly usesAsyncio = true;
  readonly #options: DataThreadOptions;
  readonly #transport: VirtioTransport;
  readonly #threads: Thread[] = [];
  readonly #settings = new Map<number, number>();
  #lent: readonly QueueWires[] = [];
  #started: Promise<void> | undefined;

  constructor(options: DataThreadOptions, transport: VirtioTransport) {
    this.#options = options;
    this.#transport = transport;
    this.queueCount = options.queueCount;
  }

  /** Whether threads can be had here at all. */
  static isPossible(transport: VirtioTransport, url: URL = workerUrl): boolean {
    return transport.ram.hasHostAddresses && !transport.ram.isObserved && existsSync(fileURLToPath(url));
  }

  /** @throws HostError when a thread does not come up. */
  start(): Promise<void> {
    this.#started ??= this.#startThreads();
    return this.#started;
  }

  async #startThreads(): Promise<void> {
    const count = Math.min(this.#options.threads, this.queueCount);
    for (let i = 0; i < count; i++) this.#threads.push(await this.#startThread(i));
  }

  async #startThread(index: number): Promise<Thread> {
    const { service, queueCount, cpus, log } = this.#options;
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
      cpus: cpus[index] ?? [],
    };
    const worker = new Worker(this.#options.workerUrl ?? workerUrl, { workerData: setup, stdin: false });
    const exited = new Promise((resolve) => worker.once('exit', resolve));
    const shared = new Int32Array(words);
    // From the start: an order that comes before the thread is up is found by it.
    let hasToldToQuit = false;
    const removeExitHook = onProcessEnd(() => {
      if (hasToldToQuit) return;
      hasToldToQuit = true;
      const answered = Atomics.load(shared, Word.Answered);
      postOrder(shared, control, Order.Quit);
      // The process's end must not meet it in the middle of a system call on guest memory.
      Atomics.wait(shared, Word.Answered, answered, EXIT_TIMEOUT_MS);
    });
    try {
      await new Promise<void>((resolve, reject) => {
        worker.on('message', (message: DataThreadMessage) => {
          if (message.kind === 'ready') resolve();
          else if (message.kind === 'guest') log.guest(() => message.text);
          else if (message.kind === 'failed') this.#options.onFailed?.(message.errno);
          else if (message.order === Atomics.load(shared, Word.Ordered)) {
            this.#transport.needsReset(`queue ${message.queue}: ${message.reason}`);
          }
        });
        worker.once('error', reject);
      });
    } catch (error) {
      removeExitHook();
      control.dispose();
      throw new HostError(`data thread: ${(error as Error).message}`, Errno.EAGAIN, { cause: error });
    }
    const fields = new Float64Array(queues);
    const thread: Thread = { worker, words: shared, fields, control, exited, hasDied: false, removeExitHook };
    worker.on('error', (error) => {
      thread.hasDied = true;
      log.error(`data thread: ${error.message}`);
      if (this.#lent.length > 0) this.#transport.needsReset('the data thread has ended');
    });
    // It ends by order; until then it need not keep the process alive.
    worker.unref();
    return thread;
  }

  /** Set a word of the server's own (from `Word.OfServer` on), which it sees at once. */
  set(word: number, value: number): void {
    this.#settings.set(word, value);
    for (const { words } of this.#threads) Atomics.store(words, word, value);
  }

  takeOver(wires: readonly QueueWires[]): boolean {
    if (this.#threads.length === 0) return false;
    this.#lent = wires;
    for (const { fields, words } of this.#threads) {
      fields.fill(0);
      for (const [word, value] of this.#settings) Atomics.store(words, word, value);
    }
    wires.forEach(({ queue, kickFd, callFd }, i) => {
      const { fields } = this.#threads[i % this.#threads.length] as Thread;
      const { desc, avail, used } = queue.addresses;
      const { packed, indirect, eventIdx, notifyOnEmpty } = queue.features;
      const values = [queue.index, queue.size, desc, avail, used, queue.position];
      fields.set([...values, +indirect, +eventIdx, +notifyOnEmpty, kickFd, callFd, +packed], i * QueueField.count);
    });
    const isStarted = this.#threads.map((thread) => this.#order(thread, Order.Start)).every(Boolean);
    if (!isStarted) {
      this.#options.log.error('a data thread does not answer');
      this.giveBack();
    }
    return isStarted;
  }

  giveBack(): void {
    this.suspend();
    this.#lent = [];
  }

  /** Finish what is in flight and stand still. The queues on this side are then where the threads left them. */
  suspend(): void {
    const lent = this.#lent;
    if (lent.length === 0) return;
    for (const thread of this.#threads) this.#order(thread, Order.Stop);
    lent.forEach(({ queue }, i) => {
      const { fields } = this.#threads[i % this.#threads.length] as Thread;
      queue.resumeAt(fields[i * QueueField.count + QueueField.position] as number);
    });
  }

  resume(): void {
    if (this.#lent.length > 0) this.takeOver(this.#lent);
  }

  /** Give an order and wait until it is carried out. @returns false when the thread does not answer. */
  #order(thread: Thread, order: number): boolean {
    const { words, control } = thread;
    if (thread.hasDied) return false;
    const number = postOrder(words, control, order);
    for (;;) {
      const answered = Atomics.load(words, Word.Answered);
      if (answered === number) return true;
      if (Atomics.wait(words, Word.Answered, answered, ANSWER_TIMEOUT_MS) === 'timed-out') return false;
    }
  }

  /** End the threads. Safe twice. */
  async stop(): Promise<void> {
    // One that is still coming up is waited for: it could not be told to end.
    await this.#started?.catch(() => {});
    this.giveBack();
    for (const thread of this.#threads.splice(0)) {
      thread.worker.ref();
      if (!this.#order(thread, Order.Quit)) await thread.worker.terminate();
      await thread.exited;
      thread.removeExitHook();
      thread.control.dispose();
    }
  }
}

/** @returns the order's number, with which it is answered. */
function postOrder(words: Int32Array, control: Eventfd, order: number): number {
  Atomics.store(words, Word.Order, order);
  const number = (Atomics.load(words, Word.Ordered) + 1) | 0;
  Atomics.store(words, Word.Ordered, number);
  control.signal();
  return number;
}
