/**
 * One User VM from its configuration to its end. A *life* is what one HSM descriptor stands for (life.ts): a full reset
 * ends a life and begins another in the same process, a system reset and a suspend stay within one.
 *
 *   created → running ⇄ (paused: reset | suspended) → ended
 *
 * The wish to end belongs to the VM, whatever it is doing: see power.ts. It ends once, with everything released.
 */
import { EventEmitter } from 'eventemitter3';
import type { Board } from './board.ts';
import type { Timer } from './clock.ts';
import type { VmConfig } from './config.ts';
import type { PowerControl, PowerEvent } from './device.ts';
import {
  DmError,
  ExitCode,
  isOutOfDescriptors,
  RefusedError,
  StoppedError,
  StorageHangError,
  withOurKind,
} from './errors.ts';
import { Life, type VmParts } from './life.ts';
import type { Log } from './log.ts';
import { PowerOffRequested, PowerState } from './power.ts';
import type { ThreadPulses } from './thread-pulses.ts';
import type { VmEventMap, VmState } from './vm-events.ts';

export type { VmParts } from './life.ts';

/** A guest that was asked to shut down gets this long before the VM is powered off: acrnd waits no longer either. */
export const DEFAULT_SHUTDOWN_TIMEOUT_MS = 20_000;
const NS_PER_MS = 1_000_000;

/** Who speaks to the guest: its life manager listens. */
export interface GuestAgent {
  requestShutdown(): void;
}

export interface ShutdownManner {
  readonly isPatient?: boolean;
  readonly agent?: GuestAgent | undefined;
}

export class Vm extends EventEmitter<VmEventMap> {
  readonly config: VmConfig;
  readonly #parts: VmParts;
  readonly #log: Log;
  readonly #power = new PowerState();
  #life: Life | undefined;
  #state: VmState = 'created';
  /** Paused by {@link pause}, not by a reset. */
  #isFrozen = false;
  /** Runs once the guest was asked to shut down. */
  #patience: Timer | undefined;

  constructor(config: VmConfig, parts: VmParts) {
    super();
    this.config = config;
    this.#parts = parts;
    this.#log = parts.log.child('vm');
    // Whoever does not want it to start anew takes a reset for the end, as after a shutdown that was asked for.
    if ((config.afterEnd?.onReboot ?? 'restart') !== 'restart') this.#power.endsAtReset = true;
  }

  get state(): VmState {
    return this.#state;
  }

  /** The board of the running life, for control commands. */
  get board(): Board | undefined {
    return this.#life?.board;
  }

  /** Threads that serve the devices of the running life. */
  get threads(): ThreadPulses | undefined {
    return this.#life?.threads;
  }

