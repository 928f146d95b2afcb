/**
 * The access a vCPU left the guest for, as requests of the page: one, or several for a string of ports and for widths no
 * request has. It stands still in between for as long as the device model likes. Layout: struct kvm_run, <linux/kvm.h>.
 */
import type { AccessSize } from '../../devicemodel/core/address.ts';
import { RunField } from '../../devicemodel/core/host/kvm-abi.ts';
import type { IoreqPage } from '../../devicemodel/core/ioreq-page.ts';

const IO_OUT = 1;
const { io, mmio } = RunField;
/** The same in 32-bit words: direction, size and port are one. */
const IoWord = {
  reason: RunField.exitReason / 4,
  what: io.direction / 4,
  count: io.count / 4,
  dataOffset: io.dataOffset / 4,
} as const;
const TWO_32 = 0x1_0000_0000;

export class ExitAccess {
  readonly #view: DataView;
  readonly #words: Uint32Array;
  readonly #bytes: Uint8Array;
  #isMemory = false;
  #isWrite = false;
  #address = 0;
  #size = 0;
  /** From the start of struct kvm_run. */
  #dataAt = 0;
  #left = 0;
  #done = 0;

  /** @param run struct kvm_run, and the page of port data behind it. */
  constructor(run: Uint8Array) {
    this.#view = new DataView(run.buffer, run.byteOffset, run.byteLength);
    this.#words = new Uint32Array(run.buffer, run.byteOffset, run.byteLength >>> 2);
    this.#bytes = run;
  }

  /** Why the vCPU left the guest, KVM_EXIT_*. */
  get reason(): number {
    return this.#words[IoWord.reason] as number;
  }
  /** Of the next request. */
  get isPort(): boolean {
    return !this.#isMemory;
  }
  get address(): number {
    return this.#address;
  }
  get isDone(): boolean {
    return this.#left === 0;
  }
  /** Requests that were answered. */
  get partsDone(): number {
    return this.#done;
  }

  beginIo(): void {
    const words = this.#words;
    const what = words[IoWord.what] as number;
    this.#done = 0;
    this.#isMemory = false;
    this.#isWrite = (what & 0xff) === IO_OUT;
    this.#size = (what >>> 8) & 0xff;
    this.#address = what >>> 16;
    this.#left = words[IoWord.count] as number;
    this.#dataAt = words[IoWord.dataOffset] as number;
  }

  beginMmio(): void {
    const view = this.#view;
    this.#done = 0;
    this.#isMemory = true;
    this.#isWrite = view.getUint8(mmio.isWrite) !== 0;
    this.#address = view.getUint32(mmio.address, true) + view.getUint32(mmio.address + 4, true) * TWO_32;
    this.#dataAt = mmio.data;
    const length = view.getUint32(mmio.length, true);
    const isOne = length === 1 || length === 2 || length === 4 || length === 8;
    this.#size = isOne ? length : 1;
    this.#left = isOne ? 1 : length;
  }

  /** Put the next request into the slot. @returns false when all of the access was carried out. */
  fill(page: IoreqPage, vcpu: number): boolean {
    if (this.#left === 0) return false;
    const size = this.#size;
    const value = this.#isWrite ? this.#read(size) : 0;
    if (this.#isMemory) {
      page.fillMmio(vcpu, this.#isWrite, this.#address, size as AccessSize | 8, value);
      if (size === 8 && this.#isWrite) page.setValueU64(vcpu, this.#view.getBigUint64(this.#dataAt, true));
    } else {
      page.fillPortIo(vcpu, this.#isWrite, this.#address, size as AccessSize, value);
    }
    return true;
  }

  /** The slot's request was answered. */
  take(page: IoreqPage, vcpu: number): void {
    if (!this.#isWrite) {
      const view = this.#view;
      const at = this.#dataAt;
      if (this.#size === 1) this.#bytes[at] = page.value(vcpu);
      else if (this.#size === 2) view.setUint16(at, page.value(vcpu) & 0xffff, true);
      else if (this.#size === 4) view.setUint32(at, page.value(vcpu), true);
      else view.setBigUint64(at, page.valueU64(vcpu), true);
    }
    this.skip(1);
  }

  /** So many requests were answered elsewhere. */
  skip(parts: number): void {
    this.#dataAt += parts * this.#size;
    if (this.#isMemory) this.#address += parts * this.#size;
    this.#left -= parts;
    this.#done += parts;
  }

  #read(size: number): number {
    if (size === 1) return this.#bytes[this.#dataAt] as number;
    const view = this.#view;
    return size === 2 ? view.getUint16(this.#dataAt, true) : view.getUint32(this.#dataAt, true);
  }
}
