/**
 * Firmware of a PC (`--bios`), as SeaBIOS: an image that ends at 4 GiB and is started at the reset vector, its last part
 * below 1 MiB as well. Spec: Intel SDM volume 3, §9.1.4; 440FX datasheet §4.1.
 */
import type { BootConfig } from '../config.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import type { Log } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { KiB, MiB } from '../units.ts';
import { badImage, type ImageRole, withImage } from './image-file.ts';
import { checkFirmware, RESET_REGS } from './reset-vector.ts';

type BiosConfig = Extract<BootConfig, { kind: 'bios' }>;

/** Firmware memory comes in large pages. */
const REGION = { base: Layout.firmwareEnd - 2 * MiB, sizeBytes: 2 * MiB };
/** What the first megabyte shows of it: firmware that finds RAM there (hw/pci/host-bridge.ts) copies nothing by itself. */
const LOW_BYTES_MAX = 256 * KiB;
const BLOCK_BYTES = 64 * KiB;
const ROLE: ImageRole = { option: '--bios', what: 'firmware image', maxBytes: REGION.sizeBytes };

/** Memory the image needs, outside RAM. */
export const biosRegion = REGION;

/** @throws ConfigError if the file is missing, or cannot be such firmware. */
export function checkBios({ imagePath }: BiosConfig): void {
  withImage(imagePath, ROLE, (file) => {
    checkFirmware(file);
    const { sizeBytes } = file;
    if (sizeBytes % BLOCK_BYTES !== 0) {
      throw badImage(ROLE, imagePath, `has ${sizeBytes} bytes, not a multiple of ${BLOCK_BYTES}`, 'take bios-256k.bin');
    }
  });
}

/** Into both of its places. @returns how the boot CPU starts. @throws ConfigError as {@link checkBios}. */
export function loadBios(boot: BiosConfig, memory: GuestMemory, log: Log): VcpuRegs {
  checkBios(boot);
  withImage(boot.imagePath, ROLE, (file) => {
    const base = Layout.firmwareEnd - file.sizeBytes;
    file.readToGuest(memory, base, file.sizeBytes);
    const lowBytes = Math.min(file.sizeBytes, LOW_BYTES_MAX);
    memory.write(1 * MiB - lowBytes, memory.read(Layout.firmwareEnd - lowBytes, lowBytes));
    log.info(`firmware: ${boot.imagePath}, ${file.sizeBytes} bytes below 4 GiB`);
  });
  return RESET_REGS;
}
