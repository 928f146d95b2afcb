/**
 * The loop of a thread that blocks while it waits for the guest. One request is one system call there; everything else
 * that wants the thread kicks it out of the call: see wakeups.ts.
 */
import { createRequire } from 'node:module';
import type { Timer } from '../../devicemodel/core/clock.ts';
import { BugError, HostError } from '../../devicemodel/core/errors.ts';
import { checkNotClosed, type GuestLoop, type RequestServer } from '../../devicemodel/core/guest-loop.ts';
import { letCompilerInline } from '../../devicemodel/core/host/inlining.ts';
import { threadCpuNs } from '../../devicemodel/core/host/scheduling.ts';
import { installKickSignal } from '../../devicemodel/core/host/signals.ts';
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import { AsyncWork } from './async-work.ts';
import { SystemClock } from './system-clock.ts';
import { Wakeups } from './wakeups.ts';

/** The guest runs first; what it does not need at once (control sockets) is started this much later. */
const AFTER_START_NS = 2_000_000;
/**
 * Making the watcher's thread keeps this one for 4 to 9 ms, and its start a CPU for 30: that begins when the guest has asked for
 * nothing for AFTER_START_NS, but no later than this.
 */
const WATCHER_BY_NS = 250_000_000;
/** So much longer a guest is left alone that computes on this very thread, unless the host's side has much to do. */
const WATCHER_BY_WHILE_COMPUTING_NS = 20_000_000_000;
/** So many more looks at the event loop that found something to do there than such that did not. */
const MUCH_HOST_WORK = 25;
/** A guest that computes is looked at again after this time: a shorter pause is none. */
const PAUSE_NS = 100_000_000;
/**
 * Ticks have their turn within this time: a guest that prints leaves one for each byte, and a turn for each would cost
 * more than the byte.
 */
const TICK_WITHIN_NS = 1_000_000;
/**
 * Until the watcher is up, which takes 30 ms, and seconds on a machine that is busy, the event loop is looked at this often; half as
 * often after each look that found nothing, down to the second.
 */
const LOOK_NS = 10_000_000;
const MAX_LOOK_NS = 80_000_000;
/** So many accesses of a guest that runs on this thread are served in one go. */
const MAX_STAYS = 32;
/** A watcher that died is replaced after this time; so long it takes, too, until one that could not be had is tried again. */
const WATCHER_AGAIN_NS = 1_000_000_000;
/** A line about it that was said is said again after this time. */
const WARNING_AGAIN_NS = 60_000_000_000;

/** A guest that has used up MAX_STAYS this often asks for much. V8 has optimized nothing of what serves it by then. */
const HOT_STAYS = 8;

export class BlockingLoop implements GuestLoop {
  readonly clock: SystemClock;
  readonly #log: Log;
  readonly #runsGuest: () => boolean;
  readonly #work: AsyncWork;
  readonly #wakeups: Wakeups;
  readonly #tickTurn: Timer;
  readonly #quiet: Timer;
  readonly #beforeWatcher: Timer;
  #onQuiet: () => void = () => {};
  /** Since the guest was last looked at. */
  #hasServed = false;
  /** Accesses for which the guest still has the thread. */
  #stays = 0;
  /** How often it used them up. */
  #fullStays = 0;
  #flush: () => void = () => {};
  /** When the watcher is made at the latest. */
  #watcherByNs = Number.POSITIVE_INFINITY;
  /** The same for a guest that computes on this thread. */
  #watcherByWhileComputingNs = Number.POSITIVE_INFINITY;
  /** When it was last looked whether the guest has a pause, and the thread's CPU time then. */
  #lookedNs = 0;
  #cpuNs = 0;
  /** Looks that found the event loop with something to do, while nobody watched it, less those that did not. */
  #hostWork = 0;
  #lookInNs = LOOK_NS;
  /** Between {@link started} and {@link ended}. */
  #hasGuest = false;
  /** Who has given the thread to the event loop: each {@link rest}, and whoever has no guest for it. */
  #givers = 0;
  /** By what there is to say of the watcher. */
  readonly #nextWarningNs = new Map<string, number>();

