/**
 * The hypervisor's ivshmem function: memory shared between User VMs, and doorbells that interrupt the other side.
 * Specification: QEMU docs/specs/ivshmem-spec.rst, revision 1; behaviour of ACRN's dm/vpci/ivshmem.c.
 */
import { type AccessSize, formatBdf } from '../../../devicemodel/core/address.ts';
import type { IoRegion } from '../../../devicemodel/core/device.ts';
import type { IvshmemVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { VirtualFunction, VirtualFunctionHost } from '../virtual-function.ts';
import { ConfigSpace, HEADER_MULTI_FUNCTION, Register } from './config-space.ts';
import { MSIX_BAR_BYTES, MsixTable } from './msix.ts';

const Id = { vendor: 0x1af4, device: 0x1110, revision: 1, class: 0x05, subsystemVendor: 0x8086 } as const;
const Bar = { Registers: 0, Msix: 1, Memory: 2 } as const;
const REGISTERS_BYTES = 256;
const VECTORS = 8;

/** BAR0. */
const Reg = { InterruptMask: 0x0, InterruptStatus: 0x4, IvPosition: 0x8, Doorbell: 0xc } as const;

/** Shared memory of one region, and the way to the other VMs that have it. */
export interface IvshmemRegion {
  readonly regionId: number;
  readonly bytes: Uint8Array;
  readonly hostAddress: bigint | undefined;
  /** Ring another VM. An unknown one is the guest's mistake. */
  ring(peer: number, vector: number): void;
  /** Doorbells for this VM come here from now on. */
  onRing(handler: (vector: number) => void): void;
  dispose(): void;
}

class Ivshmem implements VirtualFunction {
  readonly bdf: IvshmemVdev['bdf'];
  readonly #config = new ConfigSpace();
  readonly #region: IvshmemRegion;
  readonly #placed: Array<{ dispose(): void } | undefined> = [];

  constructor(vdev: IvshmemVdev, region: IvshmemRegion, host: VirtualFunctionHost) {
    this.bdf = vdev.bdf;
    this.#region = region;
    const config = this.#config;
    config.set(Register.VendorId, 2, Id.vendor);
    config.set(Register.DeviceId, 2, Id.device);
    config.set(Register.RevisionId, 1, Id.revision);
    config.set(Register.Class, 1, Id.class);
    config.set(Register.HeaderType, 1, vdev.bdf.function === 0 ? HEADER_MULTI_FUNCTION : 0);
    config.set(Register.SubsystemVendorId, 2, Id.subsystemVendor);
    config.set(Register.SubsystemId, 2, region.regionId);
    const msix = new MsixTable(VECTORS, Bar.Msix, config, host);
    const registers = new Registers(host.vmid, region);

    const place = (index: number, what: { dispose(): void } | undefined) => {
      this.#placed[index]?.dispose();
      this.#placed[index] = what;
    };
    const bar32 = (index: number, base: number, sizeBytes: number, region: IoRegion) =>
      config.addBar({
        index,
        sizeBytes,
        base,
        is64: false,
        prefetchable: false,
        place: (at) => place(index, at === undefined ? undefined : host.addRegisters(at, sizeBytes, region)),
      });
    bar32(Bar.Registers, vdev.registersBar, REGISTERS_BYTES, registers);
    bar32(Bar.Msix, vdev.msixBar, MSIX_BAR_BYTES, msix);
    config.addBar({
      index: Bar.Memory,
      sizeBytes: vdev.sizeBytes,
      base: vdev.memoryBar,
      is64: true,
      prefetchable: true,
      place: (at) =>
        place(Bar.Memory, at === undefined ? undefined : host.addMemory(at, region.bytes, region.hostAddress)),
    });

    region.onRing((vector) => {
      if (!msix.signal(vector)) {
        host.log.guest(
          () => `ivshmem ${formatBdf(this.bdf)}: doorbell ${vector}, but MSI-X is off or has no such vector`,
        );
      }
    });
  }

  readConfig(offset: number, size: AccessSize): number {
    return this.#config.read(offset, size);
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.#config.write(offset, size, value);
  }
  dispose(): void {
    this.#config.dispose();
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

/** The function for a CREATE_VDEV whose region was found. */
export function createIvshmem(vdev: IvshmemVdev, region: IvshmemRegion, host: VirtualFunctionHost): VirtualFunction {
  return new Ivshmem(vdev, region, host);
}
