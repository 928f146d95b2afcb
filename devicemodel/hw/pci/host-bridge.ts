/** Host bridge: an inert function with the PCI Express capability of a root port, as the C device model has it. */
import * as v from 'valibot';
import type { ConfigSpace } from '../../chips/pci-config-space.ts';
import { allOnes } from '../../core/address.ts';
import { definePciDriver } from './driver.ts';
import type { EmulatedPciFunction, PciIdentity } from './function.ts';

const NETAPP = { vendorId: 0x1275, deviceId: 0x1275 };
const AMD = { vendorId: 0x1022, deviceId: 0x7432 };
/** Bridge, host. */
const CLASS_HOST_BRIDGE = 0x060000;
/** PCI Express 4.0 §7.5.3.2: device/port type of a root port. */
const ROOT_PORT = 4;
/** 2.5 GT/s, x1 (§7.5.3.6, §7.5.3.8); ASPM L0s in the capabilities. */
const LINK = { capabilities: 0x411, status: 0x11 };

class HostBridge implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity: PciIdentity;
  readonly bars = [];

  constructor(id: { readonly vendorId: number; readonly deviceId: number }) {
    this.identity = { ...id, classCode: CLASS_HOST_BRIDGE };
  }

  configure(config: ConfigSpace): void {
    config.addExpressCapability(ROOT_PORT, LINK);
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
  options: v.strictObject({}),
  create: () => new HostBridge(NETAPP),
});

export const amdHostBridge = definePciDriver({
  name: 'amd_hostbridge',
  summary: 'host bridge with the ids of an AMD one',
  options: v.strictObject({}),
  create: () => new HostBridge(AMD),
});
