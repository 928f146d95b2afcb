/**
 * Guest-physical memory as KVM's slots. They must not overlap, and a guest can move the memory of a device anywhere: what
 * would lie on something else is hidden, and comes back when that is gone.
 */
import { type Gpa, hex } from '../../devicemodel/core/address.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import type { KvmVm } from '../../devicemodel/core/host/kvm.ts';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { MemoryWindow } from '../embedded/cpu-engine.ts';

const PAGE_BYTES = 4096;

interface Slot {
  readonly base: Gpa;
  readonly end: Gpa;
  /** Undefined for registers of a device, which nobody here looks at. */
  readonly bytes: Uint8Array | undefined;
  readonly hostAddress: bigint;
  readonly writable: boolean;
  /** Number of the slot it has, or undefined while it is hidden. */
  number: number | undefined;
}

/** Who has the slots. */
export interface SlotTable {
  /** Whole pages of it, as ACRN takes them. @returns takes it away again. @throws HsmError */
  add(gpa: Gpa, bytes: Uint8Array, hostAddress: bigint, writable: boolean): MemoryWindow;
  /** As {@link add}, for whole pages of a device's registers. */
  addDevice(base: Gpa, sizeBytes: number, hostAddress: bigint): MemoryWindow;
  /** The bytes of this process behind an address of the guest, up to the end of their slot. */
  bytesAt(gpa: Gpa): Uint8Array | undefined;
}

export class MemorySlots implements SlotTable {
  readonly #vm: Pick<KvmVm, 'setMemory'>;
  readonly #log: Log;
  readonly #slots: Slot[] = [];
  /** Numbers that were given back. */
  readonly #free: number[] = [];
  #next = 0;

  constructor(vm: Pick<KvmVm, 'setMemory'>, log: Log) {
    this.#vm = vm;
    this.#log = log;
  }

  add(gpa: Gpa, bytes: Uint8Array, hostAddress: bigint, writable: boolean): MemoryWindow {
    const base = gpa - (gpa % PAGE_BYTES);
    const length = bytes.length - (bytes.length % PAGE_BYTES);
    return this.#add({
      base,
      end: base + length,
      bytes,
      hostAddress: hostAddress - (hostAddress % BigInt(PAGE_BYTES)),
      writable,
      number: undefined,
    });
  }

  addDevice(base: Gpa, sizeBytes: number, hostAddress: bigint): MemoryWindow {
    return this.#add({ base, end: base + sizeBytes, bytes: undefined, hostAddress, writable: true, number: undefined });
  }

  #add(slot: Slot): MemoryWindow {
    const { base, end } = slot;
    if (!this.#show(slot))
      this.#log.guest(() => `memory at ${hex(base)}+${hex(end - base)} is hidden by what is there`);
    this.#slots.push(slot);
    return { dispose: () => this.#remove(slot) };
  }

  bytesAt(gpa: Gpa): Uint8Array | undefined {
    const slot = this.#slots.find((s) => s.number !== undefined && gpa >= s.base && gpa < s.end);
    return slot?.bytes?.subarray(gpa - slot.base);
  }

  /** @returns false when something else is there. */
  #show(slot: Slot): boolean {
    const isTaken = (other: Slot) => other.number !== undefined && slot.base < other.end && other.base < slot.end;
    if (this.#slots.some(isTaken)) return false;
    const number = this.#free.pop() ?? this.#next++;
    const result = this.#vm.setMemory(number, slot.base, slot.end - slot.base, slot.hostAddress, !slot.writable);
    if (result < 0) {
      this.#free.push(number);
      // KVM's own pages (its TSS, the interrupt controllers) cannot be covered either.
      if (result === -Errno.EEXIST) return false;
      throw new HsmError('SET_MEMSEG', -result, { what: `${hex(slot.base)}+${hex(slot.end - slot.base)}` });
    }
    slot.number = number;
    return true;
  }

  #remove(slot: Slot): void {
    const at = this.#slots.indexOf(slot);
    if (at < 0) return;
    this.#slots.splice(at, 1);
    if (slot.number === undefined) return;
    this.#vm.setMemory(slot.number, slot.base, 0, slot.hostAddress, false);
    this.#free.push(slot.number);
    for (const hidden of this.#slots) {
      if (hidden.number !== undefined) continue;
      try {
        this.#show(hidden);
      } catch (error) {
        this.#log.guest(() => (error as Error).message);
      }
    }
  }
}
