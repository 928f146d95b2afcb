/**
 * igd-lpc: a stand-in for the LPC bridge of the host at 0:1f.0. Drivers of Intel graphics tell the platform by its ids;
 * there is nothing behind them.
 */
import { allOnes } from '../../../core/address.ts';
import { definePciDriver } from '../driver.ts';
import type { EmulatedPciFunction, PciIdentity } from '../function.ts';
import { igdLpcSource } from './gvt-d.ts';
import { unavailable } from './inspect.ts';
import { igdLpcInfo } from './options.ts';

const CLASS_ISA_BRIDGE = 0x060100;

class IgdLpc implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly bars = [];
  readonly identity: PciIdentity;

  constructor(identity: PciIdentity) {
    this.identity = identity;
  }

  readBar(_index: number, _offset: number, size: 1 | 2 | 4): number {
    return allOnes(size);
  }
  writeBar(): void {}
  reset(): void {}
}

/** Where drivers of the graphics look for it. */
export const IGD_LPC_SLOT = {
  bdf: { bus: 0, device: 31, function: 0 },
  driver: 'igd-lpc',
  options: {},
  text: '',
} as const;

export const igdLpc = definePciDriver({
  ...igdLpcInfo,
  create: (_options, env) => {
    const { root, isPlan } = env.hostTree ?? { root: '', isPlan: false };
    const source = igdLpcSource(root);
    if (source === undefined && !isPlan) throw unavailable('this host has no LPC bridge at 00:1f.0');
    return new IgdLpc({
      vendorId: source?.vendorId ?? 0,
      deviceId: source?.deviceId ?? 0,
      revisionId: source?.revisionId ?? 0,
      classCode: CLASS_ISA_BRIDGE,
      subsystemVendorId: source?.subsystemVendorId ?? 0,
      subsystemId: source?.subsystemId ?? 0,
    });
  },
});
