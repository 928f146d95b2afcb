/**
 * What can be found wrong with functions that are to be passed through, before anything is touched: what cannot work is
 * refused, what is likely to cause trouble is said once, with the command that mends it. C looks at none of it.
 */
import type { PciSlotConfig } from '../../../core/config.ts';
import { ConfigError } from '../../../core/errors.ts';
import { bindCommand, type StubDriver } from '../../../core/host/sysfs-pci.ts';
import { silentLog } from '../../../core/log.ts';
import type { CheckContext, HostFindings, HostTree } from '../driver.ts';
import { GraphicsMemory, igdLpcSource } from './gvt-d.ts';
import { type HostFunction, hostFunctions } from './host-function.ts';
import { type Inspection, inspect, unavailable } from './inspect.ts';
import { STUB_DRIVERS } from './managed.ts';
import type { PassthruOptions } from './options.ts';

/** Of its registers anybody may read so many, and CAP_SYS_ADMIN the capabilities behind them, too. */
const UNPRIVILEGED_CONFIG_BYTES = 64;
/** "Unknown or no connection" (PCI 3.0 §6.2.4). */
const NO_LINE = 0xff;

/** All functions that are passed to one VM. */
export function checkPassthrough(slots: readonly PciSlotConfig[], context: CheckContext): HostFindings {
  const problems: ConfigError[] = [];
  const warnings: string[] = [];
  const { root } = context.hostTree;
  const passed = new Map<string, string>();
  const others = hostFunctions(root);
  let ports = 0;
  // What KVM does without is a problem that it names itself, with the command.
  const stub = context.hypervisor === 'kvm' ? 'named' : context.hypervisor === 'acrn' ? 'pci-stub' : undefined;
  for (const slot of slots) {
    const options = slot.options as PassthruOptions;
    const where = `-s ${slot.bdf.device}${slot.bdf.function === 0 ? '' : `:${slot.bdf.function}`},passthru,${slot.text}`;
    try {
      const twin = passed.get(options.physical);
      if (twin !== undefined) throw new ConfigError(`${options.physical} is passed through already, by ${twin}`);
      passed.set(options.physical, where);
      const found = inspect(options, { root });
      refuseGraphics(found, context);
      const names = new Set(slots.map((other) => (other.options as PassthruOptions).physical));
      warnings.push(...warningsFor(found, options, others, names, stub).map((text) => `${where}: ${text}`));
      if (options.enablePtm && ++ports === 2) {
        warnings.push(`${where}: enable_ptm: ACRN scenarios know one virtual root port per VM, this is another`);
      }
    } catch (error) {
      if (!(error instanceof ConfigError)) throw error;
      const { hint, exitCode } = error;
      problems.push(
        new ConfigError(`${where}: ${error.message}`, { exitCode, ...(hint === undefined ? {} : { hint }) }),
      );
    }
  }
  return { problems, warnings };
}

/** For a slot that names it. */
export function checkIgdLpc({ root }: HostTree): HostFindings {
  const problems =
    igdLpcSource(root) === undefined ? [unavailable('igd-lpc: this host has no LPC bridge at 00:1f.0')] : [];
  return { problems, warnings: [] };
}

function refuseGraphics(found: Inspection, { isRtvm, hostTree }: CheckContext): void {
  if (!found.isGraphics) return;
  if (isRtvm) throw unavailable('a real-time VM cannot have the graphics of the processor');
  if (igdLpcSource(hostTree.root) === undefined) {
    throw unavailable('the graphics driver needs the ids of the LPC bridge, and this host has none at 00:1f.0');
  }
  // What it warns of is said when the function is made.
  GraphicsMemory.of(found.fn, found.config, silentLog);
}

/**
 * @param passed physical addresses of all functions of the VM.
 * @param stub the driver that is to have them instead; undefined: that is not known; `named`: somebody else says so.
 */
export function warningsFor(
  found: Inspection,
  options: Pick<PassthruOptions, 'physical' | 'managed' | 'd3hotReset' | 'irq'>,
  others: readonly HostFunction[],
  passed: ReadonlySet<string>,
  stub?: StubDriver | 'named',
): string[] {
  const { fn } = found;
  const warnings: string[] = [];
  const { driver } = fn;
  if (driver !== undefined && !STUB_DRIVERS.includes(driver) && !options.managed && stub !== 'named') {
    const free = bindCommand(options.physical, stub ?? 'pci-stub', true);
    const onKvm = stub === undefined ? ' (on KVM vfio-pci in place of pci-stub)' : '';
    warnings.push(`${fn.name} is in use by ${driver}: add managed, or free it first: ${free}${onKvm}`);
  }
  const companions = fn.iommuGroupMembers.filter((name) => name !== options.physical && !passed.has(name));
  const strangers = companions.filter((name) => others.some((o) => o.path.endsWith(name) && !o.isBridge));
  if (strangers.length > 0) {
    warnings.push(
      `${fn.name} shares IOMMU group ${fn.iommuGroup} with ${strangers.join(', ')}: pass them to this VM too, or put ${fn.name} behind another port`,
    );
  }
  if (found.config.bytes.length <= UNPRIVILEGED_CONFIG_BYTES) {
    warnings.push(
      `sysfs shows no capabilities of ${fn.name}, so that it gets a legacy interrupt line, needed or not: run as root, or with CAP_SYS_ADMIN`,
    );
  }
  if (found.usesIntx) warnings.push(...lineWarnings(found, options, others, passed));
  if (!fn.hasReset && !options.d3hotReset) {
    warnings.push(
      `${fn.name} has no reset: what one user leaves in it the next one finds; try d3hot_reset, or power the machine off in between`,
    );
  }
  return warnings;
}

function lineWarnings(
  { fn, physicalPin }: Inspection,
  options: Pick<PassthruOptions, 'irq'>,
  others: readonly HostFunction[],
  passed: ReadonlySet<string>,
): string[] {
  if (options.irq === undefined && physicalPin === NO_LINE) {
    return [`${fn.name} does not say on which line its interrupt is: name it with irq=N`];
  }
  const { irq } = fn;
  if (irq === 0) return [];
  const sharing = others.filter(
    (other) => other.irq === irq && other.path !== fn.path && !other.isBridge && !passed.has(nameOf(other)),
  );
  if (sharing.length === 0) return [];
  const names = sharing.map((other) => other.name).join(', ');
  return [`${fn.name} shares interrupt line ${irq} with ${names}: pass them to this VM too, or move the card`];
}

function nameOf(fn: HostFunction): string {
  return fn.path.slice(fn.path.lastIndexOf('/') + 1);
}
