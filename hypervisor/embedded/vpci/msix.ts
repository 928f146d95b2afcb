/**
 * MSI-X of a function the hypervisor emulates: capability, table and pending bits (PCI 3.0 §6.8.2). The table is at the
 * start of its BAR, the pending bits in the upper half of the page.
 */
import { type AccessSize, allOnes } from '../../../devicemodel/core/address.ts';
import type { IoRegion, MsiSink } from '../../../devicemodel/core/device.ts';
import type { ConfigSpace } from './config-space.ts';

export const MSIX_BAR_BYTES = 0x1000;
const PBA_OFFSET = 0x800;
const ENTRY_BYTES = 16;
const CAPABILITY_ID = 0x11;
/** Message control: enable, function mask; the rest is read-only. */
const Control = { offset: 2, functionMask: 1 << 14, enable: 1 << 15 } as const;
/** Vector control. */
const VECTOR_MASKED = 1;

export class MsixTable implements IoRegion {
  readonly #words: Uint32Array;
  readonly #vectors: number;
  readonly #sink: MsiSink;
  readonly #config: ConfigSpace;
  readonly #capability: number;
  /** One bit a vector; at most 32 vectors. */
  #pending = 0;

  /** Adds the capability; `bar` is the index of the BAR this table will be placed in. */
  constructor(vectors: number, bar: number, config: ConfigSpace, sink: MsiSink) {
    this.#vectors = vectors;
    this.#sink = sink;
    this.#config = config;
    this.#words = new Uint32Array((vectors * ENTRY_BYTES) / 4);
    for (let v = 0; v < vectors; v++) this.#words[4 * v + 3] = VECTOR_MASKED;
    const bytes = new DataView(new ArrayBuffer(12));
    bytes.setUint8(0, CAPABILITY_ID);
    bytes.setUint16(2, vectors - 1, true);
    bytes.setUint32(4, bar, true);
    bytes.setUint32(8, PBA_OFFSET | bar, true);
    this.#capability = config.addCapability(new Uint8Array(bytes.buffer));
    config.allow(this.#capability + Control.offset, 2, Control.enable | Control.functionMask);
    config.onWrite(this.#capability, () => this.#deliverPending());
  }

  get vectors(): number {
    return this.#vectors;
  }

  get isEnabled(): boolean {
    return (this.#control & Control.enable) !== 0;
  }

  /**
   * Send a vector's message, or note it while it is masked.
   * @returns false when MSI-X is off or there is no such vector: nothing happened.
   */
  signal(vector: number): boolean {
    if (!this.isEnabled || vector < 0 || vector >= this.#vectors) return false;
    if (this.#isMasked(vector)) this.#pending |= 1 << vector;
    else this.#send(vector);
    return true;
  }

  read(offset: number, size: AccessSize): number {
    if (size !== 4 || offset % 4 !== 0) return allOnes(size); // only dwords are defined
    if (offset < this.#words.byteLength) return this.#words[offset / 4] as number;
    if (offset === PBA_OFFSET) return this.#pending >>> 0;
    return 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size !== 4 || offset % 4 !== 0 || offset >= this.#words.byteLength) return;
    this.#words[offset / 4] = value;
    if (offset % ENTRY_BYTES === 12) this.#deliverPending();
  }

  get #control(): number {
    return this.#config.read(this.#capability + Control.offset, 2);
  }

  #isMasked(vector: number): boolean {
    return (
      (this.#control & Control.functionMask) !== 0 || ((this.#words[4 * vector + 3] as number) & VECTOR_MASKED) !== 0
    );
  }

  #send(vector: number): void {
    const low = this.#words[4 * vector] as number;
    const high = this.#words[4 * vector + 1] as number;
    this.#sink.signal({ address: high * 0x1_0000_0000 + low, data: this.#words[4 * vector + 2] as number });
  }

  #deliverPending(): void {
    if (this.#pending === 0 || !this.isEnabled) return;
    for (let vector = 0; vector < this.#vectors; vector++) {
      const bit = 1 << vector;
      if ((this.#pending & bit) === 0 || this.#isMasked(vector)) continue;
      this.#pending &= ~bit;
      this.#send(vector);
    }
  }
}
