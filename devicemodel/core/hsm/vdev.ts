/**
 * Devices the hypervisor emulates; the device model only registers them (CREATE_VDEV, DESTROY_VDEV).
 *
 * `struct acrn_vdev` (acrn_common.h) is one struct for all three, with 32-bit BAR registers and an untyped `args`.
 * Here each device has a type of its own, an address is one number, and the bytes are made in one place.
 */
import { type Bdf, bdfToNumber, formatBdf, type Gpa, hex } from '../address.ts';
import { ConfigError } from '../errors.ts';
import { addr, array, bytes, struct, u8, u16, u32 } from '../struct.ts';

interface HvVdevAt {
  /** Virtual slot; becomes `slot` = (bus<<8)|(device<<3)|function. */
  readonly bdf: Bdf;
}

/** Shared memory between VMs (vendor 1af4 device 1110). */
export interface IvshmemVdev extends HvVdevAt {
  readonly type: 'ivshmem';
  /** BAR0, 256 bytes of registers, 32-bit. */
  readonly registersBar: Gpa;
  /** BAR1, the MSI-X table, 32-bit. */
  readonly msixBar: Gpa;
  /** BAR2/3, 64-bit prefetchable: the shared memory. One address here, split into two registers by the codec. */
  readonly memoryBar: Gpa;
  /** With its `hv:/` prefix, as the scenario has it. At most 32 bytes count. */
  readonly regionName: string;
  /** Must equal the scenario's region size. */
  readonly sizeBytes: number;
}

/** PCI vUART, MCS9900 (vendor 9710 device 9900). */
export interface VuartVdev extends HvVdevAt {
  readonly type: 'vuart';
  readonly registersBar: Gpa;
  readonly msixBar: Gpa;
  /** The scenario's vuart index of this VM. */
  readonly vuartIndex: number;
}

/** Virtual PCIe root port for PTM (vendor 8086 device 9d14). */
export interface RootPortVdev extends HvVdevAt {
  readonly type: 'root-port';
  readonly physicalBdf: Bdf;
  readonly maxPayload: number;
  readonly primaryBus: number;
  readonly secondaryBus: number;
  readonly subordinateBus: number;
  /** Offset of the PTM extended capability, undefined when the port has none. */
  readonly ptmCapOffset: number | undefined;
}

export type HvVdev = IvshmemVdev | VuartVdev | RootPortVdev;

/** `id.value`: vendor in bits 15:0, device in 31:16; the high half ("legacy id") must be 0. */
export const VdevId = {
  ivshmem: { vendor: 0x1af4, device: 0x1110 },
  vuart: { vendor: 0x9710, device: 0x9900 },
  'root-port': { vendor: 0x8086, device: 0x9d14 },
} as const;

/** struct acrn_vdev. */
export const AcrnVdev = struct({
  vendor: u16,
  device: u16,
  legacyId: u32,
  slot: addr,
  ioAddr: array(u32, 6, 0),
  ioSize: array(u32, 6, 0),
  args: bytes(128),
});

/** struct vrp_config: the args of a root port. */
export const VrpConfig = struct({
  physicalBdf: u16,
  maxPayload: u8,
  primaryBus: u8,
  secondaryBus: u8,
  subordinateBus: u8,
  ptmCapable: u8,
  ptmCapOffset: u32,
});

/** Type bits of a 64-bit prefetchable memory BAR register (PCI 3.0 §6.2.5.1); the C device model sends them along. */
const BAR_MEM64_PREFETCHABLE = 0x0c;
/** Bytes of a region name the hypervisor compares (strncmp with 32). */
const REGION_NAME_BYTES = 32;

