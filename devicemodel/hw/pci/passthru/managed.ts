/**
 * `managed`: from its driver to pci-stub, and back to where it was once the VM is over. Linux
 * Documentation/ABI/testing/sysfs-bus-pci: driver_override says which driver may have a function, bind and unbind move it.
 */
import { closeSync, constants, existsSync, openSync, readFileSync, writeSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { HostError, StoppedError } from '../../../core/errors.ts';
import type { Log } from '../../../core/log.ts';
import { type HostWaits, writeToHost } from './host-write.ts';

/** Drivers that hold a function without using it. */
export const STUB_DRIVERS: readonly string[] = ['pci-stub', 'vfio-pci'];
const STUB = 'pci-stub';
/** What a forced end leaves to a driver that is well to take its device. */
const FORCED_GRACE_MS = 2_000;
/** A function that hangs makes everybody wait who wants it. */
const HUNG_GIVE_UP_MS = 5_000;

/** The function as it is now, by its place in sysfs. */
export interface ManagedFunction {
  /** Its directory. */
  readonly path: string;
  /** `02:00.0`, for messages. */
  readonly name: string;
  /** Who has it. */
  readonly driver: string | undefined;
}

export interface TakeOptions {
  /** Ends the wait for its driver. */
  readonly stop?: AbortSignal | undefined;
  /** The one driver that will do. */
  readonly driver?: string | undefined;
}

/** A function that was taken. */
interface Held {
  readonly fn: ManagedFunction;
  /** What to put back. */
  readonly driver: string | undefined;
  readonly override: string;
  /** Who has it now, as far as we moved it. */
  at: string | undefined;
  isHung: boolean;
}

/** A write to a file, as a step of moving a function. */
interface Step {
  readonly path: string;
  readonly text: string;
  /** Who has it then. */
  readonly at: string | undefined;
}

/**
 * The functions of one VM that `managed` took. They are held over its lives: between two of them no driver of the host is
 * to find a device that the next life takes away again.
 */
export class ManagedFunctions {
  readonly #log: Log;
  /** By path, in the order they were taken. */
  readonly #held = new Map<string, Held>();

  constructor(log: Log) {
    this.#log = log;
  }

  /**
   * Have it bound to pci-stub, if no stub has it, or to the one driver that will do. Does nothing for one that is held.
   * @throws HostError; what was done is undone.
   */
  async take(fn: ManagedFunction, { stop, driver: only }: TakeOptions = {}): Promise<void> {
    const { driver } = fn;
    const isIdle = driver !== undefined && (only === undefined ? STUB_DRIVERS.includes(driver) : driver === only);
    if (this.#held.has(fn.path) || isIdle) return;
    const stub = only ?? STUB;
    if (!existsSync(join(busOf(fn), 'drivers', stub))) {
      throw new HostError(`managed: the kernel has no driver ${stub}`, 0, {
        hint: `load it with: modprobe ${stub}`,
      });
    }
    const held = { fn, driver, override: readOverride(fn), at: driver, isHung: false };
    // From here on: whatever happens meanwhile, it goes back.
    this.#held.set(fn.path, held);
    try {
      await this.#run(held, `being moved to ${stub}`, move(held, stub, stub), { stop });
    } catch (error) {
      await this.#tryGiveBack(held);
      if (error instanceof StoppedError) throw error;
      const hint = error instanceof HostError && error.hint !== undefined ? { hint: error.hint } : {};
      throw new HostError(`managed: ${fn.name} is not bound to ${stub}: ${(error as Error).message}`, 0, hint);
    }
  }

  /** It does not come back from a reset: nobody will wait for it for long. */
  markHung(fn: ManagedFunction): void {
    const held = this.#held.get(fn.path);
    if (held !== undefined) held.isHung = true;
  }

  /**
   * Every function back to its driver, last first. Never throws: what cannot be given back is an error in the log.
   * @param forcing shortens the waits.
   */
  async giveBack(forcing?: AbortSignal): Promise<void> {
    for (const held of [...this.#held.values()].reverse()) await this.#tryGiveBack(held, forcing);
  }

  /** The same for a process that dies: at once. Nobody waits for a function that hangs. */
  giveBackNow(): void {
    for (const held of [...this.#held.values()].reverse()) {
      this.#held.delete(held.fn.path);
      try {
        if (held.isHung) throw new Error('it hangs');
        for (const step of stepsBack(held)) writeNow(step);
      } catch (error) {
        this.#complain(held, error as Error);
      }
    }
  }

  async #tryGiveBack(held: Held, forcing?: AbortSignal): Promise<void> {
    const { fn, isHung } = held;
    const waits = { stop: forcing, graceMs: FORCED_GRACE_MS, ...(isHung ? { giveUpMs: HUNG_GIVE_UP_MS } : {}) };
    try {
      await this.#run(held, 'being given back', stepsBack(held), waits);
    } catch (error) {
      this.#complain(held, error as Error);
    } finally {
      this.#held.delete(fn.path);
    }
  }

  #complain({ fn, driver }: Held, error: Error): void {
    const what = driver === undefined ? 'freed' : `bound to ${driver} again`;
    this.#log.error(`managed: ${fn.name} is not ${what}: ${error.message}`);
  }

  async #run(held: Held, doing: string, steps: readonly Step[], waits: HostWaits): Promise<void> {
    const said = {
      who: held.fn.name,
      doing,
      hangs: 'its driver does not answer',
      hint: 'dmesg says what the driver waits for',
    };
    for (const { path, text, at } of steps) {
      let refused: NodeJS.ErrnoException | undefined;
      try {
        refused = await writeToHost(path, text, said, this.#log, waits);
      } catch (error) {
        // The kernel goes on with it.
        held.at = at;
        held.isHung = true;
        throw error;
      }
      if (refused !== undefined) throw refused;
      held.at = at;
    }
  }
}

/** From the driver that has it to another. */
function move({ fn, at }: Held, override: string, to: string | undefined): Step[] {
  const drivers = join(busOf(fn), 'drivers');
  const name = basename(fn.path);
  const steps: Step[] = [{ path: join(fn.path, 'driver_override'), text: override, at }];
  if (at === to) return steps;
  if (at !== undefined) steps.push({ path: join(drivers, at, 'unbind'), text: name, at: undefined });
  if (to !== undefined) steps.push({ path: join(drivers, to, 'bind'), text: name, at: to });
  return steps;
}

function stepsBack(held: Held): Step[] {
  // An empty line takes an override away.
  return move(held, held.override === '' ? '\n' : held.override, held.driver);
}

function writeNow({ path, text }: Step): void {
  const fd = openSync(path, constants.O_WRONLY);
  try {
    writeSync(fd, text);
  } finally {
    closeSync(fd);
  }
}

/** The directory of the bus: `…/bus/pci`. */
function busOf(fn: ManagedFunction): string {
  return dirname(dirname(fn.path));
}

function readOverride(fn: ManagedFunction): string {
  try {
    const text = readFileSync(join(fn.path, 'driver_override'), 'latin1').trim();
    return text === '(null)' ? '' : text;
  } catch {
    return '';
  }
}
