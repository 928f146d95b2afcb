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
   * @returns an address aligned to the size if that is a power of two, else to a page.
   * @throws ConfigError if there is no room.
   */
  allocate(sizeBytes: number, what: string): Gpa {
    const size = alignUp(sizeBytes, PAGE_BYTES);
    // Compat: the rule for powers of two, whatever the size is. No address comes out that is below the first free one, or
    // within a page: the mask of a number of pages has all bits of the offset.
    const last = this.#next + size - 1;
    const base = last - ((last & (size - 1)) >>> 0);
    const end = base + size;
    if (end > Layout.deviceWindow.end) {
      const { base: first, end: last } = Layout.deviceWindow;
      throw new ConfigError(`${what}: ${formatSize(sizeBytes)} do not fit at ${hex(first)} to ${hex(last - 1)}`);
    }
    this.#next = end;
    return base;
  }
}