  /** Ends, resets or suspends the VM. Power-off counts at any time, from before the first life to within S3. */
  readonly power: PowerControl = { request: (event) => this.#power.request(event) };

  /**
   * Ask the guest to shut down, by its power button or by whoever speaks to it. Where nobody would listen, where it was
   * asked before, or when it does not shut down in time, the VM is powered off; a reset of its own accord is the end,
   * too. A guest in S3 would wake up of the button and take it for nothing else: it is powered off, having written
   * everything back before it went to sleep.
   * @param manner.isPatient as a manager asks that may come while the guest boots or sleeps: the power is never cut at once,
   * only when the time is over, and a guest in S3 sleeps on.
   * @param manner.agent asks it instead of the button.
   */
  shutDown(reason: string, { isPatient = false, agent }: ShutdownManner = {}): void {
    if (isPatient && this.#state === 'suspended') {
      this.#log.notice(`${reason}: the guest is suspended, and stays so`);
      return;
    }
    // Asked while it stands still it would not hear of it.
    if (this.#isFrozen) this.resume();
    const isUp = this.#state === 'running';
    const isAsked = isUp && (this.#patience === undefined || isPatient);
    const isHeard = isAsked && this.#ask(agent, isPatient);
    if (!isHeard && !(isPatient && isUp)) {
      this.#power.request({ kind: 'poweroff', reason });
      return;
    }
    const how = agent === undefined ? 'pressed the power button' : 'asked the life manager of the guest';
    this.#log.notice(`${reason}: ${how}${isHeard ? '' : ', which the guest has not enabled'}`);
    this.#power.shutdownReason ??= reason;
    if (this.#patience !== undefined) return;
    const { clock } = this.#parts.loop;
    const patience = clock.createTimer(() => {
      this.#power.request({ kind: 'poweroff', reason: `${reason}, and the guest did not shut down in time` });
    });
    patience.arm(clock.nowNs() + (this.config.shutdownTimeoutMs ?? DEFAULT_SHUTDOWN_TIMEOUT_MS) * NS_PER_MS);
    this.#patience = patience;
  }

  /** @returns whether the guest hears of it. */
  #ask(agent: GuestAgent | undefined, isPatient: boolean): boolean {
    if (agent === undefined) return this.board?.pressPowerButton(isPatient) === true;
    agent.requestShutdown();
    return true;
  }

  /** Press the power button and expect nothing of it. In S3, where it would wake the guest, nothing happens. */
  pressPowerButton(): void {
    if (this.#state === 'running') this.board?.pressPowerButton(true);
  }

  /**
   * The guest stands still until {@link resume}. It is still this VM: it can be ended, and a reset starts it again.
   * @throws RefusedError where the VM does not run, is a real-time VM, or its hypervisor cannot let it go on.
   */
  pause(): void {
    if (this.#isFrozen) return;
    if (this.config.rtvm) {
      throw new RefusedError('impossible', 'a real-time VM is not paused', { hint: 'it would miss its deadlines' });
    }
    if (this.#state !== 'running' || this.#life === undefined) throw this.#notRunning('paused');
    this.#life.freeze();
    this.#isFrozen = true;
    this.#log.notice('paused');
  }

  /** After {@link pause}. @throws RefusedError when the VM is not paused. */
  resume(): void {
    if (!this.#isFrozen || this.#life === undefined) {
      const state = this.#state === 'paused' ? 'being reset' : this.#state;
      throw new RefusedError('wrong-state', `VM "${this.config.name}" is ${state}, not paused`);
    }
    this.#isFrozen = false;
    this.#life.thaw();
    this.#log.notice('resumed');
  }

  /** Start the guest anew, as its reset button would. @throws RefusedError when it does not run. */
  reset(reason: string): void {
    if (this.#state !== 'running' && !this.#isFrozen) throw this.#notRunning('reset');
    // What is rebuilt is not what was paused.
    if (this.#isFrozen) this.resume();
    this.#power.request({ kind: 'full-reset', reason });
  }

  #notRunning(done: string): RefusedError {
    return new RefusedError(
      'wrong-state',
      `VM "${this.config.name}" is ${this.#state}: only one that runs can be ${done}`,
    );
  }

  /** Ends S3. No effect in any other state. */
  wake(): void {
    this.emit('wake');
  }

  /** Aborted once the VM is to end, whatever it is doing. */
  get ending(): AbortSignal {
    return this.#power.ending;
  }

  /** Aborted once the VM is to end whatever is not finished. */
  get forcing(): AbortSignal {
    return this.#power.forcing;
  }

  /**
   * Events are told in the middle of a guest's access, a reset or the teardown. A listener that throws must not break
   * those: what it throws is thrown by the event loop, as if nobody had called it.
   */
  override emit<T extends EventEmitter.EventNames<VmEventMap>>(
    event: T,
    ...args: EventEmitter.EventArgs<VmEventMap, T>
  ): boolean {
    try {
      return super.emit(event, ...args);
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
      return true;
    }
  }

  /**
   * Run until the guest powers off or someone asks for it. Full resets begin new lives inside. Once in a VM's life.
   * @throws DmError after everything was released.
   */
  async run(): Promise<PowerEvent> {
    try {
      let event = this.#power.event;
      while (event === undefined || event.kind === 'full-reset') event = await this.#live();
      return event;
    } finally {
      this.#patience?.cancel();
      this.#enter('ended');
    }
  }

  /**
   * Last resort when the process is about to go: pause and destroy the VM, now, without waiting for anything. A VM that
   * outlives its device model unpaused damages the driver's list of VMs.
   */
  abandon(): void {
    this.#life?.abandon();
    this.#life = undefined;
    this.#power.request({ kind: 'poweroff', reason: 'abandoned' });
  }

  /** One life, from nothing to nothing. @returns what comes after it. */
  async #live(): Promise<PowerEvent> {
    const life = new Life(this.config, this.#parts, this.#power, this, (state) => this.#enter(state));
    this.#life = life;
    let event: PowerEvent;
    try {
      await life.configure();
      life.start();
      event = await this.#serve(life);
    } catch (thrown) {
      const error = withOurKind(thrown);
      if (error instanceof DmError && life.hasAskedForVm) {
        // Where the last descriptor went is chance: the status does not depend on it.
        error.exitCode = isOutOfDescriptors(error) ? ExitCode.OsError : ExitCode.VmFailed;
      }
      if (error instanceof StorageHangError) return this.#endHung(life, error);
      const isAskedFor = error instanceof PowerOffRequested || (error instanceof StoppedError && this.#power.isEnding);
      if (!isAskedFor) {
        await this.#end(life, false).catch((hang: Error) => this.#log.error(hang.message));
        throw error;
      }
      const what = error instanceof StoppedError ? `: ${error.message}` : '';
      event = { kind: 'poweroff', reason: `${this.#power.event?.reason}${what}` };
    }
    // A guest can reset itself as often as it likes; the end of the VM is always said.
    const line = `${event.kind}: ${event.reason}`;
    if (event.kind === 'poweroff') this.#log.notice(line);
    else this.#log.rationed('notice', () => line);
    if (event.kind === 'full-reset') this.emit('reset', { kind: event.kind, reason: event.reason });
    const instead = await this.#end(life, event.kind === 'full-reset');
    // What was asked for meanwhile comes first.
    return instead ?? (event.kind === 'poweroff' ? event : (this.#power.event ?? event));
  }

  /** The thread is the guest's in here, and in no other moment of a life. */
  async #serve(life: Life): Promise<PowerEvent> {
    const { loop } = this.#parts;
    loop.started(() => this.emit('started'));
    try {
      return await life.run();
    } finally {
      loop.ended();
    }
  }

  /** @returns the event that took the place of the one that ended this life. @throws StorageHangError */
  async #end(life: Life, isReset: boolean): Promise<PowerEvent | undefined> {
    try {
      await life.end(isReset);
    } catch (error) {
      if (error instanceof StorageHangError) return this.#endHung(life, error);
      // The guest is gone whatever failed here; what could not be released is said, and nothing is left out.
      const failures = error instanceof AggregateError ? error.errors : [error];
      for (const failure of failures) this.#log.error((failure as Error).message);
    } finally {
      this.#life = undefined;
    }
    return undefined;
  }

  /**
   * Storage does not give back what it has of the guest's memory: the VM is paused and destroyed, and nothing else is
   * released. @returns the event, if it was asked not to wait. @throws StorageHangError
   */
  #endHung(life: Life, error: StorageHangError): PowerEvent {
    life.abandon();
    this.#life = undefined;
    const { forced } = this.#power;
    if (forced === undefined) throw error;
    this.#log.warn(`${error.message}: not waited for`);
    return forced;
  }

  #enter(state: VmState): void {
    if (state === this.#state) return;
    // A reset, or the end: whoever paused the VM has no part in it any more.
    if (state !== 'paused') this.#isFrozen = false;
    this.#log.debug(`${this.#state} -> ${state}`);
    this.#state = state;
    this.emit('state', state);
  }
}
