/**
 * A data thread: sleeps until a driver kicks or what is behind the device has something, serves, sleeps again. A worker
 * that shares nothing with the device thread but guest memory, descriptors and a few words. It costs one poll a turn
 * while there is work, and nothing while there is none.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { BugError } from '../../../../core/errors.ts';
import { GuestRam } from '../../../../core/guest-buffers.ts';
import { signalEventfd, takeEventfd } from '../../../../core/host/eventfd.ts';
import { viewOf } from '../../../../core/host/mapping.ts';
import { PollSet } from '../../../../core/host/poll.ts';
import { pinThread, setNice } from '../../../../core/host/scheduling.ts';
import { Log } from '../../../../core/log.ts';
import { MAX_QUEUE_SIZE } from '../ring/ring.ts';
import { Virtqueue, type VirtqueueHost } from '../ring/virtqueue.ts';
import { servers } from './servers.ts';
import { type DataThreadMessage, type DataThreadSetup, Order, QueueField, Standing, Word } from './words.ts';

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

function run(setup: DataThreadSetup): void {
  const tell = (message: DataThreadMessage) => parentPort?.postMessage(message);
  const log = new Log([{ maxLevel: 5, write: (_level, text) => tell({ kind: 'guest', text }) }]);
  const words = new Int32Array(setup.words);
  const fields = new Float64Array(setup.queues);
  const ram = new GuestRam(
    setup.chunks.map(({ base, sizeBytes, hostAddress }) => ({
      base,
      bytes: viewOf(hostAddress, sizeBytes),
      hostAddress,
    })),
  );
  const { service } = setup;
  const makeServer = servers[service.kind];
  if (makeServer === undefined) throw new BugError(`nobody serves ${service.kind} in a data thread`);
  const server = makeServer(service, { words, log, tellFailed: (errno) => tell({ kind: 'failed', errno }) });
  let served: Served[] = [];
  /** Number of the latest order. */
  let obeyed = 0;
  const host: VirtqueueHost = {
    interrupt: (queue) => {
      for (const each of served) if (each.queue === queue) signalEventfd(each.callFd);
    },
    broken: (queue, reason) => tell({ kind: 'broken', order: obeyed, queue: queue.index, reason }),
  };
  const polled = new PollSet(setup.queueCount + Slot.Kicks);
  polled.watch(Slot.Control, setup.controlFd);
  // CPUs that do not exist are no reason to stop.
  if (setup.cpus.length > 0) pinThread(setup.cpus);
  // Who may not is served at the usual priority.
  setNice(NICE);

  const start = () => {
    served = [];
    for (let i = 0; i < setup.queueCount; i++) {
      const field = (name: keyof typeof QueueField) => fields[i * QueueField.count + QueueField[name]] as number;
      if (field('size') === 0) continue;
      const queue = new Virtqueue(field('index'), MAX_QUEUE_SIZE, ram, host);
      queue.size = field('size');
      queue.setFeatures({
        packed: field('packed') !== 0,
        indirect: field('indirect') !== 0,
        eventIdx: field('eventIdx') !== 0,
        notifyOnEmpty: field('notifyOnEmpty') !== 0,
      });
      queue.enable(field('desc'), field('avail'), field('used'));
      queue.resumeAt(field('position'));
      served.push({ queue, slot: i, kickFd: field('kickFd'), callFd: field('callFd'), hasMore: true });
      polled.watch(Slot.Kicks + served.length - 1, field('kickFd'));
    }
    server.start(served.map((each) => each.queue));
  };
  /** @returns whether everything before the positions is used, and nothing behind them is touched any more. */
  const writePositions = () => {
    let outstanding = 0;
    // After every turn: by index, which allocates nothing.
    for (let i = 0; i < served.length; i++) {
      const { queue, slot } = served[i] as Served;
      fields[slot * QueueField.count + QueueField.position] = queue.position;
      outstanding += queue.outstanding;
    }
    Atomics.store(words, Word.Standing, outstanding === 0 ? Standing.Known : Standing.Unknown);
  };
  const stop = () => {
    server.stop();
    writePositions();
    served = [];
  };
  /** @returns whether the thread goes on. */
  const obey = () => {
    const ordered = Atomics.load(words, Word.Ordered);
    if (ordered === Atomics.load(words, Word.Answered)) return true;
    const order = Atomics.load(words, Word.Order);
    stop();
    obeyed = ordered;
    if (order === Order.Start) start();
    hasMore = served.length > 0;
    Atomics.store(words, Word.Answered, ordered);
    Atomics.notify(words, Word.Answered);
    tell({ kind: 'answered' });
    return order !== Order.Quit;
  };
  /** One slice of each queue that has something. An order is obeyed between any two. */
  const serveAll = () => {
    hasMore = false;
    for (let i = 0; i < served.length; i++) {
      const each = served[i] as Served;
      const kicked = polled.isReadable(Slot.Kicks + i);
      if (kicked) takeEventfd(each.kickFd);
      if (kicked || each.hasMore) each.hasMore = !server.serve(each.queue);
      if (each.hasMore) hasMore = true;
      if (Atomics.load(words, Word.Ordered) !== obeyed) return;
    }
    if (polled.isReady(Slot.Server)) server.onReadable();
  };

  tell({ kind: 'ready' });
  let hasMore = false;
  try {
    for (;;) {
      polled.watch(Slot.Server, server.waitFd);
      polled.wait(served.length + Slot.Kicks, hasMore ? 0 : -1);
      if (polled.isReadable(Slot.Control)) takeEventfd(setup.controlFd);
      if (Atomics.load(words, Word.Ordered) !== obeyed) {
        if (!obey()) break;
        continue;
      }
      Atomics.store(words, Word.Standing, Standing.Unknown);
      serveAll();
      writePositions();
    }
  } catch (error) {
    // What is in flight in the kernel must be over before the device thread goes on with the queues.
    tryTo(() => server.stop());
    for (const each of served) each.queue.putBackLatest();
    writePositions();
    tell({ kind: 'ended', reason: (error as Error).message });
  }
  server.dispose();
}

function tryTo(step: () => void): void {
  try {
    step();
  } catch {
    // One error is told; what this one leaves behind shows in the positions.
  }
}

run(workerData as DataThreadSetup);
