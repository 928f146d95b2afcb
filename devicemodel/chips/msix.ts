/** MSI-X: capability, vector table and pending bits. Spec: PCI Local Bus 3.0 §6.8.2. */
import { type AccessSize, allOnes } from '../core/address.ts';
import type { IoRegion, MsiMessage, MsiSink } from '../core/device.ts';
import { BugError } from '../core/errors.ts';
import { alignUp, KiB } from '../core/units.ts';
import { clearMsixTable, isMsixVectorMasked, loadMsixMessage, MsixEntry } from './msix-table.ts';
import type { BarIndex } from './pci-config-space.ts';
import { CapId, type ConfigHook, type ConfigSpace } from './pci-config-space.ts';

/** Message Control bits (§6.8.2.3). */
const Control = { Enable: 1 << 15, FunctionMask: 1 << 14 } as const;
const MAX_VECTORS = 2048;

/**
 * The table sits at offset 0 of `bar`, the pending bits at the next 4 KiB boundary, as the C device model lays them
 * out, or where `pbaOffset` says. Reads and writes of the whole BAR can be handed to this region.
 */
export class Msix implements IoRegion {
  readonly vectors: number;
  readonly bar: BarIndex;
  readonly pbaOffset: number;
  /** How large the BAR must be at least; not rounded to a power of two. */
  readonly barBytes: number;
  readonly #sink: MsiSink;
  readonly #table: DataView;
  readonly #pending: Uint32Array;
  /** Reused for every message: the sink takes what it needs before it returns. */
  readonly #message = { address: 0, data: 0 };
  #config: ConfigSpace | undefined;
  #offset = 0;
  /** A vector's message or mask changed, for owners that hand messages to irqfds. */
  onVectorChanged: ((vector: number) => void) | undefined;

  /** @param pbaOffset behind the table, a multiple of 8. */
  constructor(vectors: number, bar: BarIndex, sink: MsiSink, pbaOffset = alignUp(vectors * MsixEntry.Size, 4 * KiB)) {
    if (!Number.isInteger(vectors) || vectors < 1 || vectors > MAX_VECTORS) {
      throw new BugError(`MSI-X: ${vectors} vectors is not 1..${MAX_VECTORS}`);
    }
    if (pbaOffset < vectors * MsixEntry.Size || pbaOffset % 8 !== 0) {
      throw new BugError(`MSI-X: the pending bits cannot be at ${pbaOffset}`);
    }
    this.vectors = vectors;
    this.bar = bar;
    this.#sink = sink;
    this.pbaOffset = pbaOffset;
    // §6.8.2.10: pending bits come in whole qwords.
    this.#pending = new Uint32Array(Math.ceil(vectors / 64) * 2);
    this.barBytes = this.pbaOffset + this.#pending.byteLength;
    this.#table = new DataView(new ArrayBuffer(vectors * MsixEntry.Size));
    this.reset();
  }

  /** Add the capability. @returns its offset. */
  attach(config: ConfigSpace): number {
    const body = new Uint8Array(10);
    const view = new DataView(body.buffer);
    view.setUint16(0, this.vectors - 1, true);
    view.setUint32(2, this.bar, true);
    view.setUint32(6, this.pbaOffset | this.bar, true);
    const hook: ConfigHook = {
      written: () => {
        this.#deliverPending();
        if (this.onVectorChanged !== undefined) {
          for (let vector = 0; vector < this.vectors; vector++) this.onVectorChanged(vector);
        }
      },
    };
    this.#config = config;
    const writable = [0, (Control.Enable | Control.FunctionMask) >>> 8];
    this.#offset = config.addCapability(CapId.Msix, body, { writable, hook });
    return this.#offset;
  }

  /** Table masked and zero, nothing pending. The control register is the configuration space's to reset. */
  reset(): void {
    this.#pending.fill(0);
    clearMsixTable(this.#table);
  }

  /** MSI wins where a guest enables both, as in the C device model. */
  get isEnabled(): boolean {
    const config = this.#config;
    return config?.isMsixEnabled === true && !config.isMsiEnabled;
  }

  #isFunctionMasked(): boolean {
    const config = this.#config;
    return config !== undefined && (config.get16(this.#offset + 2) & Control.FunctionMask) !== 0;
  }

  /** Whether the vector would only become pending. A vector that does not exist is masked. */
  isMasked(vector: number): boolean {
    if (!(vector >= 0 && vector < this.vectors)) return true;
    return this.#isFunctionMasked() || isMsixVectorMasked(this.#table, vector);
  }

  /**
   * Send a vector, or remember it while it is masked. Nothing happens while MSI-X is off or for a vector that does
   * not exist (virtio's 0xffff among them).
   * @returns whether a message went out.
   */
  signal(vector: number): boolean {
    if (!(vector >= 0 && vector < this.vectors) || !this.isEnabled) return false;
    if (this.isMasked(vector)) {
      const word = vector >>> 5;
      this.#pending[word] = (this.#pending[word] as number) | (1 << (vector & 31));
      return false;
    }
    return this.#send(vector);
  }

  /** The message a vector sends now, for irqfds; undefined while it cannot be sent. */
  message(vector: number): MsiMessage | undefined {
    if (!this.isEnabled || this.isMasked(vector)) return undefined;
    return this.#load(vector) ? { ...this.#message } : undefined;
  }

  #send(vector: number): boolean {
    if (!this.#load(vector)) return false;
    this.#sink.signal(this.#message);
    return true;
  }

  /** @returns false for an address no interrupt controller can have. */
  #load(vector: number): boolean {
    return loadMsixMessage(this.#table, vector, this.#message);
  }

  #isPending(vector: number): boolean {
    return ((this.#pending[vector >>> 5] as number) & (1 << (vector & 31))) !== 0;
  }

  /** §6.8.2.10: a pending vector is sent as soon as nothing masks it. */
  #deliverIfPending(vector: number): void {
    if (!this.#isPending(vector) || !this.isEnabled || this.isMasked(vector)) return;
    const word = vector >>> 5;
    this.#pending[word] = (this.#pending[word] as number) & ~(1 << (vector & 31));
    this.#send(vector);
  }

  #deliverPending(): void {
    for (let word = 0; word < this.#pending.length; word++) {
      if (this.#pending[word] === 0) continue;
      for (let bit = 0; bit < 32; bit++) this.#deliverIfPending(word * 32 + bit);
    }
  }

  // The BAR.

  /** §6.8.2: software uses dword or qword accesses. Compat: single bytes can be read too, as in the C device model. */
  read(offset: number, size: AccessSize): number {
    if ((offset & (size - 1)) !== 0 || size === 2) return allOnes(size);
    if (offset < this.#table.byteLength) {
      return size === 4 ? this.#table.getUint32(offset, true) : this.#table.getUint8(offset);
    }
    const pba = offset - this.pbaOffset;
    if (pba < 0 || pba >= this.#pending.byteLength) return allOnes(size);
    const word = this.#pending[pba >>> 2] as number;
    return size === 4 ? word : (word >>> (8 * (pba & 3))) & 0xff;
  }

  /** Dwords of the table; everything else, the pending bits included, is read-only. */
  write(offset: number, size: AccessSize, value: number): void {
    if (size !== 4 || (offset & 3) !== 0 || offset >= this.#table.byteLength) return;
    this.#table.setUint32(offset, value, true);
    const vector = Math.floor(offset / MsixEntry.Size);
    if (offset % MsixEntry.Size === MsixEntry.VectorControl) this.#deliverIfPending(vector);
    this.onVectorChanged?.(vector);
  }
}
