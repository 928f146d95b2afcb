/**
 * Virtual PCIe root port, emulated by the hypervisor, with one bus below it. It is there for precision time measurement
 * (PTM): an endpoint that is passed through finds a PTM root above it. Passthrough puts one at the slot of its function
 * and moves the function to the port's bus. Where the hypervisor's ports need none of the host, a port can also be a
 * slot of its own, with emulated devices below it.
 */
import * as v from 'valibot';
import type { Bdf } from '../../core/address.ts';
import { ConfigError } from '../../core/errors.ts';
import type { Hsm } from '../../core/hsm/hsm.ts';
import type { RootPortVdev } from '../../core/hsm/vdev.ts';
import type { SecondaryBus } from './buses.ts';
import { definePciDriver } from './driver.ts';
import type { HypervisorPciFunction, PciIdentity, PciPlacement } from './function.ts';

/** Bridge, PCI to PCI. */
const CLASS_PCI_BRIDGE = 0x060400;
const BRIDGE_HEADER = 1;

export interface RootPortOptions {
  /** The port above the physical endpoint. */
  readonly physicalBdf: Bdf;
  /** Device Capabilities: Max_Payload_Size Supported, 0..5 (PCI Express 4.0 §7.5.3.3), of the physical port. */
  readonly maxPayload: number;
  /**
   * Where the endpoint goes, from `PciEnv.secondaryBus`. ACRN's generated scenarios know one port per VM, on bus 1: so
   * release the number when the port cannot be made.
   */
  readonly bus: SecondaryBus;
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
  readonly bus: SecondaryBus;
  readonly #options: RootPortOptions;
  #created: RootPortVdev | undefined;

  constructor(options: RootPortOptions) {
    this.#options = options;
    this.bus = options.bus;
  }

  /** The function below it: device 0, function 0 of its bus. */
  get endpointBdf(): Bdf {
    return { bus: this.bus.number, device: 0, function: 0 };
  }

  describe(at: Pick<PciPlacement, 'bdf'>): RootPortVdev {
    const { physicalBdf, maxPayload, bus, ptmCapOffset } = this.#options;
    return {
      type: 'root-port',
      bdf: at.bdf,
      physicalBdf,
      maxPayload,
      primaryBus: at.bdf.bus,
      secondaryBus: bus.number,
      subordinateBus: bus.number,
      ptmCapOffset,
    };
  }

  // For a port that is no slot of its own; the PCI host does this for those that are.

  /** CREATE_VDEV at the slot of the owner, before the endpoint is assigned. @throws HsmError */
  create(hsm: Pick<Hsm, 'createVdev'>, at: Pick<PciPlacement, 'bdf'>): void {
    const vdev = this.describe(at);
    hsm.createVdev(vdev);
    this.#created = vdev;
  }

  /**
   * DESTROY_VDEV, after the endpoint was taken away. The bus keeps its number. Safe twice, and without `create`.
   * @throws HsmError
   */
  destroy(hsm: Pick<Hsm, 'destroyVdev'>): void {
    const vdev = this.#created;
    this.#created = undefined;
    if (vdev !== undefined) hsm.destroyVdev(vdev);
  }
}

/** Where the hypervisor puts the PTM capability of a port: the start of extended configuration space. */
const PTM_OFFSET = 0x100;
/** 128 bytes, what every function takes. */
const SMALLEST_PAYLOAD = 0;

export const rootPort = definePciDriver({
  name: 'root-port',
  summary: 'PCI Express root port of the embedded hypervisor, with a bus below it',
  isBridge: true,
  options: v.strictObject({
    ptm: v.optional(
      v.pipe(v.boolean(), v.metadata({ arg: 'ptm', help: 'root of precision time measurement', named: true })),
      false,
    ),
  }),
  checkHypervisor(offers) {
    if (offers.ownRootPorts !== true) {
      throw new ConfigError('a root port of ACRN stands for a physical one and comes with the endpoint below it', {
        hint: 'use -s SLOT,passthru,B/D/F,enable_ptm, or --hypervisor soft',
      });
    }
  },
  create({ ptm }, env) {
    return new RootPort({
      physicalBdf: env.bdf,
      maxPayload: SMALLEST_PAYLOAD,
      bus: env.secondaryBus(),
      ptmCapOffset: ptm ? PTM_OFFSET : undefined,
    });
  },
});
