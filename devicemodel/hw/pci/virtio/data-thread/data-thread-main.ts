/**
 * A data thread: sleeps until a driver kicks or what is behind the device has something, serves, sleeps again. A worker
 * that shares nothing with the device thread but guest memory, descriptors and a few words. It costs one poll a turn
 * while there is work, and nothing while there is none.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { GuestRam } from '../../../../core/guest-buffers.ts';
import { signalEventfd, takeEventfd } from '../../../../core/host/eventfd.ts';
import { viewOf } from '../../../../core/host/mapping.ts';
import { PollSet } from '../../../../core/host/poll.ts';
import { pinThread, setNice } from '../../../../core/host/scheduling.ts';
import { Log } from '../../../../core/log.ts';
import { MAX_QUEUE_SIZE } from '../ring/ring.ts';
import { Virtqueue, type VirtqueueHost } from '../ring/virtqueue.ts';
import {
  type DataThreadMessage,
  type DataThreadSetup,
  Order,
  QueueField,
  type QueueServer,
  type ServerFactory,
  Standing,
  Word,
} from './words.ts';

/** Places in the set that is polled; the kicks follow. */
const Slot = { Control: 0, Server: 1, Kicks: 2 } as const;
/** As the C device model has its I/O threads; a guest waits for this thread. */
const NICE = -20;

interface Served {
  readonly queue: Virtqueue;
  /** Which of the queue fields are its. */
  readonly slot: number;
  readonly kickFd: number;
  readonly callFd: number;
  /** The driver made more available than one turn takes. */
  hasMore: boolean;
}