  /**
   * @param runsGuest whether the wait for the guest runs it, on this very thread: time that passes there is the guest's.
   * @throws HostError
   */
  constructor(log: Log, runsGuest: () => boolean = () => false) {
    installKickSignal();
    this.#log = log;
    this.#runsGuest = runsGuest;
    this.clock = new SystemClock();
    // What was started during a turn has run, or shows in the descriptor or in the time to sleep.
    const onTurnEnd = () => {
      this.#work.isStarted = false;
      this.#tickTurn.cancel();
    };
    try {
      this.#wakeups = new Wakeups(
        onTurnEnd,
        () => this.#replaceWatcher(),
        (error) => this.#warn(`the thread that watches descriptors ended: ${error.message}`),
      );
    } catch (error) {
      this.clock.dispose();
      throw error;
    }
    this.#tickTurn = this.clock.createTimer(() => this.#wakeups.requestTurn());
    this.#work = new AsyncWork(() => {
      if (this.#givers === 0 && this.#tickTurn.dueNs === undefined)
        this.#tickTurn.arm(this.clock.nowNs() + TICK_WITHIN_NS);
    });
    this.#quiet = this.clock.createTimer(() => this.#lookForQuiet());
    this.#beforeWatcher = this.clock.createTimer(() => this.#lookBeforeWatcher());
    this.#giveThread();
  }

  next(hsm: Hsm, server: RequestServer): undefined | Promise<void> {
    if (this.#work.isStarted || this.#wakeups.pending) return this.#wakeups.turn();
    this.#stays = MAX_STAYS;
    this.#flush = server.flush;
    this.clock.hasEarlier = false;
    const result = hsm.waitForIoreqs(server.serve, this.#goesOn);
    if (result instanceof Promise) throw new BugError('a wait that does not block, in the loop for one that does');
    checkNotClosed(result);
    // After a kick nothing is there to serve, or the next wait ends at once.
    if (result === 'pending') {
      this.#hasServed = true;
      server.serve();
    }
    if (this.#stays === 0 && ++this.#fullStays === HOT_STAYS) letCompilerInline();
    this.clock.runDue();
    return undefined;
  }

  /**
   * Whether a guest that runs on this thread has it again at once. What wants the thread shows here, or its kick ends the
   * guest's turn. The kick of a timer is lost where the guest is being served just then, and repeated; after so many accesses
   * it is looked for all the same. One that a device arms meanwhile may be due at once.
   */
  readonly #goesOn = (): boolean => {
    if (--this.#stays === 0) return false;
    this.#flush();
    return !this.#work.isStarted && !this.#wakeups.pending && !this.clock.hasEarlier;
  };

  #lookForQuiet(): void {
    this.#onQuiet();
    this.#onQuiet = () => {};
    const nowNs = this.clock.nowNs();
    const isAsking = this.#hasServed && nowNs < this.#watcherByNs;
    this.#hasServed = false;
    const isComputing = this.#isComputing(nowNs);
    if (isAsking) this.#quiet.arm(nowNs + AFTER_START_NS);
    else if (isComputing) this.#quiet.arm(nowNs + PAUSE_NS);
    else this.#startWatcher(nowNs);
  }

  /** Whether the guest was on this thread's CPU for most of the time since the last look, and is to be left there. */
  #isComputing(nowNs: number): boolean {
    // Elsewhere CPU time of this thread is its own work, of which a guest that asks for much makes much.
    if (!this.#runsGuest()) return false;
    const cpuNs = threadCpuNs();
    const isBusy = cpuNs - this.#cpuNs > (nowNs - this.#lookedNs) / 2;
    this.#lookedNs = nowNs;
    this.#cpuNs = cpuNs;
    return isBusy && nowNs < this.#watcherByWhileComputingNs && this.#hostWork < MUCH_HOST_WORK;
  }

  /** Turns come by the clock until there is one, however long that takes: it is no reason to end a VM. */
  #startWatcher(nowNs: number): void {
    try {
      this.#wakeups.start(createRequire(import.meta.url).resolve('koffi'));
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      this.#warn(error.message);
      this.#quiet.arm(nowNs + WATCHER_AGAIN_NS);
    }
  }

  /** Tried every second, it may fail for the same reason every second. */
  #warn(why: string): void {
    const nowNs = this.clock.nowNs();
    if (nowNs < (this.#nextWarningNs.get(why) ?? 0)) return;
    this.#nextWarningNs.set(why, nowNs + WARNING_AGAIN_NS);
    this.#log.warn(`${why}; the VM goes on, and the host's side of devices is slower until there is another one`);
  }

  /** It died. */
  #replaceWatcher(): void {
    const nowNs = this.clock.nowNs();
    this.#watcherByNs = nowNs;
    this.#watcherByWhileComputingNs = nowNs;
    this.#lookInNs = LOOK_NS;
    this.#quiet.arm(nowNs + WATCHER_AGAIN_NS);
    this.#beforeWatcher.arm(nowNs + LOOK_NS);
  }

  #lookBeforeWatcher(): void {
    if (this.#wakeups.isWatched) return;
    if (this.#wakeups.look()) {
      this.#hostWork++;
      this.#lookInNs = LOOK_NS;
      this.#wakeups.requestTurn();
    } else {
      this.#hostWork = Math.max(0, this.#hostWork - 1);
      this.#lookInNs = Math.min(2 * this.#lookInNs, MAX_LOOK_NS);
    }
    this.#beforeWatcher.arm(this.clock.nowNs() + this.#lookInNs);
  }

  requestTurn(): void {
    this.#wakeups.requestTurn();
  }

  started(onQuiet: () => void): void {
    if (!this.#hasGuest) this.#takeThread();
    this.#hasGuest = true;
    const nowNs = this.clock.nowNs();
    this.#onQuiet = onQuiet;
    this.#watcherByNs = Math.min(this.#watcherByNs, nowNs + WATCHER_BY_NS);
    this.#watcherByWhileComputingNs = Math.min(this.#watcherByWhileComputingNs, nowNs + WATCHER_BY_WHILE_COMPUTING_NS);
    this.#lookedNs = nowNs;
    this.#cpuNs = threadCpuNs();
    this.#quiet.arm(nowNs + AFTER_START_NS);
    // Not at once: the guest's first request does not wait for what the start has left to the event loop.
    this.#beforeWatcher.arm(nowNs + LOOK_NS);
  }

  ended(): void {
    if (!this.#hasGuest) return;
    this.#hasGuest = false;
    this.#giveThread();
    // Made for a guest that is gone; the next one has its own.
    this.#quiet.cancel();
    this.#beforeWatcher.cancel();
  }

  async rest<T>(work: Promise<T>): Promise<T> {
    this.#giveThread();
    try {
      return await work;
    } finally {
      this.#takeThread();
    }
  }

  #giveThread(): void {
    if (this.#givers++ > 0) return;
    this.#wakeups.rest();
    this.clock.rest();
  }

  #takeThread(): void {
    if (--this.#givers > 0) return;
    this.clock.endRest();
    this.#wakeups.endRest();
  }

  stopNow(): void {
    this.#wakeups.stopNow();
  }

  async stop(): Promise<void> {
    this.#quiet.cancel();
    this.#beforeWatcher.cancel();
    this.#work.dispose();
    this.#tickTurn.cancel();
    await this.#wakeups.stop();
    this.clock.dispose();
  }
}
