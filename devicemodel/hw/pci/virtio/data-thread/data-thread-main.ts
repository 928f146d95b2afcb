/**
 * A data thread: sleeps until a driver kicks or what is behind the device has something, serves, sleeps again. A worker
 * that shares nothing with the device thread but guest memory, descriptors and a few words. It costs one poll a turn
 * while there is work, and nothing while there is none.
 */
import { parentPort, workerData } from 'node:worker_threads';
import { BugError } from '../../../../core/errors.ts';
import { GuestRam } from '../../../../core/guest-buffers.ts';
import { libc, native, viewOf } from '../../../../core/host/libc.ts';
import { Log } from '../../../../core/log.ts';
import { MAX_QUEUE_SIZE } from '../ring/ring.ts';
import { Virtqueue, type VirtqueueHost } from '../ring/virtqueue.ts';
import { servers } from './servers.ts';
import { type DataThreadMessage, type DataThreadSetup, Order, QueueField, Standing, Word } from './words.ts';

const POLLIN = 1;
/** struct pollfd: s32 fd, s16 events, s16 revents. */
const POLLFD_BYTES = 8;
/** Places in the array of struct pollfd; the kicks follow. */
const Slot = { Control: 0, Server: 1, Kicks: 2 } as const;
/** As the C device model has its I/O threads; a guest waits for this thread. */
const NICE = -20;
/** <sys/resource.h>: of one thread, if given its id. */
const PRIO_PROCESS = 0;
/** sched_setaffinity: CPUs a mask of this many bytes can name. */
const CPU_MASK_BYTES = 128;

interface Served {
  readonly queue: Virtqueue;
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
  const poll = native('int poll(void *, unsigned long, int)');
  const read = native('int64_t read(int, void *, size_t)');
  const write = native('int64_t write(int, const void *, size_t)');
  const one = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);
  const count = new Uint8Array(8);
  let served: Served[] = [];
  /** Number of the latest order. */
  let obeyed = 0;
  const host: VirtqueueHost = {
    interrupt: (queue) => {
      for (const each of served) if (each.queue === queue) write(each.callFd, one, 8);
    },
    broken: (queue, reason) => tell({ kind: 'broken', order: obeyed, queue: queue.index, reason }),
  };
  const pollfds = new DataView(new ArrayBuffer(POLLFD_BYTES * (setup.queueCount + Slot.Kicks)));
  const pollBytes = new Uint8Array(pollfds.buffer);
  const watch = (slot: number, fd: number) => {
    pollfds.setInt32(slot * POLLFD_BYTES, fd, true);
    pollfds.setInt16(slot * POLLFD_BYTES + 4, POLLIN, true);
  };
  const events = (slot: number) => pollfds.getInt16(slot * POLLFD_BYTES + 6, true);
  watch(Slot.Control, setup.controlFd);
  pinTo(setup.cpus);
  // Who may not is served at the usual priority.
  native('int setpriority(int, unsigned int, int)')(PRIO_PROCESS, libc.gettid(), NICE);

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
      served.push({ queue, kickFd: field('kickFd'), callFd: field('callFd'), hasMore: true });
      watch(Slot.Kicks + served.length - 1, field('kickFd'));
    }
    server.start(served.map((each) => each.queue));
  };
  /** @returns whether everything before the positions is used, and nothing behind them is touched any more. */
  const writePositions = () => {
    let outstanding = 0;
    for (let i = 0; i < setup.queueCount; i++) {
      const at = i * QueueField.count;
      const each = served.find((s) => s.queue.index === fields[at + QueueField.index]);
      if (each === undefined) continue;
      fields[at + QueueField.position] = each.queue.position;
      outstanding += each.queue.outstanding;
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
      const kicked = (events(Slot.Kicks + i) & POLLIN) !== 0;
      if (kicked) read(each.kickFd, count, 8);
      if (kicked || each.hasMore) each.hasMore = !server.serve(each.queue);
      if (each.hasMore) hasMore = true;
      if (Atomics.load(words, Word.Ordered) !== obeyed) return;
    }
    if (events(Slot.Server) !== 0) server.onReadable();
  };

  tell({ kind: 'ready' });
  let hasMore = false;
  try {
    for (;;) {
      watch(Slot.Server, server.waitFd);
      poll(pollBytes, served.length + Slot.Kicks, hasMore ? 0 : -1);
      if ((events(Slot.Control) & POLLIN) !== 0) read(setup.controlFd, count, 8);
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

/** Run this thread on the given CPUs only; CPUs that do not exist are no reason to stop. */
function pinTo(cpus: readonly number[]): void {
  if (cpus.length === 0) return;
  const mask = new Uint8Array(CPU_MASK_BYTES);
  for (const cpu of cpus) {
    if (cpu < CPU_MASK_BYTES * 8) mask[cpu >>> 3] = (mask[cpu >>> 3] as number) | (1 << (cpu & 7));
  }
  native('int sched_setaffinity(int, size_t, const void *)')(libc.gettid(), CPU_MASK_BYTES, mask);
}

run(workerData as DataThreadSetup);
