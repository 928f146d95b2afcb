/** What a virtio function says it is in its configuration header (Virtio 1.2 §4.1.2). */
import type { PciIdentity } from '../../function.ts';
import type { TransportMode } from './options.ts';

const VIRTIO_VENDOR = 0x1af4;
/** Subsystem vendor for Windows guests: their drivers look for it. */
const ORACLE_VENDOR = 0x108e;
/** §4.1.2.1: device id of a modern function. */
const MODERN_DEVICE_BASE = 0x1040;

export interface VirtioPciIdentity {
  /** Device id of the legacy and transitional forms. */
  readonly legacyDeviceId: number;
  /** Of function and subsystem, where it is not that of virtio devices. */
  readonly vendorId?: number;
  /** Virtio device type. */
  readonly type: number;
  readonly classCode: number;
  /** Where the C device model differs from "type" for legacy, or from 0x40 and up for modern. */
  readonly subsystemId?: number;
  /** Device id of the modern form, where it is not 0x1040 + type. */
  readonly modernDeviceId?: number;
  /** Of the modern form, where it is not 1. */
  readonly modernRevisionId?: number;
  /** `--windows` changes the subsystem vendor. */
  readonly hasWindowsId?: boolean;
}

export function pciIdentity(identity: VirtioPciIdentity, mode: TransportMode, windows: boolean): PciIdentity {
  const { vendorId = VIRTIO_VENDOR } = identity;
  const subsystemVendorId = windows && identity.hasWindowsId === true ? ORACLE_VENDOR : vendorId;
  const common = { vendorId, classCode: identity.classCode, subsystemVendorId };
  if (mode === 'modern') {
    return {
      ...common,
      deviceId: identity.modernDeviceId ?? MODERN_DEVICE_BASE + identity.type,
      // §4.1.2.1: revision 1 or higher, subsystem id 0x40 or higher tell a modern function from a transitional one.
      revisionId: identity.modernRevisionId ?? 1,
      subsystemId: identity.subsystemId ?? 0x40,
    };
  }
  return {
    ...common,
    deviceId: identity.legacyDeviceId,
    revisionId: 0,
    subsystemId: identity.subsystemId ?? identity.type,
  };
}
