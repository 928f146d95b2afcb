/**
 * Resets of a host function: by the kernel (writing to its `reset` file), or by power state. A device can hang in its
 * reset and then keeps the thread that writes: it is never this one, and the wait for it ends.
 */
import { close, constants, open, write } from 'node:fs';
import { CapId, Cfg } from '../../../chips/pci-config-space.ts';
import { ExitCode, HostError, StoppedError } from '../../../core/errors.ts';
import { leaveThreadBehind, onProcessEnd } from '../../../core/host/exit-hooks.ts';
import type { Log } from '../../../core/log.ts';
import { ConfigCopy } from './capabilities.ts';
import type { HostFunction } from './host-function.ts';

/** When a reset that takes long is said, and when it is given up. */
const SLOW_MS = 10_000;
const GIVE_UP_MS = 60_000;

/** Power management control/status, from the capability (PCI PM 1.2 §3.2.4): power state in bits 1:0. */
const PMCSR = 0x04;
const POWER_STATE = 0x0003;
const D3_HOT = 3;
/** How long a function needs from D3hot to D0 and back (PCI PM 1.2 table 5-6). */
const POWER_STATE_DELAY_MS = 10;
/** The header: command, BARs, interrupt line. */
const HEADER_BYTES = 0x40;

export interface ResetWaits {
  readonly slowMs?: number;
  readonly giveUpMs?: number;
  /** @returns takes the listener away again. */
  onStopRequest?(listener: () => void): () => void;
}

/**
 * Have the kernel reset the function.
 * @returns false if it knows no way to.
 * @throws HostError if the device does not come back in time, StoppedError if the VM is ended meanwhile; a refused write is a warning.
 */
export async function resetFunction(fn: HostFunction, log: Log, waits: ResetWaits = {}): Promise<boolean> {
  if (!fn.hasReset) return false;
  const { slowMs = SLOW_MS, giveUpMs = GIVE_UP_MS } = waits;
  const written = writeOne(fn.resetPath);
  let slow: NodeJS.Timeout | undefined;
  let giveUp: NodeJS.Timeout | undefined;
  let unsubscribe: (() => void) | undefined;
  const givenUp = new Promise<never>((_, reject) => {
    slow = setTimeout(() => {
      const seconds = Math.round(giveUpMs / 1000);
      log.warn(`${fn.name} is being reset for ${Math.round(slowMs / 1000)} s; it is given up after ${seconds} s`);
    }, slowMs);
    giveUp = setTimeout(() => {
      reject(
        new HostError(`${fn.name} does not come out of its reset`, 0, {
          exitCode: ExitCode.IoError,
          hint: 'power the machine off and on, or pass the function through with no_reset',
        }),
      );
    }, giveUpMs);
    unsubscribe = waits.onStopRequest?.(() => {
      reject(new StoppedError(`the VM was ended while ${fn.name} was being reset`));
    });
  });
  let isStuck = true;
  try {
    const error = await Promise.race([written, givenUp]);
    isStuck = false;
    if (error !== undefined && error.code !== 'ENOENT') log.warn(`${fn.name} is not reset: ${error.message}`);
    return error === undefined;
  } finally {
    clearTimeout(slow);
    clearTimeout(giveUp);
    unsubscribe?.();
    if (isStuck) {
      // The thread cannot be had back, and a process that exits would wait for it.
      onProcessEnd(() => {});
      leaveThreadBehind();
    }
  }
}

/** On a thread of the pool. @returns what went wrong. */
function writeOne(path: string): Promise<NodeJS.ErrnoException | undefined> {
  return new Promise((resolve) => {
    // The kernel lets nobody read it, so it is opened for writing alone; and it is never created.
    open(path, constants.O_WRONLY, (openError, fd) => {
      if (openError) {
        resolve(openError);
        return;
      }
      write(fd, '1', (error) => close(fd, () => resolve(error ?? undefined)));
    });
  });
}

/**
 * Reset by power state: D3hot and back to D0.
 * Compat: C neither waits for the device nor restores its header, which a function may lose in D3hot.
 * @returns false if it has no power management.
 */
export async function resetByPowerState(fn: HostFunction): Promise<boolean> {
  const header = new ConfigCopy(fn.readConfigSpace());
  const capability = header.findCapability(CapId.PowerManagement);
  if (capability === undefined) return false;
  const control = capability + PMCSR;
  for (const state of [D3_HOT, 0]) {
    fn.writeConfig(control, 2, (fn.readConfig(control, 2) & ~POWER_STATE) | state);
    await new Promise((resolve) => setTimeout(resolve, POWER_STATE_DELAY_MS));
  }
  for (let offset = Cfg.Bar0; offset < HEADER_BYTES; offset += 4) restore(fn, header, offset);
  restore(fn, header, Cfg.CacheLineSize);
  // Last: nothing is decoded before it is where it was. The status register clears what is written as one.
  fn.writeConfig(Cfg.Command, 2, header.get16(Cfg.Command));
  return true;
}

function restore(fn: HostFunction, header: ConfigCopy, offset: number): void {
  const value = header.get32(offset);
  if (fn.readConfig(offset, 4) !== value) fn.writeConfig(offset, 4, value);
}
