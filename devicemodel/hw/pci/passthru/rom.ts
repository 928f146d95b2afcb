/** Expansion ROM from a file, for a display controller (PCI 3.0 §6.2.5.2, §6.3). */
import type { AccessSize, Gpa } from '../../../core/address.ts';
import { type Mapping, map } from '../../../core/host/mapping.ts';
import { readRegularFile } from '../../../core/host/read-file.ts';
import type { Hsm, RamMapping } from '../../../core/hsm/hsm.ts';
import type { Log } from '../../../core/log.ts';
import { isPowerOfTwo, KiB, MiB } from '../../../core/units.ts';

/** First two bytes of a ROM image. */
const SIGNATURE = [0x55, 0xaa];
const MAX_FILE_BYTES = 2 * MiB;
const PAGE = 4 * KiB;
/** Of the register: decoding is on. */
const ENABLE = 1;
const ADDRESS_MASK = 0xffff_f800;

export class ExpansionRom {
  /** Of the BAR: a power of two. */
  readonly sizeBytes: number;
  readonly #image: Uint8Array;
  #memory: Mapping | undefined;
  #address: Gpa = 0;
  /** What the guest reads: address and enable bit, or the pattern of a size probe. */
  #register = 0;

  private constructor(image: Uint8Array) {
    this.#image = image;
    const least = Math.max(image.length, PAGE);
    this.sizeBytes = isPowerOfTwo(least) ? least : 2 ** Math.ceil(Math.log2(least));
  }

  /** @returns undefined, with one line of warning, for a file that is no ROM: the function goes on without. */
  static read(path: string, log: Log): ExpansionRom | undefined {
    const refuse = (why: string) => {
      log.warn(`romfile=${path}: ${why}, the function has no ROM`);
      return undefined;
    };
    let image: Buffer;
    try {
      image = readRegularFile(path, 'it');
    } catch (error) {
      return refuse((error as Error).message);
    }
    if (SIGNATURE.some((byte, i) => image[i] !== byte)) return refuse('it does not start with 55 aa');
    if (image.length > MAX_FILE_BYTES) return refuse('it is larger than 2 MiB');
    return new ExpansionRom(image);
  }

  /** The host placed it. */
  place(address: Gpa): void {
    this.#address = address;
    this.reset();
  }

  reset(): void {
    this.#register = (this.#address | ENABLE) >>> 0;
  }

  /** Map the image for the guest. @throws HsmError. @returns the undo. */
  attach(hsm: Hsm): () => void {
    const memory = map(this.sizeBytes, 'expansion ROM');
    memory.bytes.set(this.#image);
    this.#memory = memory;
    const mapping: RamMapping = {
      gpa: this.#address,
      sizeBytes: this.sizeBytes,
      bytes: memory.bytes,
      hostAddress: memory.address,
      writable: false,
      executable: false,
    };
    try {
      hsm.mapRam(mapping);
    } catch (error) {
      this.#free();
      throw error;
    }
    return () => {
      try {
        const mmio = { gpa: this.#address, physicalAddress: 0, sizeBytes: this.sizeBytes };
        // ACRN's driver takes back device memory only; in the guest's page tables it is the same.
        if (hsm.passthrough !== undefined) hsm.passthrough.unmapMmio(mmio);
        else hsm.unmapRam?.(mapping);
      } finally {
        this.#free();
      }
    };
  }

  /** @param offset within the register. */
  read(offset: number, size: AccessSize): number {
    const shifted = this.#register >>> (8 * offset);
    return size === 4 ? shifted : shifted & (size === 2 ? 0xffff : 0xff);
  }

  /**
   * The ROM stays where it was placed, since the image is mapped there: whatever address is written, that one is read.
   * Compat: C then sets bits 4 and 5 in place of the enable bit, and answers narrow reads with the dword.
   */
  write(offset: number, size: AccessSize, value: number): void {
    // Its address bits are all in one dword; drivers write nothing else.
    if (offset !== 0 || size !== 4) return;
    if ((value & ADDRESS_MASK) >>> 0 === ADDRESS_MASK) this.#register = -this.sizeBytes >>> 0;
    else if (value === 0) this.#register = 0;
    else this.#register = (this.#address | (value & ENABLE)) >>> 0;
  }

  #free(): void {
    this.#memory?.dispose();
    this.#memory = undefined;
  }
}
