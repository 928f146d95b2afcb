/** The guest-physical map: every fixed address, with its reason. Names in brackets are the C device model's. */
import { GiB, KiB, MiB } from './units.ts';

export const Layout = {
  /** RAM below this address, the rest above 4 GiB [PCI_EMUL_MEMBASE32]. Leaves 2 GiB of 32-bit space for PCI. */
  lowRamLimit: 2 * GiB,
  /** RAM that does not fit low [HIGHRAM_START_ADDR]. */
  highRamBase: 4 * GiB,

  /** MP table: floating pointer and configuration table [MPTABLE_BASE]. */
  mpTableBase: 0xf0000,
  /** e820 block that OVMF reads: signature, count, entries. */
  ovmfE820Base: 0xef000,
  /** ACPI tables: RSDP here, the others at fixed distances [basl]. */
  acpiBase: 0xf2400,
  /** Firmware waking vector in the FACS, which lies 0x3c0 after the RSDP (ACPI 6.4 §5.2.10: offset 12). */
  acpiWakingVector: 0xf2400 + 0x3c0 + 12,

  /** Where a bzImage's protected-mode kernel goes [KERNEL_LOAD_OFF]. */
  kernelLoadBase: 16 * MiB,
  /** Multiboot information: structs, memory map and strings. */
  multiboot: { base: 0x20000, size: 0x4000 },
  /** ROM images end at 4 GiB. */
  firmwareEnd: 4 * GiB,

  /** PCI I/O BARs. */
  pciIo: { base: 0x2000, end: 0x1_0000 },
  /** 32-bit memory BARs; ends where ECAM begins [PCI_EMUL_MEMBASE32, PCI_EMUL_MEMLIMIT32]. */
  pciMem32: { base: 2 * GiB, end: 0xe000_0000 },
  /** Where SeaBIOS moves 32-bit memory BARs to, from the end on; none is placed there, and there may be device memory. */
  pciMem32Firmware: { base: 0xf000_0000, end: 0xfec0_0000 },
  /** 64-bit memory BARs [PCI_EMUL_MEMBASE64, PCI_EMUL_MEMLIMIT64]. */
  pciMem64: { base: 0x40_0000_0000, end: 0x80_0000_0000 },
  /** Enhanced configuration access, 1 MiB a bus [PCI_EMUL_ECFG_BASE]. */
  ecam: { base: 0xe000_0000, size: 256 * MiB },

  /** Memory of devices that are neither PCI's nor the platform's: a TPM, device memory passed through. */
  deviceWindow: { base: 0xf000_0000, end: 0xfe00_0000 },

  hpet: { base: 0xfed0_0000, size: 1 * KiB },
  ioapicBase: 0xfec0_0000,
  lapicBase: 0xfee0_0000,
} as const;
