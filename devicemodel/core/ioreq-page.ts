/**
 * The page through which guest accesses reach the device model: 16 slots of struct acrn_io_request (acrn_common.h,
 * 256 bytes each), one per vCPU. Offsets as the compiler lays them out; `size` and `value` are at the same place for
 * all three kinds of request, only their C types differ.
 *
 * These are raw accessors for the hot path: no allocation, no checks of `vcpu`.
 */
import type { AccessSize } from './address.ts';
import { BugError } from './errors.ts';

/** ACRN_IOREQ_TYPE_*. */
export const IoreqType = { PortIo: 0, Mmio: 1, PciConfig: 2, WriteProtect: 3 } as const;

/** ACRN_IOREQ_STATE_*; who moves a slot on is in the driver's documentation of struct acrn_io_request. */
export const IoreqState = { Pending: 0, Complete: 1, Processing: 2, Free: 3 } as const;

/** Bytes of the page, and of one slot. */
export const IOREQ_PAGE_BYTES = 4096;
export const IOREQ_SLOT_BYTES = 256;
/** Slots in a page: the most vCPUs a User VM can have. */
export const IOREQ_SLOTS = IOREQ_PAGE_BYTES / IOREQ_SLOT_BYTES;

/** struct acrn_io_request, in 32-bit words from the start of the slot. */
const Word = {
  type: 0,
  completionPolling: 1,
  // union reqs @64
  direction: 16,
  addressLow: 18,
  addressHigh: 19,
  size: 20,
  sizeHigh: 21,
  valueLow: 22,
  valueHigh: 23,
  // struct acrn_pci_request
  pciBus: 23,
  pciDevice: 24,
  pciFunction: 25,
  pciRegister: 26,
  // after the union
  kernelHandled: 33,
  processed: 34,
} as const;

/** A slot has 64 words, so that `|` adds a word's place to it, and needs no check for an overflow. */
const SLOT_WORD_SHIFT = 6;
const TWO_32 = 0x1_0000_0000;

export class IoreqPage {
  readonly bytes: Uint8Array;
  readonly #words: Int32Array;

  /** @param bytes the 4096 bytes shared with the hypervisor, 4-byte aligned; kept, not copied. */
  constructor(bytes: Uint8Array) {
    if (bytes.length < IOREQ_PAGE_BYTES || bytes.byteOffset % 4 !== 0)
      throw new BugError(`an I/O request page has ${IOREQ_PAGE_BYTES} aligned bytes, not ${bytes.length}`);
    this.bytes = bytes;
    this.#words = new Int32Array(bytes.buffer, bytes.byteOffset, IOREQ_PAGE_BYTES / 4);
  }

  /** `processed`, with acquire semantics: the rest of the slot is as its owner wrote it before. */
  state(vcpu: number): number {
    return Atomics.load(this.#words, (vcpu << SLOT_WORD_SHIFT) | Word.processed);
  }

  /** As {@link state}, for an embedded engine, on whose thread slots are served: nobody else writes them. */
  isComplete(vcpu: number): boolean {
    return this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.processed] === IoreqState.Complete;
  }

