/** What can be found wrong with an order as a whole before a VM is asked for. */
import { statSync } from 'node:fs';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError, DmError, ExitCode } from '../devicemodel/core/errors.ts';
import type { HypervisorOffers } from '../devicemodel/core/hsm/hsm.ts';
import type { HostFindings, HostTree } from '../devicemodel/hw/pci/driver.ts';
import { type PciDriverEntry, pciDrivers, platformDriver } from '../devicemodel/hw/registry.ts';
import { formatSlotText, located, type SlotText } from './slot.ts';

/**
 * Reasons why this VM cannot be run, however the host looks. Empty: it can.
 * @param later slots of drivers that do not exist yet.
 */
export function problemsOf(config: VmConfig, later: readonly SlotText[]): DmError[] {
  const problems: DmError[] = [];
  const missing = [
    ...later.map((slot) => `-s ${formatSlotText(slot)}`),
    ...config.platform.flatMap(({ driver }) => (platformDriver(driver).create === undefined ? [`--${driver}`] : [])),
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
    try {
      driver?.inspectHost?.(slot.options);
    } catch (error) {
      throw located(`-s ${formatSlotText({ ...slot, text: slot.text })}`, error);
    }
  }
  for (const { driver, options, text } of config.platform) {
    try {
      platformDriver(driver).inspectHost?.(options);
    } catch (error) {
      throw located(`--${driver} ${text}`, error);
    }
  }
}

/**
 * Refuse a VM whose devices the hypervisor does not offer, before it is asked for a VM.
 * @throws ConfigError
 */
export function checkHypervisor(config: Pick<VmConfig, 'pci'>, offers: HypervisorOffers): void {
  for (const slot of config.pci) {
    try {
      pciDrivers.find((d) => d.name === slot.driver)?.checkHypervisor?.(offers);
    } catch (error) {
      throw located(`-s ${formatSlotText(slot)}`, error);
    }
  }
}

/** What the drivers find on the host for this VM, beyond paths. Reads only. */
export async function checkHost(
  config: VmConfig,
  hostTree: HostTree,
  drivers: readonly PciDriverEntry[] = pciDrivers,
): Promise<HostFindings> {
  const problems: ConfigError[] = [];
  const warnings: string[] = [];
  for (const driver of drivers) {
    const slots = config.pci.filter((slot) => slot.driver === driver.name);
    if (slots.length === 0 || driver.checkHost === undefined) continue;
    const findings = await driver.checkHost(slots, { isRtvm: config.rtvm, hostTree });
    problems.push(...findings.problems);
    warnings.push(...findings.warnings);
  }
  return { problems, warnings };
}
