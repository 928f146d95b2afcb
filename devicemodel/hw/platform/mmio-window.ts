/** Guest addresses for memory of devices that no PCI BAR places: [Layout.deviceWindow], first come, first placed. */
import { type Gpa, hex } from '../../core/address.ts';
import { ConfigError } from '../../core/errors.ts';
import { Layout } from '../../core/layout.ts';
import { alignUp, formatSize, KiB } from '../../core/units.ts';

const PAGE_BYTES = 4 * KiB;

export class MmioWindow {
  #next: Gpa = Layout.deviceWindow.base;

  /** What is given out ends here. */
  get end(): Gpa {
    return this.#next;
  }

  /**
   * @param what whose it is, for the message.
   * @returns an address aligned to the size, rounded up to a power of two.
   * @throws ConfigError if there is no room.
   */
  allocate(sizeBytes: number, what: string): Gpa {
    // Compat: C aligns to a size that is no power of two as if it were one, and so to nothing in particular.
    const alignment = Math.max(PAGE_BYTES, 2 ** Math.ceil(Math.log2(sizeBytes)));
    const base = alignUp(this.#next, alignment);
    const end = base + alignUp(sizeBytes, PAGE_BYTES);
    if (end > Layout.deviceWindow.end) {
      const { base: first, end: last } = Layout.deviceWindow;
      throw new ConfigError(`${what}: ${formatSize(sizeBytes)} do not fit at ${hex(first)} to ${hex(last - 1)}`);
    }
    this.#next = end;
    return base;
  }
}
