/**
 * The 256 KiB of a VGA behind its window at 0xa0000: four planes, written and read through the graphics controller.
 * Spec: IBM PS/2 Hardware Interface Technical Reference, "Video Subsystem", Graphics Controller.
 */
import type { AccessSize } from '../../../core/address.ts';
import type { IoRegion } from '../../../core/device.ts';
import { KiB } from '../../../core/units.ts';
import { Graphics, GraphicsBit, Sequencer, SequencerBit, type VgaRegisters } from './registers.ts';

export const VGA_WINDOW = { base: 0xa_0000, size: 128 * KiB } as const;
export const PLANE_BYTES = 64 * KiB;
const PLANES = 4;

/** Where the memory is in the window, by bits 3:2 of the miscellaneous register: offset and size. */
const MAPS = [
  { offset: 0, size: 128 * KiB },
  { offset: 0, size: 64 * KiB },
  { offset: 0x1_0000, size: 32 * KiB },
  { offset: 0x1_8000, size: 32 * KiB },
] as const;

/** Bits 4:3 of the data rotate register. */
const Operation = { Replace: 0, And: 1, Or: 2, Xor: 3 } as const;

export class VgaMemory implements IoRegion {
  /** Plane by plane. */
  readonly planes = new Uint8Array(PLANES * PLANE_BYTES);
  readonly #registers: VgaRegisters;
  readonly #latch = new Uint8Array(PLANES);
  readonly #onWritten: () => void;

  constructor(registers: VgaRegisters, onWritten: () => void) {
    this.#registers = registers;
    this.#onWritten = onWritten;
  }

  reset(): void {
    this.planes.fill(0);
    this.#latch.fill(0);
  }

  read(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 0x100 + this.#readByte(offset + i);
    return value;
  }

  write(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) this.#writeByte(offset + i, (value >>> (8 * i)) & 0xff);
    this.#onWritten();
  }

  /** Where the byte is in the part of the window that is mapped, or -1. */
  #address(offset: number): number {
    const misc = this.#registers.graphics[Graphics.Miscellaneous] as number;
    const map = MAPS[(misc >> 2) & 3] as (typeof MAPS)[number];
    const at = offset - map.offset;
    return at >= 0 && at < map.size ? at % PLANE_BYTES : -1;
  }

  get #isChainFour(): boolean {
    return ((this.#registers.sequencer[Sequencer.MemoryMode] as number) & SequencerBit.ChainFour) !== 0;
  }

  #readByte(offset: number): number {
    const { graphics } = this.#registers;
    let at = this.#address(offset);
    if (at < 0) return 0xff;
    if (this.#isChainFour) return this.planes[(at & 3) * PLANE_BYTES + (at & ~3)] as number;
    const mode = graphics[Graphics.Mode] as number;
    let plane = (graphics[Graphics.ReadMapSelect] as number) & 3;
    if ((mode & GraphicsBit.OddEven) !== 0) {
      plane = (plane & 2) | (at & 1);
      at &= ~1;
    }
    for (let i = 0; i < PLANES; i++) this.#latch[i] = this.planes[i * PLANE_BYTES + at] as number;
    return (mode & GraphicsBit.ReadMode1) === 0 ? (this.#latch[plane] as number) : this.#compared();
  }

  /** Read mode 1: a bit for each pixel whose colour is the one asked for. Compat: C does not have it. */
  #compared(): number {
    const { graphics } = this.#registers;
    let same = 0xff;
    for (let i = 0; i < PLANES; i++) {
      if (((graphics[Graphics.ColorDontCare] as number) & (1 << i)) === 0) continue;
      const wanted = ((graphics[Graphics.ColorCompare] as number) & (1 << i)) !== 0 ? 0xff : 0;
      same &= ~((this.#latch[i] as number) ^ wanted);
    }
    return same & 0xff;
  }

  #writeByte(offset: number, value: number): void {
    const { graphics, sequencer } = this.#registers;
    let at = this.#address(offset);
    if (at < 0) return;
    let mask = (sequencer[Sequencer.MapMask] as number) & 0xf;
    if (this.#isChainFour) {
      if ((mask & (1 << (at & 3))) !== 0) this.planes[(at & 3) * PLANE_BYTES + (at & ~3)] = value;
      return;
    }
    if (((graphics[Graphics.Mode] as number) & GraphicsBit.OddEven) !== 0) {
      mask &= (at & 1) !== 0 ? 0b1010 : 0b0101;
      at &= ~1;
    }
    for (let i = 0; i < PLANES; i++) {
      if ((mask & (1 << i)) !== 0) this.planes[i * PLANE_BYTES + at] = this.#combined(i, value);
    }
  }

  /** What a plane gets when the guest writes `value` (write modes 0 to 3). */
  #combined(plane: number, value: number): number {
    const { graphics } = this.#registers;
    const bit = 1 << plane;
    const latch = this.#latch[plane] as number;
    const mode = (graphics[Graphics.Mode] as number) & 3;
    if (mode === 1) return latch;
    const rotate = graphics[Graphics.DataRotate] as number;
    const rotated = ((value >> (rotate & 7)) | (value << (8 - (rotate & 7)))) & 0xff;
    const fill = ((graphics[Graphics.SetReset] as number) & bit) !== 0 ? 0xff : 0;
    let mask = graphics[Graphics.BitMask] as number;
    let data: number;
    if (mode === 0) data = ((graphics[Graphics.EnableSetReset] as number) & bit) !== 0 ? fill : rotated;
    else if (mode === 2) data = (value & bit) !== 0 ? 0xff : 0;
    else {
      data = fill;
      mask &= rotated;
    }
    switch ((rotate >> 3) & 3) {
      case Operation.And:
        data &= latch;
        break;
      case Operation.Or:
        data |= latch;
        break;
      case Operation.Xor:
        data ^= latch;
        break;
      default:
        break;
    }
    return ((data & mask) | (latch & ~mask)) & 0xff;
  }
}
