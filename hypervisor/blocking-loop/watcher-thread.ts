/** The watcher thread of {@link Wakeups}. It must not use anything outside itself: its source text is what runs. */

/** Indexes into the shared words. Given: how many have given the thread to the event loop. Up: {@link Watcher}. */
export const Word = { Kicked: 0, Answered: 1, TimeoutMs: 2, Stop: 3, Given: 4, Up: 5, Count: 6 } as const;
export const Watcher = { none: 0, up: 1, lost: 2 } as const;

export interface WatcherData {
  readonly words: Int32Array;
  readonly koffiPath: string;
  readonly backendFd: number;
  /** An eventfd: there is something new in the words. */
  readonly controlFd: number;
  readonly pid: number;
  readonly tid: number;
  readonly signal: number;
}

export function watcherThread(): void {
  // Not `require`: a bundler puts something of the bundle's in its place, which is not there in the thread.
  const { workerData } = process.getBuiltinModule('node:worker_threads') as { workerData: WatcherData };
  const { words, koffiPath, backendFd, controlFd, pid, tid, signal } = workerData;
  const library = process.getBuiltinModule('node:module').createRequire(koffiPath)(koffiPath).load(null);
  const poll = library.func('int poll(void *, unsigned long, int)') as (...args: unknown[]) => number;
  const read = library.func('int64_t read(int, void *, size_t)') as (...args: unknown[]) => number;
  const syscall = library.func('long syscall(long, long, long, long)') as (...args: unknown[]) => number;
  const SYS_TGKILL = 234;
  const POLLIN = 1;
  /** Offset of the control descriptor's revents. */
  const CONTROL_REVENTS = 14;
  /** Until the kick is answered it is repeated this often. */
  const REPEAT_MS = 0.2;
  const [KICKED, ANSWERED, TIMEOUT_MS, STOP, GIVEN, UP] = [0, 1, 2, 3, 4, 5];
  const LOST = 2;

  // struct pollfd { int fd; short events; short revents; }
  const fds = new DataView(new ArrayBuffer(16));
  fds.setInt32(0, backendFd, true);
  fds.setInt16(4, POLLIN, true);
  fds.setInt32(8, controlFd, true);
  fds.setInt16(12, POLLIN, true);
  const bytes = new Uint8Array(fds.buffer);
  const count = new Uint8Array(8);

  const isStopped = () => Atomics.load(words, STOP as number) !== 0;
  const givenBy = () => Atomics.load(words, GIVEN as number);

  const kickUntilAnswered = () => {
    const kick = (Atomics.load(words, KICKED as number) + 1) | 0;
    Atomics.store(words, KICKED as number, kick);
    for (;;) {
      const answered = Atomics.load(words, ANSWERED as number);
      if (answered === kick || givenBy() !== 0 || isStopped()) break;
      syscall(SYS_TGKILL, pid, tid, signal);
      Atomics.wait(words, ANSWERED as number, answered, REPEAT_MS);
    }
  };
  const watch = () => {
    for (;;) {
      // In this order: who stops this thread counts up after that, so that the wait does not begin.
      const givers = givenBy();
      if (isStopped()) break;
      if (givers !== 0) {
        Atomics.wait(words, GIVEN as number, givers);
        continue;
      }
      const ready = poll(bytes, 2, Atomics.load(words, TIMEOUT_MS as number));
      if (isStopped()) break;
      // One that was interrupted leaves there what the poll before it has found.
      if (ready > 0 && fds.getInt16(CONTROL_REVENTS, true) !== 0) {
        read(controlFd, count, 8);
        continue;
      }
      // The event loop may have been at work, and have served already what this thread woke up for.
      if (givenBy() !== 0 || (ready > 0 && poll(bytes, 1, 0) === 0)) continue;
      kickUntilAnswered();
    }
  };

  Atomics.store(words, UP as number, 1);
  try {
    watch();
  } catch (error) {
    // Its last word: nobody would look for the event of its end.
    Atomics.store(words, UP as number, LOST);
    kickUntilAnswered();
    throw error;
  }
}
