/**
 * Which accesses of a guest are for functions that the hypervisor emulates, where those have a thread of their own: words
 * that every thread of the VM reads. Whoever has the functions writes them ({@link AccessMap}), before it answers the
 * access that changes something; a vCPU's thread and the device thread only look ({@link isForFunction}).
 *
 * A look in the middle of a change may find a BAR that moves at neither place, as on a bus; a guest that waits for its
 * write finds it. Who is asked in vain passes the access on.
 */
import { type Bdf, bdfToNumber, type Gpa } from '../../devicemodel/core/address.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import type { VirtualFunction } from './virtual-function.ts';

/** Of the words: the register at port CF8, a bit for each function, then lists with their lengths. */
export const MapWord = {
  configAddress: 0,
  bridgeCount: 1,
  rangeCount: 2,
  functions: 8,
  /** Each: number of the bus below at power-on, and as the guest has it now. */
  bridges: 8 + 2048,
  /** Each: low half and high half of the base, bytes (0: nothing is there). */
  ranges: 8 + 2048 + 64,
} as const;
const MAX_BRIDGES = 32;
/** Two register BARs of every function there can be on bus 0. */
const MAX_RANGES = 512;
const WORDS = MapWord.ranges + 3 * MAX_RANGES;
const TWO_32 = 0x1_0000_0000;

/**
 * Whether an access to a port or to a guest-physical address is for such a function. Part of what a vCPU's thread runs:
 * it must not use anything outside itself.
 */
export function isForFunction(words: Int32Array, isPort: boolean, address: number): boolean {
  // MapWord, ConfigPort, Layout.ecam.
  const [CONFIG_ADDRESS, BRIDGE_COUNT, RANGE_COUNT, FUNCTIONS, BRIDGES, RANGES] = [0, 1, 2, 8, 2056, 2120] as const;
  const [CONFIG_DATA, CONFIG_END, ECAM, ECAM_END] = [0xcfc, 0xd00, 0xe000_0000, 0xf000_0000] as const;
  let bdf = 0;
  if (isPort) {
    if (address < CONFIG_DATA || address >= CONFIG_END) return false;
    const selected = Atomics.load(words, CONFIG_ADDRESS);
    if (selected >= 0) return false; // bit 31 enables
    bdf = (selected >>> 8) & 0xffff;
  } else if (address >= ECAM && address < ECAM_END) {
    bdf = Math.floor((address - ECAM) / 4096);
  } else {
    for (let n = Atomics.load(words, RANGE_COUNT) - 1; n >= 0; n--) {
      const at = RANGES + 3 * n;
      const base = (Atomics.load(words, at) >>> 0) + (Atomics.load(words, at + 1) >>> 0) * 0x1_0000_0000;
      if (address >= base && address < base + Atomics.load(words, at + 2)) return true;
    }
    return false;
  }
  const bridges = Atomics.load(words, BRIDGE_COUNT);
  if (bdf >= 0x100 && bridges > 0) {
    let first = -1;
    for (let n = bridges - 1; n >= 0; n--) {
      const at = BRIDGES + 2 * n;
      if (Atomics.load(words, at + 1) === bdf >>> 8) first = Atomics.load(words, at);
    }
    if (first < 0) return false;
    bdf = (first << 8) | (bdf & 0xff);
  }
  return ((Atomics.load(words, FUNCTIONS + (bdf >>> 5)) >>> (bdf & 31)) & 1) !== 0;
}

/** Number of the bus below a bridge as the guest has it now. @param first its number at power-on. */
export function secondaryBusOf(words: Int32Array, first: number): number {
  for (let n = Atomics.load(words, MapWord.bridgeCount) - 1; n >= 0; n--) {
    const at = MapWord.bridges + 2 * n;
    if (Atomics.load(words, at) === first) return Atomics.load(words, at + 1);
  }
  return first;
}

/** As {@link AccessMap.words}, with nothing in them. */
export function accessMapWords(): Int32Array {
  return new Int32Array(new SharedArrayBuffer(4 * WORDS));
}

/** The words, for the one thread that writes them. */
export class AccessMap {
  readonly words: Int32Array;

  constructor(words: Int32Array) {
    this.words = words;
  }

  addFunction(bdf: Bdf): void {
    const number = bdfToNumber(bdf);
    Atomics.or(this.words, MapWord.functions + (number >>> 5), 1 << (number & 31));
  }

  removeFunction(bdf: Bdf): void {
    const number = bdfToNumber(bdf);
    Atomics.and(this.words, MapWord.functions + (number >>> 5), ~(1 << (number & 31)));
  }

  /** In the order in which they are asked. @throws HostError ENOSPC */
  setBridges(bridges: readonly VirtualFunction[]): void {
    if (bridges.length > MAX_BRIDGES) throw new HostError(`a VM has at most ${MAX_BRIDGES} root ports`, Errno.ENOSPC);
    for (const [n, { bridge }] of bridges.entries()) {
      const at = MapWord.bridges + 2 * n;
      Atomics.store(this.words, at, bridge?.firstSecondaryBus ?? -1);
      Atomics.store(this.words, at + 1, bridge?.secondaryBus ?? -1);
    }
    Atomics.store(this.words, MapWord.bridgeCount, bridges.length);
  }

  /** @throws HostError ENOSPC */
  addRange(base: Gpa, sizeBytes: number): { dispose(): void } {
    const { words } = this;
    const count = Atomics.load(words, MapWord.rangeCount);
    let n = 0;
    while (n < count && Atomics.load(words, MapWord.ranges + 3 * n + 2) !== 0) n++;
    if (n === MAX_RANGES) throw new HostError(`a VM has at most ${MAX_RANGES} BARs of this kind`, Errno.ENOSPC);
    const at = MapWord.ranges + 3 * n;
    Atomics.store(words, at, (base % TWO_32) | 0);
    Atomics.store(words, at + 1, Math.floor(base / TWO_32) | 0);
    Atomics.store(words, at + 2, sizeBytes);
    if (n === count) Atomics.store(words, MapWord.rangeCount, count + 1);
    return { dispose: () => void Atomics.store(words, at + 2, 0) };
  }
}
