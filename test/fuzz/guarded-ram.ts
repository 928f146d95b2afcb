/**
 * Guest RAM between guard bytes. System calls work on addresses: one that is wrong by a byte would change a guard (the
 * host wrote there) or carry guard bytes to where the test sees them (the host read there).
 */
import type { Gpa } from '../../devicemodel/core/address.ts';
import { type Mapping, map } from '../../devicemodel/core/host/mapping.ts';
import { GuestMemory } from '../../devicemodel/core/memory.ts';

/** Small, so that random addresses often hit; two chunks that touch, and one far up. */
const LAYOUT: ReadonlyArray<readonly [Gpa, number]> = [
  [0, 0x20000],
  [0x20000, 0x20000],
  [0x1_0000_0000, 0x10000],
];
const GUARD_BYTES = 4096;
/** Nothing a guest here writes by chance. */
const GUARD_MARK = Buffer.from('outside of guest RAM!!!!', 'latin1');
const guard = Buffer.alloc(GUARD_BYTES, GUARD_MARK);

export class GuardedRam {
  readonly memory: GuestMemory;
  readonly #mappings: Mapping[] = [];

  /** @param viewsOnly RAM that has no address, and hears of what the host writes */
  constructor(viewsOnly = false) {
    this.memory = new GuestMemory(
      LAYOUT.map(([base, size]) => {
        const mapping = map(size + 2 * GUARD_BYTES, 'RAM of the fuzzed guest');
        this.#mappings.push(mapping);
        mapping.bytes.set(guard, 0);
        mapping.bytes.set(guard, GUARD_BYTES + size);
        const bytes = mapping.bytes.subarray(GUARD_BYTES, GUARD_BYTES + size);
        if (!viewsOnly) return { base, bytes, hostAddress: mapping.address + BigInt(GUARD_BYTES) };
        const onHostWrite = (at: Gpa, length: number) => {
          if (!(at >= base && length >= 0 && at + length <= base + size)) throw new Error(`a write at ${at}+${length}`);
        };
        return { base, bytes, hostAddress: undefined, onHostWrite };
      }),
    );
  }

  /** @throws Error if the host wrote outside of RAM. */
  check(): void {
    for (const { bytes } of this.#mappings) {
      const isWhole = (from: number) => guard.equals(bytes.subarray(from, from + GUARD_BYTES));
      if (!isWhole(0) || !isWhole(bytes.length - GUARD_BYTES))
        throw new Error('memory outside of guest RAM was written');
    }
  }

  dispose(): void {
    for (const mapping of this.#mappings.splice(0)) mapping.dispose();
  }
}

/** @throws Error if bytes that left the guest came from outside of its RAM. */
export function checkLeak(bytes: Uint8Array, where: string): void {
  if (Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).includes(GUARD_MARK)) {
    throw new Error(`${where}: memory outside of guest RAM was read`);
  }
}
