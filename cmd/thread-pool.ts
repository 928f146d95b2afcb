/**
 * How many threads Node has for calls that may block for long. Each disk has at most one call there, and so have the
 * management engine and each USB device of the host. Those that hang must not keep the flush of a disk from being made, nor
 * ATTACH from waiting, where that is such a call, too. What is plugged into a hub of the host is not counted: it is not known
 * before it is there, and has what is spare.
 */
import type { VmConfig } from '../devicemodel/core/config.ts';
import { type PciDriverEntry, pciDrivers } from '../devicemodel/hw/registry.ts';

/** What Node has unless it is told otherwise: all of them are made, a quarter of a millisecond each, with the first call. */
const NODE_THREADS = 4;
/** Where something that may hang is, or may come. */
const MIN_THREADS = 16;

/**
 * Calls that may hang at one time. Files of the host that devices are made of have one each; a device without one may be
 * given it by a command while the VM runs.
 */
export function hangingCallsOf(
  { pci }: Pick<VmConfig, 'pci'>,
  drivers: readonly PciDriverEntry[] = pciDrivers,
): number {
  let calls = 0;
  for (const { driver, options } of pci) {
    const info = drivers.find(({ name }) => name === driver);
    const paths = info?.hostPaths?.(options);
    if (paths !== undefined) calls += Math.max(1, paths.length);
    calls += info?.hangingCalls?.(options) ?? 0;
  }
  return calls;
}

/** Before the first such call. @param calls that may hang at one time, where it is known. */
export function sizeThreadPool(calls?: number): void {
  if (calls === 0) return;
  process.env['UV_THREADPOOL_SIZE'] ??= String(Math.max(MIN_THREADS, NODE_THREADS + (calls ?? 0)));
}
