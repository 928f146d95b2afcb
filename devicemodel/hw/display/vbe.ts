/**
 * The Bochs VBE registers and the frame buffer they show: how firmware and simple drivers get a picture.
 * Spec: QEMU, docs/specs/standard-vga, "Bochs dispi interface".
 */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { IoRegion } from '../../core/device.ts';
import { FrameBufferPicture } from './frame-buffer.ts';
import type { Size } from './rect.ts';

/** Registers by number, 16 bits each. */
const Reg = {
  Id: 0,
  Xres: 1,
  Yres: 2,
  Bpp: 3,
  Enable: 4,
  VirtWidth: 6,
  XOffset: 8,
  YOffset: 9,
  VideoMemory64k: 10,
  count: 11,
} as const;
export const VBE_BYTES = 2 * Reg.count;
const VBE_ID = 0xb0c0;
const ENABLED = 1 << 0;
/** The one format that there is. */
const BITS_PER_PIXEL = 32;

export class VbeRegisters implements IoRegion {
  readonly #regs = new Uint16Array(Reg.count);
  readonly #initial: Size;
  readonly #memoryBytes: number;
  readonly #onModeSet: (isEnabling: boolean) => void;

  /** @param onModeSet the picture may be another one now */
  constructor(initial: Size, memoryBytes: number, onModeSet: (isEnabling: boolean) => void) {
    this.#initial = initial;
    this.#memoryBytes = memoryBytes;
    this.#onModeSet = onModeSet;
    this.reset();
  }

  reset(): void {
    this.#regs.fill(0);
    this.#regs[Reg.Id] = VBE_ID;
    this.#regs[Reg.Xres] = this.#initial.width;
    this.#regs[Reg.Yres] = this.#initial.height;
    this.#regs[Reg.Bpp] = BITS_PER_PIXEL;
    this.#regs[Reg.VideoMemory64k] = this.#memoryBytes >>> 16;
  }

  /** @param offset in bytes. Whole registers and their halves; C answers dwords with 0. */
  read(offset: number, size: AccessSize): number {
    if (size === 4) return 0;
    if (size === 2 && (offset & 1) !== 0) return allOnes(2);
    const value = this.#reg(offset >> 1);
    return size === 2 ? value : (value >>> (8 * (offset & 1))) & 0xff;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 4 || (size === 2 && (offset & 1) !== 0)) return;
    const reg = offset >> 1;
    if (reg >= Reg.count || reg === Reg.VideoMemory64k) return;
    const before = this.#reg(reg);
    const shift = 8 * (offset & 1);
    const written = size === 2 ? value : (before & ~(0xff << shift)) | (value << shift);
    this.#regs[reg] = written;
    const isEnabling = reg === Reg.Enable && (written & ENABLED) !== 0 && (before & ENABLED) === 0;
    if (isEnabling) for (const cleared of [Reg.VirtWidth, Reg.XOffset, Reg.YOffset]) this.#regs[cleared] = 0;
    if (reg !== Reg.Id) this.#onModeSet(isEnabling);
  }

  get isEnabled(): boolean {
    return (this.#reg(Reg.Enable) & ENABLED) !== 0;
  }

  /** What of the frame buffer is shown, undefined while it is off or what is asked for is not in it. */
  picture(memory: Uint8Array): FrameBufferPicture | undefined {
    const width = this.#reg(Reg.Xres);
    const height = this.#reg(Reg.Yres);
    if (!this.isEnabled || this.#reg(Reg.Bpp) !== BITS_PER_PIXEL || width === 0 || height === 0) return undefined;
    const strideBytes = (BITS_PER_PIXEL / 8) * Math.max(width, this.#reg(Reg.VirtWidth));
    const offset = this.#reg(Reg.YOffset) * strideBytes + (BITS_PER_PIXEL / 8) * this.#reg(Reg.XOffset);
    if (offset + height * strideBytes > memory.length) return undefined;
    return new FrameBufferPicture(memory.subarray(offset), { width, height }, strideBytes);
  }

  #reg(index: number): number {
    return this.#regs[index] ?? 0xffff;
  }
}
