/** Capability lists in a copy of a configuration space: PCI 3.0 §6.7, PCI Express 4.0 §7.6. */
import { Cfg, Status } from '../../../chips/pci-config-space.ts';

const FIRST_CAPABILITY = 0x40;
const FIRST_EXTENDED = 0x100;
const STANDARD_BYTES = 0x100;
/** More than fit: a list that loops ends here. */
const MAX_CAPABILITIES = 48;
const MAX_EXTENDED = 960;

/** Extended capabilities (PCI Code and ID Assignment 1.11 §3). */
export const ExtendedCapId = { Ptm: 0x1f } as const;

/** PCI Express capability (PCI Express 4.0 §7.5.3). */
export const Express = { Flags: 0x02, DeviceCapabilities: 0x04 } as const;
/** Device/port type, bits 7:4 of its flags. */
export const ExpressType = { Endpoint: 0, RootPort: 4, IntegratedEndpoint: 9 } as const;

/** Reads of a configuration space that may end early: what is not there reads as all ones. */
export class ConfigCopy {
  readonly bytes: Uint8Array;
  readonly #view: DataView;

  constructor(bytes: Uint8Array) {
    this.bytes = bytes;
    this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  }

  get8(offset: number): number {
    return offset < this.bytes.length ? this.#view.getUint8(offset) : 0xff;
  }
  get16(offset: number): number {
    return offset + 2 <= this.bytes.length ? this.#view.getUint16(offset, true) : 0xffff;
  }
  get32(offset: number): number {
    return offset + 4 <= this.bytes.length ? this.#view.getUint32(offset, true) : 0xffff_ffff;
  }

  /** @returns the offset of a capability, or undefined. Follows the list no further than it can be. */
  findCapability(id: number): number | undefined {
    const status = this.get16(Cfg.Status);
    if (status === 0xffff || (status & Status.CapabilitiesList) === 0) return undefined;
    let offset = this.get8(Cfg.CapabilitiesPointer);
    for (let n = 0; n < MAX_CAPABILITIES; n++) {
      offset &= ~3;
      if (offset < FIRST_CAPABILITY || offset + 2 > Math.min(this.bytes.length, STANDARD_BYTES)) return undefined;
      const found = this.get8(offset);
      if (found === id) return offset;
      // A function that does not answer.
      if (found === 0xff) return undefined;
      offset = this.get8(offset + 1);
    }
    return undefined;
  }

  /**
   * @returns the offset of an extended capability's header, or undefined.
   * Compat: C walks a space that reads as all ones for ever.
   */
  findExtendedCapability(id: number): number | undefined {
    let offset = FIRST_EXTENDED;
    for (let n = 0; n < MAX_EXTENDED && offset >= FIRST_EXTENDED && offset + 4 <= this.bytes.length; n++) {
      const header = this.get32(offset);
      if (header === 0 || header === 0xffff_ffff) return undefined;
      if ((header & 0xffff) === id) return offset;
      offset = (header >>> 20) & 0xffc;
    }
    return undefined;
  }
}
