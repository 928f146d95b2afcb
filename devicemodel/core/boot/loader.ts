/** What the boot options put into guest memory, whichever form the image has. */
import type { Gpa } from '../address.ts';
import type { BootConfig } from '../config.ts';
import { BugError } from '../errors.ts';
import type { E820Input } from '../firmware/e820.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import { type Log, silentLog } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { biosRegion, checkBios, loadBios } from './bios.ts';
import { checkBzImage, loadBzImage } from './bzimage.ts';
import { checkElf, loadElf } from './elf.ts';
import { OvmfFirmware } from './ovmf.ts';

/** Software for one User VM; lives as long as the process, through resets. */
export interface GuestSoftware {
  /** Guest memory outside RAM that the image needs. */
  readonly regions: readonly { readonly base: Gpa; readonly sizeBytes: number }[];
  /**
   * Put everything into guest memory; again after every reset.
   * @param reserved what devices took out of RAM.
   * @returns how the boot CPU starts.
   * @throws ConfigError if a file cannot be read any more or does not fit.
   */
  load(memory: GuestMemory, reserved?: Pick<E820Input, 'gpuReserved' | 'softwareSram'>): VcpuRegs;
  /**
   * Keep firmware variables, where asked for. Before memory goes and before `load` is called again.
   * @throws HostError if they cannot be written; the file is then as it was.
   */
  save(memory: GuestMemory): void;
  /** Files closed, locks given up. Safe twice. */
  close(): void;
}

/** RAM below and above the PCI hole of a VM of `memoryBytes`. */
export function splitRam(memoryBytes: number): Pick<E820Input, 'lowRamBytes' | 'highRamBytes'> {
  const lowRamBytes = Math.min(memoryBytes, Layout.lowRamLimit);
  return { lowRamBytes, highRamBytes: memoryBytes - lowRamBytes };
}

/** It starts at the reset vector, and again after S3. */
export function isFirmware(boot: BootConfig | undefined): boolean {
  return boot?.kind === 'ovmf' || boot?.kind === 'bios';
}

/** Look at the images, and leave them as they are. @throws ConfigError as {@link openSoftware} */
export function checkSoftware(boot: BootConfig, ram: E820Input): void {
  const looked: BootConfig = boot.kind === 'ovmf' ? { ...boot, image: { ...boot.image, writeBack: false } } : boot;
  openSoftware(looked, ram, silentLog).close();
}

/**
 * Look at the images, and lock what will be written: all that can fail without a VM fails here.
 * @throws ConfigError that names the option, the file and what is wrong with it.
 */
export function openSoftware(boot: BootConfig, ram: E820Input, log: Log): GuestSoftware {
  const nothing = { regions: [], save: () => undefined, close: () => undefined };
  switch (boot.kind) {
    case 'bzimage':
      checkBzImage(boot, ram);
      return { ...nothing, load: (memory, reserved) => loadBzImage(boot, memory, { ...ram, ...reserved }, log) };
    case 'elf':
      checkElf(boot, ram);
      return { ...nothing, load: (memory, reserved) => loadElf(boot, memory, { ...ram, ...reserved }, log) };
    case 'ovmf': {
      const firmware = new OvmfFirmware(boot, log);
      return {
        regions: [firmware.region],
        load: (memory, reserved) => firmware.load(memory, { ...ram, ...reserved }),
        save: (memory) => firmware.save(memory),
        close: () => firmware.close(),
      };
    }
    case 'bios':
      checkBios(boot);
      return { ...nothing, regions: [biosRegion], load: (memory) => loadBios(boot, memory, log) };
    default:
      throw new BugError(`boot form ${(boot as { kind: string }).kind}`);
  }
}
