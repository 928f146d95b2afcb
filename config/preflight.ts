/** What can be found wrong with an order as a whole before a VM is asked for. */
import { statSync } from 'node:fs';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError, DmError, ExitCode } from '../devicemodel/core/errors.ts';
import { type PciDriverEntry, pciDrivers } from '../devicemodel/hw/registry.ts';
import { formatSlotText, type SlotText } from './slot.ts';

/** Options that are understood but have nothing behind them yet; a line goes when its part is there. */
const laterOptions: readonly { readonly name: string; isUsed(config: VmConfig): boolean }[] = [
  { name: '--acpidev_pt', isUsed: (config) => config.acpidevPt !== undefined },
  { name: '--mmiodev_pt', isUsed: (config) => config.mmiodevPt.length > 0 },
  { name: '--vtpm2', isUsed: (config) => config.vtpm2SocketPath !== undefined },
  // Without regions, as launch scripts have it, the guest loses nothing it could name.
  { name: '--ssram', isUsed: (config) => (config.ssram?.length ?? 0) > 0 },
];

/**
 * Reasons why this VM cannot be run, however the host looks. Empty: it can.
 * @param later slots of drivers that do not exist yet.
 */
export function problemsOf(config: VmConfig, later: readonly SlotText[]): DmError[] {
  const problems: DmError[] = [];
  const missing = [
    ...later.map((slot) => `-s ${formatSlotText(slot)}`),
    ...laterOptions.flatMap(({ name, isUsed }) => (isUsed(config) ? [name] : [])),
  ];
  if (missing.length > 0) {
    problems.push(
      new DmError(`${missing.join(', ')}: not supported yet, this comes in a later version`, {
        exitCode: ExitCode.Unavailable,
        hint: 'leave it out if the guest can do without; -s help lists the devices there are',
      }),
    );
  }
  if (config.boot === undefined) {
    problems.push(
      new ConfigError(`VM "${config.name}" has no boot image`, {
        hint: 'give --kernel FILE, --ovmf FILE or --elf_file FILE; acrn-dm --help lists all options',
      }),
    );
  }
  return problems;
}

/**
 * Refuse a VM whose devices name files or devices that this host does not have.
 * Compat: C finds out while the VM exists already.
 * @throws ConfigError
 */
export function checkHostPaths(config: VmConfig, drivers: readonly PciDriverEntry[] = pciDrivers): void {
  for (const slot of config.pci) {
    const driver = drivers.find((d) => d.name === slot.driver);
    for (const path of driver?.hostPaths?.(slot.options) ?? []) {
      if (statSync(path, { throwIfNoEntry: false }) === undefined) {
        throw new ConfigError(`-s ${formatSlotText({ ...slot, text: slot.text })}: ${path}: no such file or device`);
      }
    }
  }
}
