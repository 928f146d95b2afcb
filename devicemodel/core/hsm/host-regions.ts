/**
 * Memory and ports of host devices as the HSM takes them: struct acrn_mmiodev and acrn_pio_region, checked before the
 * ioctl, since the driver hands them to the hypervisor as they are.
 */
import { hex } from '../address.ts';
import { BugError } from '../errors.ts';
import { AcrnMmiodev, AcrnPioRegion } from './abi.ts';
import type { MmiodevAssignment, PioRegion } from './hsm.ts';

const NAME_BYTES = 8;
const MAX_RESOURCES = 3;
/** assign_mmio_dev refuses what is not whole pages. */
const PAGE_BYTES = 4096;
const PORTS = 0x1_0000;

function nameBytes(name: string): Uint8Array {
  const bytes = new TextEncoder().encode(name);
  if (bytes.length > NAME_BYTES) throw new BugError(`device name "${name}" is longer than ${NAME_BYTES} bytes`);
  return bytes;
}

/** `tpm2 0xfed40000+0x5000`, for messages. */
export function describeMmiodev({ name, resources }: MmiodevAssignment): string {
  const ranges = resources.map(({ hostPhysical, sizeBytes }) => `${hex(hostPhysical)}+${hex(sizeBytes)}`);
  return [name, ...ranges].filter((word) => word !== '').join(' ');
}

/** The 104 bytes of struct acrn_mmiodev. @throws BugError for what the hypervisor cannot map */
export function encodeMmiodev(assignment: MmiodevAssignment): Uint8Array {
  const { name, resources } = assignment;
  const isPages = (value: number) => Number.isSafeInteger(value) && value >= 0 && value % PAGE_BYTES === 0;
  if (resources.length === 0 || resources.length > MAX_RESOURCES) {
    throw new BugError(`${describeMmiodev(assignment)}: 1 to ${MAX_RESOURCES} ranges`);
  }
  for (const { gpa, hostPhysical, sizeBytes } of resources) {
    if (!isPages(gpa) || !isPages(hostPhysical) || !isPages(sizeBytes) || sizeBytes === 0) {
      throw new BugError(`${describeMmiodev(assignment)} at ${hex(gpa)}: not whole pages`);
    }
  }
  return AcrnMmiodev.encode({
    name: nameBytes(name),
    res: resources.map(({ gpa, hostPhysical, sizeBytes, memoryType }) => ({
      userVmPa: gpa,
      hostPa: hostPhysical,
      size: sizeBytes,
      memType: BigInt(memoryType ?? 0),
    })),
  });
}

/** `uart ports 0x3f8-0x3ff`, for messages. */
export function describePioRegion({ name, port, sizeBytes }: PioRegion): string {
  return `${name} ports ${hex(port)}-${hex(port + sizeBytes - 1)}`;
}

/** The 12 bytes of struct acrn_pio_region. @throws BugError for ports that do not exist */
export function encodePioRegion(region: PioRegion): Uint8Array {
  const { name, port, sizeBytes } = region;
  if (
    !(Number.isInteger(port) && Number.isInteger(sizeBytes) && port >= 0 && sizeBytes > 0 && port + sizeBytes <= PORTS)
  ) {
    throw new BugError(`${describePioRegion(region)}: not ports`);
  }
  return AcrnPioRegion.encode({ name: nameBytes(name), port, size: sizeBytes });
}
