/**
 * Virtual PCIe root port, emulated by the hypervisor: it exists so that an endpoint that is passed through finds a
 * PTM root above it. Not a driver of its own; passthrough plugs one in at the endpoint's slot and moves the endpoint
 * to the secondary bus.
 */
import { type Bdf, formatBdf } from '../../core/address.ts';
import { BugError } from '../../core/errors.ts';
import type { HvVdev } from '../../core/hsm/vdev.ts';
import type { HypervisorPciFunction, PciIdentity, PciPlacement } from './function.ts';

/** Bridge, PCI to PCI. */
const CLASS_PCI_BRIDGE = 0x060400;
const BRIDGE_HEADER = 1;

export interface RootPortOptions {
  /** The port above the physical endpoint. */
  readonly physicalBdf: Bdf;
  /** Device Capabilities: Max_Payload_Size Supported, 0..5 (PCI Express 4.0 §7.5.3.3), of the physical port. */
  readonly maxPayload: number;
  /** Where the endpoint goes. ACRN scenarios know one port per VM, and its secondary bus is 1. */
  readonly secondaryBus: number;
  /** Offset of the PTM extended capability of the physical port, undefined if it has none. */
  readonly ptmCapOffset: number | undefined;
}

export class RootPort implements HypervisorPciFunction {
  readonly backing = 'hypervisor';
  readonly identity: PciIdentity = {
    vendorId: 0x8086,
    deviceId: 0x9d14,
    classCode: CLASS_PCI_BRIDGE,
    headerType: BRIDGE_HEADER,
  };
  readonly bars = [];
  readonly #options: RootPortOptions;

  constructor(options: RootPortOptions) {
    this.#options = options;
  }

  /** The function below it: always device 0, function 0 of the secondary bus. */
  get endpointBdf(): Bdf {
    return { bus: this.#options.secondaryBus, device: 0, function: 0 };
  }

  describe(at: PciPlacement): HvVdev {
    const { physicalBdf, maxPayload, secondaryBus, ptmCapOffset } = this.#options;
    if (secondaryBus <= at.bdf.bus)
      throw new BugError(`root port ${formatBdf(at.bdf)}: bus ${secondaryBus} is above it`);
    return {
      type: 'root-port',
      bdf: at.bdf,
      physicalBdf,
      maxPayload,
      primaryBus: at.bdf.bus,
      secondaryBus,
      subordinateBus: secondaryBus,
      ptmCapOffset,
    };
  }
}