  /**
   * Only the hypervisor's side moves a slot on; the device model says NOTIFY instead. A plain store (an atomic one
   * costs as much as the rest of an access): embedded engines move slots on the thread that serves them.
   */
  setState(vcpu: number, state: number): void {
    this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.processed] = state;
  }

  /**
   * Whether the device model has to serve this slot: PROCESSING, and no client in the kernel has it. Plain loads, of which
   * x86 makes none before an earlier one, and V8 neither: the request is as its owner wrote it before. Atomics.load is a
   * call of a hundred instructions, at each look.
   */
  isPending(vcpu: number): boolean {
    const base = vcpu << SLOT_WORD_SHIFT;
    return this.#words[base | Word.processed] === IoreqState.Processing && this.#words[base | Word.kernelHandled] === 0;
  }

  isKernelHandled(vcpu: number): boolean {
    return this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.kernelHandled] !== 0;
  }

  setKernelHandled(vcpu: number, handled: boolean): void {
    this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.kernelHandled] = handled ? 1 : 0;
  }

  /** One of {@link IoreqType}, or whatever else the hypervisor put there. */
  type(vcpu: number): number {
    return (this.#words[vcpu << SLOT_WORD_SHIFT] as number) >>> 0;
  }

  isWrite(vcpu: number): boolean {
    return this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.direction] === 1;
  }

  /** Port or guest-physical address. Above 2^53 it is rounded, and no device is there. */
  address(vcpu: number): number {
    const base = vcpu << SLOT_WORD_SHIFT;
    const low = (this.#words[base | Word.addressLow] as number) >>> 0;
    const high = (this.#words[base | Word.addressHigh] as number) >>> 0;
    return high === 0 ? low : high * TWO_32 + low;
  }

  /**
   * As {@link address}, for a port access: 32 bits, and all ones for what has more. An integer all the way is less to
   * compute.
   */
  port(vcpu: number): number {
    const base = vcpu << SLOT_WORD_SHIFT;
    return this.#words[base | Word.addressHigh] === 0
      ? (this.#words[base | Word.addressLow] as number) >>> 0
      : 0xffff_ffff;
  }

  /** Bytes of the access; 1, 2, 4, and for MMIO also 8. Not checked. */
  size(vcpu: number): number {
    return (this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.size] as number) >>> 0;
  }

  /** The low 32 bits of the value, unsigned. */
  value(vcpu: number): number {
    return (this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.valueLow] as number) >>> 0;
  }

  /** The answer to a port or config read, and to an MMIO read of up to 4 bytes (whose upper half becomes 0). */
  setValue(vcpu: number, value: number): void {
    const base = vcpu << SLOT_WORD_SHIFT;
    this.#words[base | Word.valueLow] = value;
    if (this.#words[base] === IoreqType.Mmio) this.#words[base | Word.valueHigh] = 0;
  }

  /** MMIO only: the word after `value` is the bus number in a config request. */
  valueU64(vcpu: number): bigint {
    const base = vcpu << SLOT_WORD_SHIFT;
    const low = (this.#words[base | Word.valueLow] as number) >>> 0;
    const high = (this.#words[base | Word.valueHigh] as number) >>> 0;
    return (BigInt(high) << 32n) | BigInt(low);
  }

  setValueU64(vcpu: number, value: bigint): void {
    const base = vcpu << SLOT_WORD_SHIFT;
    this.#words[base | Word.valueLow] = Number(value & 0xffff_ffffn);
    this.#words[base | Word.valueHigh] = Number((value >> 32n) & 0xffff_ffffn);
  }

  pciBus(vcpu: number): number {
    return this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.pciBus] as number;
  }
  pciDevice(vcpu: number): number {
    return this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.pciDevice] as number;
  }
  pciFunction(vcpu: number): number {
    return this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.pciFunction] as number;
  }
  /** Offset in the function's config space, 0..4095. */
  pciRegister(vcpu: number): number {
    return this.#words[(vcpu << SLOT_WORD_SHIFT) | Word.pciRegister] as number;
  }

  // What follows is the hypervisor's side: it fills a slot and leaves `processed` PENDING.

  /** The upper half of `value` is not part of a port's request. */
  fillPortIo(vcpu: number, isWrite: boolean, port: number, size: AccessSize, value: number): void {
    const base = vcpu << SLOT_WORD_SHIFT;
    const words = this.#words;
    words[base] = IoreqType.PortIo;
    words[base | Word.direction] = isWrite ? 1 : 0;
    words[base | Word.addressLow] = port | 0;
    words[base | Word.addressHigh] = 0;
    words[base | Word.size] = size | 0;
    words[base | Word.sizeHigh] = 0;
    words[base | Word.valueLow] = value | 0;
    words[base | Word.kernelHandled] = 0;
    words[base | Word.processed] = IoreqState.Pending;
  }

  fillMmio(vcpu: number, isWrite: boolean, address: number, size: AccessSize | 8, value: number): void {
    const base = vcpu << SLOT_WORD_SHIFT;
    const words = this.#words;
    words[base] = IoreqType.Mmio;
    words[base | Word.direction] = isWrite ? 1 : 0;
    words[base | Word.addressLow] = address;
    words[base | Word.addressHigh] = address < TWO_32 ? 0 : Math.floor(address / TWO_32);
    words[base | Word.size] = size | 0;
    words[base | Word.sizeHigh] = 0;
    words[base | Word.valueLow] = value | 0;
    words[base | Word.valueHigh] = 0;
    words[base | Word.kernelHandled] = 0;
    words[base | Word.processed] = IoreqState.Pending;
  }

  fillPciConfig(vcpu: number, isWrite: boolean, bdf: number, register: number, size: AccessSize, value: number): void {
    const base = vcpu << SLOT_WORD_SHIFT;
    this.#words[base] = IoreqType.PciConfig;
    this.#words[base | Word.direction] = isWrite ? 1 : 0;
    this.#words[base | Word.size] = size;
    this.#words[base | Word.sizeHigh] = 0;
    this.#words[base | Word.valueLow] = value;
    this.#words[base | Word.pciBus] = (bdf >>> 8) & 0xff;
    this.#words[base | Word.pciDevice] = (bdf >>> 3) & 0x1f;
    this.#words[base | Word.pciFunction] = bdf & 7;
    this.#words[base | Word.pciRegister] = register;
    this.#words[base | Word.kernelHandled] = 0;
    this.#words[base | Word.processed] = IoreqState.Pending;
  }
}
