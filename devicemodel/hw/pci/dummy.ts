/** A function that does nothing useful: registers that keep what is written, and MSI on demand. For tests of guests. */
import * as v from 'valibot';
import type { BarIndex, BarSpec, ConfigSpace } from '../../chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../core/address.ts';
import { definePciDriver, type PciEnv } from './driver.ts';
import type { EmulatedPciFunction } from './function.ts';
import { Msi } from './msi.ts';

const Id = { vendorId: 0x10dd, deviceId: 0x0001, classCode: 0x020000 };
const IO_BYTES = 8;
const MEMORY_BYTES = 4096;
const MSI_VECTORS = 4;
/** A dword here sends that vector. */
const MSI_PORT = 4;
/** This value, anywhere in the I/O BAR, sends all of them. */
const SEND_ALL = 0xabcdef;

class Dummy implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity = Id;
  readonly bars: readonly BarSpec[] = [
    { index: 0, kind: 'io', sizeBytes: IO_BYTES },
    { index: 1, kind: 'mem32', sizeBytes: MEMORY_BYTES },
    { index: 2, kind: 'mem32', sizeBytes: MEMORY_BYTES },
  ];
  readonly #registers = [IO_BYTES, MEMORY_BYTES, MEMORY_BYTES].map((size) => new DataView(new ArrayBuffer(size)));
  readonly #msi: Msi;

  constructor(env: PciEnv) {
    this.#msi = new Msi({ vectors: MSI_VECTORS }, env.msi);
  }

  configure(config: ConfigSpace): void {
    this.#msi.attach(config);
  }

  readBar(index: BarIndex, offset: number, size: AccessSize): number {
    const view = this.#registers[index];
    if (view === undefined || offset + size > view.byteLength) return allOnes(size);
    if (size === 1) return view.getUint8(offset);
    return size === 2 ? view.getUint16(offset, true) : view.getUint32(offset, true);
  }

  writeBar(index: BarIndex, offset: number, size: AccessSize, value: number): void {
    const view = this.#registers[index];
    if (view === undefined || offset + size > view.byteLength) return;
    if (size === 1) view.setUint8(offset, value);
    else if (size === 2) view.setUint16(offset, value, true);
    else view.setUint32(offset, value, true);
    if (index !== 0) return;
    const vectors = this.#msi.enabledVectors;
    if (offset === MSI_PORT && size === 4 && vectors > 0) this.#msi.signal(value % vectors);
    if (value === SEND_ALL) for (let vector = 0; vector < vectors; vector++) this.#msi.signal(vector);
  }

  reset(): void {
    for (const view of this.#registers) new Uint8Array(view.buffer).fill(0);
  }
}

export const dummy = definePciDriver({
  name: 'dummy',
  summary: 'registers without meaning, for tests',
  options: v.strictObject({}),
  create: (_options, env) => new Dummy(env),
});
