/**
 * What a function of the host is and whether it can be given away: reads only, so that it can be asked before a VM
 * exists, for a dry run, and for a list of all functions.
 */
import { type BarSpec, CapId, Cfg } from '../../../chips/pci-config-space.ts';
import { ConfigError, ExitCode } from '../../../core/errors.ts';
import type { HostTree } from '../driver.ts';
import { parseHostAddress, shortHostAddress } from './address.ts';
import { guestBars, type HostBar, readHostBars } from './bars.ts';
import { ConfigCopy } from './capabilities.ts';
import { isIntelGraphics } from './gvt-d.ts';
import { type HostFunction, hostFunction, hostFunctions } from './host-function.ts';
import type { PassthruOptions } from './options.ts';

export interface Inspection {
  readonly fn: HostFunction;
  /** Its registers as they were found. */
  readonly config: ConfigCopy;
  readonly hostBars: readonly HostBar[];
  readonly guestBars: readonly BarSpec[];
  readonly hasMsi: boolean;
  readonly hasMsix: boolean;
  /** The guest gets an INTx pin. */
  readonly usesIntx: boolean;
  /** Line of the physical pin, for the hypervisor. */
  readonly physicalPin: number;
  readonly isGraphics: boolean;
}

/**
 * The function the options name.
 * @throws ConfigError that says why it cannot be passed through.
 */
export function inspect(options: PassthruOptions, host: Pick<HostTree, 'root'>): Inspection {
  const address = parseHostAddress(options.physical);
  if (address.domain !== 0) {
    throw unavailable(
      `${shortHostAddress(address)} is in PCI domain ${address.domain.toString(16)}, and the hypervisor knows domain 0 only`,
    );
  }
  const fn = hostFunction(host.root, address);
  if (fn === undefined) {
    const others = hostFunctions(host.root);
    if (others.length === 0) throw unavailable('this host shows no PCI functions: there is no /sys/bus/pci/devices');
    throw unavailable(`there is no PCI function ${shortHostAddress(address)} on this host`, listHint);
  }
  return inspectFunction(fn, options);
}

const listHint = 'acrn-dm --list-passthru lists them';
/** Class and subclass. */
const CLASS_HOST_BRIDGE = 0x0600;

/** @throws ConfigError that says why it cannot be passed through. */
export function inspectFunction(
  fn: HostFunction,
  options: Pick<PassthruOptions, 'keepGsi' | 'vmsixOnMsiBar' | 'irq'>,
): Inspection {
  const config = new ConfigCopy(fn.readConfigSpace());
  if (config.bytes.length < Cfg.InterruptPin + 1 || (config.get32(0) === 0xffff_ffff && !fn.isVirtualFunction)) {
    throw unavailable(`${fn.name} does not answer`);
  }
  if (fn.isBridge) throw unavailable(`${fn.name} is a bridge, which is not passed through`, listHint);
  if (fn.classCode >>> 8 === CLASS_HOST_BRIDGE) throw unavailable(`${fn.name} is the host bridge`, listHint);
  const bars = readHostBars(fn, config);
  const hasMsi = config.findCapability(CapId.Msi) !== undefined;
  const hasMsix = config.findCapability(CapId.Msix) !== undefined;
  return {
    fn,
    config,
    hostBars: bars,
    guestBars: guestBars(fn, bars, options.vmsixOnMsiBar),
    hasMsi,
    hasMsix,
    usesIntx: options.keepGsi || !(hasMsi || hasMsix || options.vmsixOnMsiBar !== undefined),
    physicalPin: options.irq ?? config.get8(Cfg.InterruptLine),
    isGraphics: isIntelGraphics(fn),
  };
}

export function unavailable(text: string, hint?: string): ConfigError {
  return new ConfigError(text, { exitCode: ExitCode.Unavailable, ...(hint === undefined ? {} : { hint }) });
}
