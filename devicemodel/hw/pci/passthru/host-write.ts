/**
 * Writes to files of sysfs that may take long, or for ever: a device can hang in its reset, a driver in letting go of its
 * device, and keep the thread that writes. It is never this one, and the wait for it ends.
 */
import { close, constants, open, write } from 'node:fs';
import { ExitCode, HostError, StoppedError } from '../../../core/errors.ts';
import { leaveThreadBehind, onProcessEnd } from '../../../core/host/exit-hooks.ts';
import type { Log } from '../../../core/log.ts';

/** When a write that takes long is said, and when it is given up. */
const SLOW_MS = 10_000;
const GIVE_UP_MS = 60_000;

export interface HostWaits {
  readonly slowMs?: number;
  readonly giveUpMs?: number;
  /** Aborted when nobody wants to wait any longer. */
  readonly stop?: AbortSignal | undefined;
  /** What the write still has once nobody wants to wait: enough for a device that is well. Default: nothing. */
  readonly graceMs?: number;
}

/** What people are told of a write. */
export interface HostWriteText {
  /** `02:00.0`. */
  readonly who: string;
  /** `being reset`. */
  readonly doing: string;
  /** `02:00.0 does not come out of its reset`. */
  readonly hangs: string;
  readonly hint: string;
}

/**
 * On a thread of the pool. The file is never created.
 * @returns what the system said, if it refused.
 * @throws HostError if the write does not come back in time, StoppedError if the wait was stopped.
 */
export async function writeToHost(
  path: string,
  text: string,
  said: HostWriteText,
  log: Log,
  waits: HostWaits = {},
): Promise<NodeJS.ErrnoException | undefined> {
  const { stop, slowMs = SLOW_MS, giveUpMs = GIVE_UP_MS, graceMs = 0 } = waits;
  const timers: NodeJS.Timeout[] = [];
  const after = (ms: number, run: () => void) => void timers.push(setTimeout(run, ms));
  let onStop = () => {};
  const givenUp = new Promise<never>((_, reject) => {
    const [slowS, giveUpS] = [Math.round(slowMs / 1000), Math.round(giveUpMs / 1000)];
    after(slowMs, () => log.warn(`${said.who} is ${said.doing} for ${slowS} s; it is given up after ${giveUpS} s`));
    after(giveUpMs, () => reject(new HostError(said.hangs, 0, { exitCode: ExitCode.IoError, hint: said.hint })));
    const stopped = () => reject(new StoppedError(`the VM was ended while ${said.who} was ${said.doing}`));
    onStop = () => (graceMs === 0 ? stopped() : after(graceMs, stopped));
  });
  if (stop?.aborted === true) onStop();
  else stop?.addEventListener('abort', onStop, { once: true });
  let isStuck = true;
  try {
    const error = await Promise.race([openAndWrite(path, text), givenUp]);
    isStuck = false;
    return error;
  } finally {
    for (const timer of timers) clearTimeout(timer);
    stop?.removeEventListener('abort', onStop);
    if (isStuck) {
      // The thread cannot be had back, and a process that exits would wait for it.
      onProcessEnd(() => {});
      leaveThreadBehind();
    }
  }
}

function openAndWrite(path: string, text: string): Promise<NodeJS.ErrnoException | undefined> {
  return new Promise((resolve) => {
    // Many of these files can only be written.
    open(path, constants.O_WRONLY, (openError, fd) => {
      if (openError) {
        resolve(openError);
        return;
      }
      write(fd, text, (error) => close(fd, () => resolve(error ?? undefined)));
    });
  });
}