class DataThread {
  readonly #setup: DataThreadSetup;
  readonly #words: Int32Array;
  readonly #fields: Float64Array;
  readonly #ram: GuestRam;
  readonly #server: QueueServer;
  readonly #polled: PollSet;
  readonly #host: VirtqueueHost = {
    interrupt: (queue) => {
      for (const each of this.#served) if (each.queue === queue) signalEventfd(each.callFd);
    },
    broken: (queue, reason) => tell({ kind: 'broken', order: this.#obeyed, queue: queue.index, reason }),
  };
  #served: Served[] = [];
  /** Number of the latest order. */
  #obeyed = 0;
  #hasMore = false;

  constructor(setup: DataThreadSetup, makeServer: ServerFactory) {
    this.#setup = setup;
    this.#words = new Int32Array(setup.words);
    this.#fields = new Float64Array(setup.queues);
    this.#ram = new GuestRam(
      setup.chunks.map(({ base, sizeBytes, hostAddress }) => ({
        base,
        bytes: viewOf(hostAddress, sizeBytes),
        hostAddress,
      })),
    );
    const { service } = setup;
    const log = new Log([{ maxLevel: 5, write: (_level, text) => tell({ kind: 'guest', text }) }]);
    this.#server = makeServer(service, {
      words: this.#words,
      counts: setup.counts,
      log,
      tellFailed: (errno) => tell({ kind: 'failed', errno }),
    });
    this.#polled = new PollSet(setup.queueCount + Slot.Kicks);
    this.#polled.watch(Slot.Control, setup.controlFd);
    // CPUs that do not exist are no reason to stop.
    if (setup.cpus.length > 0) pinThread(setup.cpus);
    // Who may not is served at the usual priority.
    setNice(NICE);
  }

  /** Until it is ordered to quit, or fails. */
  run(): void {
    tell({ kind: 'ready' });
    try {
      while (this.#turn());
    } catch (error) {
      // What is in flight in the kernel must be over before the device thread goes on with the queues.
      tryTo(() => this.#server.stop());
      for (const each of this.#served) each.queue.putBackLatest();
      this.#writePositions();
      tell({ kind: 'ended', reason: (error as Error).message });
    }
    this.#server.dispose();
  }

  /** @returns whether the thread goes on. */
  #turn(): boolean {
    const polled = this.#polled;
    const words = this.#words;
    polled.watch(Slot.Server, this.#server.waitFd);
    polled.wait(this.#served.length + Slot.Kicks, this.#hasMore ? 0 : -1);
    if (polled.isReadable(Slot.Control)) {
      takeEventfd(this.#setup.controlFd);
      Atomics.store(words, Word.Alive, Atomics.load(words, Word.Asked));
    }
    if (Atomics.load(words, Word.Ordered) !== this.#obeyed) return this.#obey();
    Atomics.store(words, Word.Standing, Standing.Unknown);
    this.#serveAll();
    this.#writePositions();
    return true;
  }

  /** @returns whether the thread goes on. */
  #obey(): boolean {
    const words = this.#words;
    const ordered = Atomics.load(words, Word.Ordered);
    if (ordered === Atomics.load(words, Word.Answered)) return true;
    const order = Atomics.load(words, Word.Order);
    this.#stop();
    this.#obeyed = ordered;
    if (order === Order.Start) this.#start();
    this.#hasMore = this.#served.length > 0;
    Atomics.store(words, Word.Answered, ordered);
    Atomics.notify(words, Word.Answered);
    tell({ kind: 'answered' });
    return order !== Order.Quit;
  }

  #start(): void {
    const fields = this.#fields;
    this.#served = [];
    for (let i = 0; i < this.#setup.queueCount; i++) {
      const field = (name: keyof typeof QueueField) => fields[i * QueueField.count + QueueField[name]] as number;
      if (field('size') === 0) continue;
      const queue = new Virtqueue(field('index'), MAX_QUEUE_SIZE, this.#ram, this.#host);
      queue.size = field('size');
      queue.setFeatures({
        packed: field('packed') !== 0,
        indirect: field('indirect') !== 0,
        eventIdx: field('eventIdx') !== 0,
        notifyOnEmpty: field('notifyOnEmpty') !== 0,
      });
      queue.enable(field('desc'), field('avail'), field('used'));
      queue.resumeAt(field('position'));
      this.#served.push({ queue, slot: i, kickFd: field('kickFd'), callFd: field('callFd'), hasMore: true });
      this.#polled.watch(Slot.Kicks + this.#served.length - 1, field('kickFd'));
    }
    this.#server.start(this.#served.map((each) => each.queue));
  }

  #stop(): void {
    this.#server.stop();
    this.#writePositions();
    this.#served = [];
  }

  /** Where the queues are, and whether everything before that is used and nothing behind it is touched any more. */
  #writePositions(): void {
    const fields = this.#fields;
    let outstanding = 0;
    // After every turn: by index, which allocates nothing.
    for (let i = 0; i < this.#served.length; i++) {
      const { queue, slot } = this.#served[i] as Served;
      fields[slot * QueueField.count + QueueField.position] = queue.position;
      outstanding += queue.outstanding;
    }
    Atomics.store(this.#words, Word.Standing, outstanding === 0 ? Standing.Known : Standing.Unknown);
  }

  /** One slice of each queue that has something. An order is obeyed between any two. */
  #serveAll(): void {
    const polled = this.#polled;
    this.#hasMore = false;
    for (let i = 0; i < this.#served.length; i++) {
      const each = this.#served[i] as Served;
      const kicked = polled.isReadable(Slot.Kicks + i);
      if (kicked) takeEventfd(each.kickFd);
      if (kicked || each.hasMore) each.hasMore = !this.#server.serve(each.queue);
      if (each.hasMore) this.#hasMore = true;
      if (Atomics.load(this.#words, Word.Ordered) !== this.#obeyed) return;
    }
    if (polled.isReady(Slot.Server)) this.#server.onReadable();
  }
}

function tell(message: DataThreadMessage): void {
  parentPort?.postMessage(message);
}

function tryTo(step: () => void): void {
  try {
    step();
  } catch {
    // One error is told; what this one leaves behind shows in the positions.
  }
}

/** The half of a device that a data thread has is `server.ts` of its folder. */
interface ServerModule {
  readonly server: ServerFactory;
}

async function main(setup: DataThreadSetup): Promise<void> {
  // The bundler finds the files by this pattern: a new one is named nowhere.
  const { server }: ServerModule = await import(`../${setup.service.kind}/server.ts`);
  new DataThread(setup, server).run();
}

void main(workerData as DataThreadSetup);