/** What is wrong with a vdev, before any ioctl. @throws ConfigError with what to do. */
export function checkVdev(vdev: HvVdev): void {
  const where = `${vdev.type} at ${formatBdf(vdev.bdf)}`;
  const fail = (what: string, hint?: string) => {
    throw new ConfigError(`${where}: ${what}`, hint === undefined ? {} : { hint });
  };
  const bar32 = (name: string, address: Gpa, alignment: number) => {
    if (!Number.isSafeInteger(address) || address < 0 || address > 0xffffffff)
      fail(`${name} ${address} is not a 32-bit address`);
    if (address % alignment !== 0) fail(`${name} ${hex(address)} is not aligned to ${alignment}`);
  };
  switch (vdev.type) {
    case 'ivshmem': {
      bar32('register BAR', vdev.registersBar, 256);
      bar32('MSI-X BAR', vdev.msixBar, 4096);
      if (!vdev.regionName.startsWith('hv:/'))
        fail(`region "${vdev.regionName}" is not kept by the hypervisor`, 'name it hv:/NAME');
      if (!Number.isSafeInteger(vdev.sizeBytes) || vdev.sizeBytes <= 0 || vdev.sizeBytes > 0xffffffff) {
        fail(`size ${vdev.sizeBytes} does not fit the 32-bit size field`);
      }
      if (!Number.isSafeInteger(vdev.memoryBar) || vdev.memoryBar < 0 || vdev.memoryBar % vdev.sizeBytes !== 0) {
        fail(`memory BAR ${hex(vdev.memoryBar)} is not aligned to its size ${hex(vdev.sizeBytes)}`);
      }
      return;
    }
    case 'vuart':
      bar32('register BAR', vdev.registersBar, 256);
      bar32('MSI-X BAR', vdev.msixBar, 4096);
      if (!Number.isInteger(vdev.vuartIndex) || vdev.vuartIndex < 0 || vdev.vuartIndex > 0xffff) {
        fail(`vuart index ${vdev.vuartIndex} is not 0..65535`);
      }
      return;
    case 'root-port':
      if (vdev.secondaryBus < 1 || vdev.secondaryBus > 255) fail(`secondary bus ${vdev.secondaryBus} is not 1..255`);
      if (vdev.subordinateBus < vdev.secondaryBus) fail('subordinate bus is below the secondary bus');
  }
}

/**
 * The 192 bytes of struct acrn_vdev for CREATE_VDEV. Unused registers and args are zero.
 * @throws ConfigError if the vdev fails {@link checkVdev}.
 */
export function encodeVdev(vdev: HvVdev): Uint8Array {
  checkVdev(vdev);
  const head = { ...VdevId[vdev.type], slot: bdfToNumber(vdev.bdf) };
  switch (vdev.type) {
    case 'ivshmem': {
      const high = Math.floor(vdev.memoryBar / 0x1_0000_0000);
      const low = (vdev.memoryBar | BAR_MEM64_PREFETCHABLE) >>> 0;
      return AcrnVdev.encode({
        ...head,
        ioAddr: [vdev.registersBar, vdev.msixBar, low, high],
        ioSize: [0, 0, vdev.sizeBytes],
        args: new TextEncoder().encode(vdev.regionName).subarray(0, REGION_NAME_BYTES),
      });
    }
    case 'vuart':
      return AcrnVdev.encode({
        ...head,
        ioAddr: [vdev.registersBar, vdev.msixBar],
        args: Uint8Array.of(vdev.vuartIndex & 0xff, vdev.vuartIndex >>> 8),
      });
    case 'root-port':
      return AcrnVdev.encode({
        ...head,
        args: VrpConfig.encode({
          physicalBdf: bdfToNumber(vdev.physicalBdf),
          maxPayload: vdev.maxPayload,
          primaryBus: vdev.primaryBus,
          secondaryBus: vdev.secondaryBus,
          subordinateBus: vdev.subordinateBus,
          ptmCapable: vdev.ptmCapOffset === undefined ? 0 : 1,
          ptmCapOffset: vdev.ptmCapOffset ?? 0,
        }),
      });
  }
}

/** What DESTROY_VDEV needs: identity and slot; the hypervisor ignores the rest. */
export function encodeVdevForDestroy(vdev: HvVdev): Uint8Array {
  return AcrnVdev.encode({ ...VdevId[vdev.type], slot: bdfToNumber(vdev.bdf) });
}
