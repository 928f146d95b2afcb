/**
 * How many threads Node has for calls that may block for long. Each disk has at most one call there, and disks that hang
 * must not keep the flush of another from being made, nor ATTACH from waiting, where that is such a call, too.
 */
import type { VmConfig } from '../devicemodel/core/config.ts';
import { type PciDriverEntry, pciDrivers } from '../devicemodel/hw/registry.ts';

/** What Node has unless it is told otherwise: all of them are made, a quarter of a millisecond each, with the first call. */
const NODE_THREADS = 4;
/** Where disks are, or may come. */
const MIN_THREADS = 16;

/** Files of the host that devices are made of; a device without one may be given it by a command while the VM runs. */
export function disksOf({ pci }: Pick<VmConfig, 'pci'>, drivers: readonly PciDriverEntry[] = pciDrivers): number {
  let disks = 0;
  for (const { driver, options } of pci) {
    const paths = drivers.find(({ name }) => name === driver)?.hostPaths?.(options);
    if (paths !== undefined) disks += Math.max(1, paths.length);
  }
  return disks;
}

/** Before the first such call. @param disks of the VM, where it is known. */
export function sizeThreadPool(disks?: number): void {
  if (disks === 0) return;
  process.env['UV_THREADPOOL_SIZE'] ??= String(Math.max(MIN_THREADS, NODE_THREADS + (disks ?? 0)));
}
