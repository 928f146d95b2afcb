/**
 * Extended CMOS at ports 0x74 (index) and 0x75 (data), 256 bytes. It survives resets of the VM: an Android guest
 * leaves its reboot reason there, and firmware takes the RPMB key from it, once at each start.
 */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { IoRegion } from '../../core/device.ts';
import type { Aml } from '../../core/firmware/aml.ts';
import { io } from '../../core/firmware/aml-resources.ts';
import type { IoBus, Registration } from '../../core/io-bus.ts';
import type { PlatformDevice } from './platform-device.ts';

const CMOS_IO_PORT = 0x74;
/** The extended RTC's ports around it belong to nobody else. */
const RESERVED_PORTS = { base: 0x72, size: 6 };
/** Offsets from port 0x74. */
const Port = { Index: 0, Data: 1 } as const;
const CMOS_IO_BYTES = 256;
/** Key area: a byte that was read is gone. */
const Key = { base: 0x20, end: 0xa0 } as const;
const RPMB_KEY_BYTES = 64;

/** What lasts as long as the VM, over its full resets. */
export class CmosMemory {
  readonly bytes = new Uint8Array(CMOS_IO_BYTES);
  #rpmbKey: Uint8Array | undefined;

  /** 64 bytes. Made when it is asked for: most machines have nothing to protect. */
  get rpmbKey(): Uint8Array {
    this.#rpmbKey ??= crypto.getRandomValues(new Uint8Array(RPMB_KEY_BYTES));
    return this.#rpmbKey;
  }

  async close(): Promise<void> {}
}

export class CmosIo implements PlatformDevice, IoRegion {
  readonly #memory: CmosMemory;
  readonly #bytes: Uint8Array;
  #index = 0;
  /** Accesses come in pairs, index first; anything out of order is refused and starts over. */
  #isDataNext = false;

  constructor(memory = new CmosMemory()) {
    this.#memory = memory;
    this.#bytes = memory.bytes;
  }

  attach(pio: IoBus): Registration[] {
    return [pio.register({ base: CMOS_IO_PORT, size: 2, name: 'cmos-io' }, this)];
  }

  motherboardResources(): Aml[] {
    return [io(RESERVED_PORTS.base, RESERVED_PORTS.size)];
  }

  /** Contents are kept. */
  reset(): void {
    this.#index = 0;
    this.#isDataNext = false;
  }

  /** Put the RPMB key where the firmware looks for it, before each start of the guest. */
  storeRpmbKey(): void {
    this.#bytes.set(this.#memory.rpmbKey, Key.base);
  }

  read(offset: number, size: AccessSize): number {
    // Compat: a read of the index port selects byte 0, as with the C device model.
    if (offset === Port.Index) return this.#select(0) ? 0 : allOnes(size);
    if (!this.#isDataNext) return allOnes(size);
    this.#isDataNext = false;
    const value = this.#bytes[this.#index] as number;
    if (this.#index >= Key.base && this.#index < Key.end) this.#bytes[this.#index] = 0;
    return value;
  }

  write(offset: number, _size: AccessSize, value: number): void {
    if (offset === Port.Index) {
      this.#select(value & 0xff);
      return;
    }
    if (this.#isDataNext) this.#bytes[this.#index] = value & 0xff;
    this.#isDataNext = false;
  }

  #select(index: number): boolean {
    if (this.#isDataNext) {
      this.#isDataNext = false;
      return false;
    }
    this.#index = index;
    this.#isDataNext = true;
    return true;
  }
}
