/**
 * Memory of a device that the guest has as RAM at a BAR: a frame buffer. It follows the BAR where the hypervisor can take
 * RAM away again. ACRN cannot: then the old place keeps it, and accesses to the new one are served by the device, slow
 * but right.
 */
import { type AccessSize, allOnes, type Gpa, hex } from '../../core/address.ts';
import { type Mapping, mapAligned } from '../../core/host/mapping.ts';
import type { RamMapping } from '../../core/hsm/hsm.ts';
import { MiB } from '../../core/units.ts';
import type { PciEnv } from './driver.ts';

/** Hypervisors map it with large pages then. */
const ALIGNMENT = 2 * MiB;
const NOTHING = new Uint8Array(0);

export class DeviceMemory {
  readonly #sizeBytes: number;
  readonly #what: string;
  readonly #env: Pick<PciEnv, 'hsm' | 'log'>;
  #memory: Mapping | undefined;
  #view: DataView | undefined;
  #mapping: RamMapping | undefined;

  constructor(sizeBytes: number, what: string, env: Pick<PciEnv, 'hsm' | 'log'>) {
    this.#sizeBytes = sizeBytes;
    this.#what = what;
    this.#env = env;
  }

  /** Empty while it is not attached. */
  get bytes(): Uint8Array {
    return this.#memory?.bytes ?? NOTHING;
  }

  /** Map it for the guest. A mapping that is still there (a system reset keeps RAM) is used on. @throws HsmError, HostError */
  attach(gpa: Gpa): void {
    if (this.#memory === undefined) {
      this.#memory = mapAligned(this.#sizeBytes, ALIGNMENT, this.#what);
      const { bytes } = this.#memory;
      this.#view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    }
    if (this.#mapping?.gpa !== gpa) this.#mapAt(gpa, this.#memory);
  }

  /** Give it up; the VM is gone. Safe twice, and without `attach`. */
  detach(): void {
    this.#mapping = undefined;
    this.#view = undefined;
    this.#memory?.dispose();
    this.#memory = undefined;
  }

  /** The guest moved the BAR; undefined: it is not decoded. */
  moveTo(address: Gpa | undefined): void {
    const { hsm, log } = this.#env;
    const mapping = this.#mapping;
    const memory = this.#memory;
    if (address === undefined || memory === undefined || address === mapping?.gpa) return;
    if (mapping !== undefined && hsm.unmapRam === undefined) {
      log.guest(() => `${this.#what} stays mapped at ${hex(mapping.gpa)}, at ${hex(address)} it is served slowly`);
      return;
    }
    try {
      // None, where the hypervisor did not take the place before this one.
      if (mapping !== undefined) hsm.unmapRam?.(mapping);
      this.#mapping = undefined;
      this.#mapAt(address, memory);
    } catch (error) {
      log.guest(() => `${this.#what} cannot move to ${hex(address)}: ${(error as Error).message}`);
    }
  }

  /** Where it is not mapped. */
  read(offset: number, size: AccessSize): number {
    const view = this.#view;
    if (view === undefined || offset + size > view.byteLength) return allOnes(size);
    if (size === 1) return view.getUint8(offset);
    return size === 2 ? view.getUint16(offset, true) : view.getUint32(offset, true);
  }

  write(offset: number, size: AccessSize, value: number): void {
    const view = this.#view;
    if (view === undefined || offset + size > view.byteLength) return;
    if (size === 1) view.setUint8(offset, value);
    else if (size === 2) view.setUint16(offset, value, true);
    else view.setUint32(offset, value, true);
  }

  #mapAt(gpa: Gpa, { bytes, address }: Mapping): void {
    const mapping = {
      gpa,
      sizeBytes: this.#sizeBytes,
      bytes,
      hostAddress: address,
      writable: true,
      executable: false,
    };
    this.#env.hsm.mapRam(mapping);
    this.#mapping = mapping;
  }
}
