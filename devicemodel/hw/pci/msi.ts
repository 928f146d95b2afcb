/** MSI: the capability and delivery. Spec: PCI Local Bus 3.0 §6.8.1. */
import { CapId, type ConfigHook, type ConfigSpace } from '../../chips/pci-config-space.ts';
import type { AccessSize } from '../../core/address.ts';
import type { MsiSink } from '../../core/device.ts';
import { BugError } from '../../core/errors.ts';

/** Message Control bits (§6.8.1.3). */
const Control = { Enable: 1 << 0, MultipleEnable: 7 << 4, Is64Bit: 1 << 7, PerVectorMasking: 1 << 8 } as const;

export interface MsiOptions {
  /** Vectors the function asks for. */
  readonly vectors: 1 | 2 | 4 | 8 | 16 | 32;
  /** Default true, as every device of the C device model. */
  readonly is64Bit?: boolean;
  /** Default true. */
  readonly perVectorMasking?: boolean;
}

export class Msi {
  readonly vectors: number;
  readonly #is64Bit: boolean;
  readonly #hasMask: boolean;
  readonly #sink: MsiSink;
  readonly #message = { address: 0, data: 0 };
  #config: ConfigSpace | undefined;
  #offset = 0;

  constructor(options: MsiOptions, sink: MsiSink) {
    this.vectors = options.vectors;
    this.#is64Bit = options.is64Bit ?? true;
    this.#hasMask = options.perVectorMasking ?? true;
    this.#sink = sink;
    if (!Number.isInteger(Math.log2(options.vectors)) || options.vectors > 32) {
      throw new BugError(`MSI: ${options.vectors} vectors is not 1, 2, 4 … 32`);
    }
  }

  /** Add the capability. @returns its offset. */
  attach(config: ConfigSpace): number {
    const length = (this.#is64Bit ? 14 : 10) + (this.#hasMask ? 10 : 0);
    const body = new Uint8Array(length - 2);
    const writable = new Uint8Array(length - 2);
    const control =
      (Math.log2(this.vectors) << 1) |
      (this.#is64Bit ? Control.Is64Bit : 0) |
      (this.#hasMask ? Control.PerVectorMasking : 0);
    body[0] = control & 0xff;
    body[1] = control >>> 8;
    writable[0] = Control.Enable | Control.MultipleEnable;
    // Message address: bits 1:0 are zero, the guest's writes to them are lost.
    writable.set([0xfc, 0xff, 0xff, 0xff], 2);
    if (this.#is64Bit) writable.fill(0xff, 6, 10);
    const data = this.#dataOffset() - 2;
    writable.set([0xff, 0xff], data);
    if (this.#hasMask) writable.fill(0xff, data + 4, data + 8);
    const hook: ConfigHook = { written: (_offset: number, _size: AccessSize) => this.#deliverPending() };
    this.#config = config;
    this.#offset = config.addCapability(CapId.Msi, body, { writable, hook });
    return this.#offset;
  }

  get isEnabled(): boolean {
    return this.#config?.isMsiEnabled ?? false;
  }

  /** Vectors the guest granted; 0 while MSI is off. */
  get enabledVectors(): number {
    if (this.#config === undefined || !this.isEnabled) return 0;
    const granted = 1 << ((this.#config.get16(this.#offset + 2) & Control.MultipleEnable) >>> 4);
    return Math.min(granted, this.vectors);
  }

  /**
   * Send a vector, or remember it while it is masked. Nothing happens while MSI is off or the vector is not granted.
   * @returns whether a message went out.
   */
  signal(vector: number): boolean {
    const config = this.#config;
    if (config === undefined || vector < 0 || vector >= this.enabledVectors) return false;
    if (this.#hasMask) {
      const bit = (1 << vector) >>> 0;
      if ((config.get32(this.#maskOffset()) & bit) !== 0) {
        config.set32(this.#pendingOffset(), (config.get32(this.#pendingOffset()) | bit) >>> 0);
        return false;
      }
    }
    return this.#send(config, vector);
  }

  #send(config: ConfigSpace, vector: number): boolean {
    // Compat: C never looks at the upper half, whatever a guest wrote there. No interrupt controller is up there.
    this.#message.address = config.get32(this.#offset + 4);
    // §6.8.1.6: the number of the vector is in the low bits. Compat: added, which is the same for data as the guest has
    // to give it, with those bits 0.
    this.#message.data = (config.get16(this.#offset + this.#dataOffset()) + vector) & 0xffff;
    this.#sink.signal(this.#message);
    return true;
  }

  #deliverPending(): void {
    const config = this.#config;
    if (config === undefined || !this.#hasMask) return;
    let due = (config.get32(this.#pendingOffset()) & ~config.get32(this.#maskOffset())) >>> 0;
    for (let vector = 0; due !== 0 && vector < this.enabledVectors; vector++) {
      const bit = (1 << vector) >>> 0;
      if ((due & bit) === 0) continue;
      due = (due & ~bit) >>> 0;
      config.set32(this.#pendingOffset(), (config.get32(this.#pendingOffset()) & ~bit) >>> 0);
      this.#send(config, vector);
    }
  }

  #dataOffset(): number {
    return this.#is64Bit ? 12 : 8;
  }
  #maskOffset(): number {
    return this.#offset + this.#dataOffset() + 4;
  }
  #pendingOffset(): number {
    return this.#maskOffset() + 4;
  }
}
