import type { Device } from '../../core/device.ts';
import type { PlacedTable } from '../../core/firmware/acpi-tables.ts';
import type { TableContributor } from '../../core/firmware/contribution.ts';
import type { E820Range } from '../../core/firmware/e820.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';

/** A device soldered to the board: it knows its fixed ports and addresses, and tells the guest's tables of them. */
export interface PlatformDevice extends Device, TableContributor {
  /** @returns one registration per range, for the teardown stack. @throws BugError if a range is taken. */
  attach(pio: IoBus, mmio: IoBus): Registration[];
  /** The firmware tables are in guest memory: at every writing of them, before the guest runs. */
  tablesWritten?(acpi: readonly PlacedTable[]): void;
  /** Memory that is not RAM although it may be within it: software SRAM. */
  readonly reservedMemory?: E820Range;
}
