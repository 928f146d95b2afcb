/**
 * Host bridge: an inert function with the PCI Express capability of a root port, as the C device model has it; or, for
 * firmware made for QEMU, Intel's 440FX (datasheet 290549), which brings the power management function of its south
 * bridge.
 */
import * as v from 'valibot';
import type { ConfigSpace } from '../../chips/pci-config-space.ts';
import { allOnes } from '../../core/address.ts';
import { definePciDriver } from './driver.ts';
import type { EmulatedPciFunction, PciIdentity } from './function.ts';
import { PIIX4_PM_SLOT } from './piix4-pm.ts';

const NETAPP = { vendorId: 0x1275, deviceId: 0x1275 };
const AMD = { vendorId: 0x1022, deviceId: 0x7432 };
/** Bridge, host. */
const CLASS_HOST_BRIDGE = 0x060000;
/** PCI Express 4.0 §7.5.3.2: device/port type of a root port. */
const ROOT_PORT = 4;
/** A 440FX: conventional PCI. */
const I440FX = { vendorId: 0x8086, deviceId: 0x1237 };
/** PAM0 to PAM6 (440FX §3.2.18): who answers below 1 MiB. Here it is RAM, at all times. */
const PAM = { first: 0x59, powerOn: [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33] } as const;
/** 2.5 GT/s, x1 (§7.5.3.6, §7.5.3.8); ASPM L0s in the capabilities. */
const LINK = { capabilities: 0x411, status: 0x11 };

class HostBridge implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity: PciIdentity;
  readonly bars = [];
  readonly needsWideIoBars: boolean;

  constructor(id: { readonly vendorId: number; readonly deviceId: number }) {
    this.identity = { ...id, classCode: CLASS_HOST_BRIDGE };
    this.needsWideIoBars = id === I440FX;
  }

  configure(config: ConfigSpace): void {
    if (!this.needsWideIoBars) {
      config.addExpressCapability(ROOT_PORT, LINK);
      return;
    }
    for (const [i, value] of PAM.powerOn.entries()) config.set8(PAM.first + i, value);
    // Kept, for firmware that looks whether it was heard.
    config.setWritable(
      PAM.first,
      PAM.powerOn.map(() => 0x33),
    );
  }
  readBar(_index: number, _offset: number, size: 1 | 2 | 4): number {
    return allOnes(size);
  }
  writeBar(): void {}
  reset(): void {}
}

export const hostBridge = definePciDriver({
  name: 'hostbridge',
  summary: 'host bridge; every machine has one, usually at 0:0',
  ignoresOddText: true,
  options: v.strictObject({
    model: v.optional(
      v.pipe(
        v.picklist(['i440fx']),
        v.metadata({
          arg: 'model=i440fx',
          named: true,
          help: 'ids that SeaBIOS and OVMF of QEMU know; brings a piix4_pm at 1:3',
        }),
      ),
    ),
  }),
  companions: ({ model }) => (model === undefined ? [] : [PIIX4_PM_SLOT]),
  create: ({ model }) => new HostBridge(model === undefined ? NETAPP : I440FX),
});

export const amdHostBridge = definePciDriver({
  name: 'amd_hostbridge',
  summary: 'host bridge with the ids of an AMD one',
  options: v.strictObject({}),
  create: () => new HostBridge(AMD),
});
