/**
 * The hypervisor's ivshmem function: memory shared between User VMs, and doorbells that interrupt the other side.
 * Specification: QEMU docs/specs/ivshmem-spec.rst, revision 1; behaviour of ACRN's dm/vpci/ivshmem.c.
 */
import { Msix } from '../../../devicemodel/chips/msix.ts';
import { ConfigSpace, MULTIFUNCTION } from '../../../devicemodel/chips/pci-config-space.ts';
import { type AccessSize, formatBdf } from '../../../devicemodel/core/address.ts';
import type { IoRegion } from '../../../devicemodel/core/device.ts';
import type { IvshmemVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { RegionBells } from '../doorbells.ts';
import type { VirtualFunction, VirtualFunctionHost } from '../virtual-function.ts';
import { KernelBells } from './ivshmem-bells.ts';
import { PlacedBars } from './placed-bars.ts';

/** Memory controller, RAM. */
const Id = {
  vendorId: 0x1af4,
  deviceId: 0x1110,
  revisionId: 1,
  classCode: 0x050000,
  subsystemVendorId: 0x8086,
} as const;
const Bar = { Registers: 0, Msix: 1, Memory: 2 } as const;
const REGISTERS_BYTES = 256;
const MSIX_BYTES = 4096;
const PBA_OFFSET = MSIX_BYTES / 2;
export const IVSHMEM_VECTORS = 8;

/** BAR0. */
const Reg = { InterruptMask: 0x0, InterruptStatus: 0x4, IvPosition: 0x8, Doorbell: 0xc } as const;

/** Shared memory of one region, and the way to the other VMs that have it. */
export interface IvshmemRegion {
  readonly regionId: number;
  readonly bytes: Uint8Array;
  readonly hostAddress: bigint | undefined;
  /** Doorbells that the kernel passes on; the others come by `ring` and `onRing`. */
  readonly bells?: RegionBells;
  /** Ring another VM. An unknown one is the guest's mistake. */
  ring(peer: number, vector: number): void;
  /** Doorbells for this VM come here from now on. */
  onRing(handler: (vector: number) => void): void;
  dispose(): void;
}

class Ivshmem implements VirtualFunction {
  readonly bdf: IvshmemVdev['bdf'];
  readonly #config = new ConfigSpace({ sizeBytes: 4096, otherRegisters: 'read-only' });
  readonly #bars = new PlacedBars(this.#config);
  readonly #region: IvshmemRegion;
  #bells: KernelBells | undefined;

  constructor(vdev: IvshmemVdev, region: IvshmemRegion, host: VirtualFunctionHost) {
    this.bdf = vdev.bdf;
    this.#region = region;
    try {
      this.#attach(vdev, host);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  #attach(vdev: IvshmemVdev, host: VirtualFunctionHost): void {
    const region = this.#region;
    const headerType = vdev.bdf.function === 0 ? MULTIFUNCTION : 0;
    this.#config.setIdentity({ ...Id, subsystemId: region.regionId, headerType });
    const msix = new Msix(IVSHMEM_VECTORS, Bar.Msix, host, PBA_OFFSET);
    msix.attach(this.#config);
    const registers = new Registers(host.vmid, region);
    const bars = this.#bars;
    const onRing = (vector: number) => {
      msix.signal(vector);
      if (!msix.isEnabled || vector >= IVSHMEM_VECTORS) {
        host.log.guest(
          () => `ivshmem ${formatBdf(this.bdf)}: doorbell ${vector}, but MSI-X is off or has no such vector`,
        );
      }
    };
    const { eventfds, vmid } = host;
    const { bells } = region;
    if (bells !== undefined && eventfds !== undefined) {
      this.#bells = new KernelBells({ vmid, bells, eventfds, msix, onRing });
    }
    bars.add({ index: Bar.Registers, kind: 'mem32', sizeBytes: REGISTERS_BYTES }, vdev.registersBar, (at) => {
      const mapping = host.addRegisters(at, REGISTERS_BYTES, registers);
      this.#bells?.place(at + Reg.Doorbell);
      return {
        dispose: () => {
          this.#bells?.place(undefined);
          mapping.dispose();
        },
      };
    });
    bars.add({ index: Bar.Msix, kind: 'mem32', sizeBytes: MSIX_BYTES }, vdev.msixBar, (at) =>
      host.addRegisters(at, MSIX_BYTES, msix),
    );
    bars.add(
      { index: Bar.Memory, kind: 'mem64', sizeBytes: vdev.sizeBytes, prefetchable: true },
      vdev.memoryBar,
      (at) => host.addMemory(at, region.bytes, region.hostAddress),
    );

    region.onRing(onRing);
  }

  readConfig(offset: number, size: AccessSize): number {
    return this.#config.read(offset, size);
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.#config.write(offset, size, value);
  }
  dispose(): void {
    this.#bars.dispose();
    this.#bells?.dispose();
    this.#region.bells?.dispose();
    this.#region.dispose();
  }
}

/** Only whole, aligned dwords of the first four are honoured; everything else reads 0 and ignores writes. */
class Registers implements IoRegion {
  #mask = 0;
  #status = 0;
  readonly #position: number;
  readonly #region: IvshmemRegion;

  constructor(position: number, region: IvshmemRegion) {
    this.#position = position;
    this.#region = region;
  }

  read(offset: number, size: AccessSize): number {
    if (size !== 4) return 0;
    switch (offset) {
      case Reg.InterruptMask:
        return this.#mask;
      case Reg.InterruptStatus:
        return this.#status;
      case Reg.IvPosition:
        return this.#position;
      default:
        return 0;
    }
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size !== 4) return;
    switch (offset) {
      case Reg.InterruptMask: // kept, without effect in revision 1
        this.#mask = value;
        break;
      case Reg.InterruptStatus:
        this.#status = value;
        break;
      case Reg.Doorbell:
        this.#region.ring(value >>> 16, value & 0xffff);
        break;
      default:
        break;
    }
  }
}

/** The function for a CREATE_VDEV whose region was found: it is the function's, also if this throws. @throws HostError */
export function createIvshmem(vdev: IvshmemVdev, region: IvshmemRegion, host: VirtualFunctionHost): VirtualFunction {
  return new Ivshmem(vdev, region, host);
}
