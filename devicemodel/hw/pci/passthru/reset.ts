/** Resets of a host function: by the kernel (writing to its `reset` file), or by power state. */
import { CapId, Cfg } from '../../../chips/pci-config-space.ts';
import type { Log } from '../../../core/log.ts';
import { ConfigCopy } from './capabilities.ts';
import type { HostFunction } from './host-function.ts';
import { type HostWaits, writeToHost } from './host-write.ts';

/** Power management control/status, from the capability (PCI PM 1.2 §3.2.4): power state in bits 1:0. */
const PMCSR = 0x04;
const POWER_STATE = 0x0003;
const D3_HOT = 3;
/** How long a function needs from D3hot to D0 and back (PCI PM 1.2 table 5-6). */
const POWER_STATE_DELAY_MS = 10;
/** The header: command, BARs, interrupt line. */
const HEADER_BYTES = 0x40;

/**
 * Have the kernel reset the function.
 * @param isOnceMore whoever takes the function has it reset, too: a user who may not write to the file misses nothing.
 * @returns false if it knows no way to.
 * @throws HostError if the device does not come back in time, StoppedError if the VM is ended meanwhile; a refused write is a warning.
 */
export async function resetFunction(
  fn: HostFunction,
  log: Log,
  waits: HostWaits = {},
  isOnceMore = false,
): Promise<boolean> {
  if (!fn.hasReset) return false;
  const said = {
    who: fn.name,
    doing: 'being reset',
    hangs: `${fn.name} does not come out of its reset`,
    hint: 'power the machine off and on, or pass the function through with no_reset',
  };
  const error = await writeToHost(fn.resetPath, '1', said, log, waits);
  const isSaid = error !== undefined && error.code !== 'ENOENT' && !(isOnceMore && error.code === 'EACCES');
  if (isSaid) log.warn(`${fn.name} is not reset: ${error.message}`);
  return error === undefined;
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
