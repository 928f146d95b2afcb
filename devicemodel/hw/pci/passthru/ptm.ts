/**
 * Precision Time Measurement (PCI Express 4.0 §6.22, §7.9.16): a requester takes its time from the root above it. The
 * guest gets a virtual root port above the function, which ACRN's hypervisor emulates after the physical one.
 */
import { CapId } from '../../../chips/pci-config-space.ts';
import type { Bdf } from '../../../core/address.ts';
import { ConfigCopy, Express, ExpressType, ExtendedCapId } from './capabilities.ts';
import type { HostFunction } from './host-function.ts';

/** PTM extended capability. */
const Ptm = { Capabilities: 0x04, Control: 0x08 } as const;
const PtmCapability = { Requester: 1 << 0, Root: 1 << 2 } as const;
const PtmControl = { Enable: 1 << 0, RootSelect: 1 << 1 } as const;
const MAX_PAYLOAD = 7;
const MULTIFUNCTION = 0x80;
const SECONDARY_BUS = 0x19;
const HEADER_TYPE = 0x0e;

/** What CREATE_VDEV needs to know of the physical port. */
export interface PtmRoot {
  readonly port: Bdf;
  readonly maxPayload: number;
  readonly ptmCapOffset: number;
}

export type PtmFinding =
  | { readonly kind: 'root-port'; readonly root: PtmRoot }
  /** Integrated into the root complex: PTM works where the function is. */
  | { readonly kind: 'integrated' }
  | { readonly kind: 'refused'; readonly why: string };

/**
 * Whether the function can have PTM, and what stands in its way if not. The order of the questions is the C device
 * model's.
 * @param others functions of the host, to find the bridge above
 */
export function findPtmRoot(fn: HostFunction, others: readonly HostFunction[]): PtmFinding {
  const refused = (why: string): PtmFinding => ({ kind: 'refused', why });
  const config = new ConfigCopy(fn.readConfigSpace());
  const express = config.findCapability(CapId.PciExpress);
  if (express === undefined) return refused(`${fn.name} has no PCI Express capability`);
  const ptm = config.findExtendedCapability(ExtendedCapId.Ptm);
  if (ptm === undefined) return refused(`${fn.name} has no PTM capability`);
  const type = portType(config, express);
  if (type === ExpressType.IntegratedEndpoint) return { kind: 'integrated' };
  if (type !== ExpressType.Endpoint) return refused(`${fn.name} is no endpoint (device/port type ${type})`);
  if ((config.get32(ptm + Ptm.Capabilities) & PtmCapability.Requester) === 0)
    return refused(`${fn.name} is no PTM requester`);

  const bridge = others.find(
    (other) =>
      other.address.domain === fn.address.domain &&
      other.isBridge &&
      fn.address.bus !== 0 &&
      other.readConfig(SECONDARY_BUS, 1) === fn.address.bus,
  );
  if (bridge === undefined) return refused(`there is no bridge above ${fn.name}`);
  const above = new ConfigCopy(bridge.readConfigSpace());
  const bridgeExpress = above.findCapability(CapId.PciExpress);
  if (bridgeExpress === undefined || portType(above, bridgeExpress) !== ExpressType.RootPort)
    return refused(`${bridge.name} above ${fn.name} is no root port`);
  const root = above.findExtendedCapability(ExtendedCapId.Ptm);
  if (root === undefined) return refused(`root port ${bridge.name} has no PTM capability`);
  if ((above.get32(root + Ptm.Capabilities) & PtmCapability.Root) === 0)
    return refused(`root port ${bridge.name} cannot be a PTM root`);
  if ((config.get8(HEADER_TYPE) & MULTIFUNCTION) !== 0)
    return refused(`${fn.name} is a function of a device with several`);
  const control = above.get32(root + Ptm.Control);
  if ((control & PtmControl.Enable) === 0) return refused(`PTM is not enabled on root port ${bridge.name}`);
  if ((control & PtmControl.RootSelect) === 0) return refused(`root port ${bridge.name} is not selected as PTM root`);
  return {
    kind: 'root-port',
    root: {
      port: bridge.address,
      maxPayload: above.get32(bridgeExpress + Express.DeviceCapabilities) & MAX_PAYLOAD,
      ptmCapOffset: root,
    },
  };
}

function portType(config: ConfigCopy, express: number): number {
  return (config.get16(express + Express.Flags) >>> 4) & 0xf;
}
