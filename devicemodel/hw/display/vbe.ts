/**
 * The Bochs VBE registers and the frame buffer they show: how firmware and simple drivers get a picture.
 * Spec: QEMU, docs/specs/standard-vga, "Bochs dispi interface"; Bochs, "VBE Display API".
 */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { IoRegion } from '../../core/device.ts';
import { FrameBufferPicture } from './frame-buffer.ts';
import { type FrameBufferFormat, frameBufferFormat } from './frame-buffer-formats.ts';
import type { Size } from './rect.ts';

/** Registers by number, 16 bits each. */
const Reg = {
  Id: 0,
  Xres: 1,
  Yres: 2,
  Bpp: 3,
  Enable: 4,
  Bank: 5,
  VirtWidth: 6,
  XOffset: 8,
  YOffset: 9,
  VideoMemory64k: 10,
  count: 11,
} as const;
export const VBE_BYTES = 2 * Reg.count;
/** Index and data, of 16 bits each; data may be at the odd or at the even port. */
export const VBE_PORTS = { base: 0x1ce, size: 3 } as const;
const VBE_ID = 0xb0c0;
/** Of {@link Reg.Enable}. */
const EnableBit = {
  Enabled: 1 << 0,
  /** Xres, Yres and Bpp read as the largest there are. */
  Capabilities: 1 << 1,
  /** Palette of 8 bits a colour. There is none, and the bit stays 0. */
  EightBitPalette: 1 << 5,
  /** What is in the frame buffer stays. */
  NoClear: 1 << 7,
} as const;
const MAX_BITS_PER_PIXEL = 32;
/** How much of it there is memory for is another register. */
const MAX_SIZE: Size = { width: 3840, height: 2160 };
/** Of the frame buffer in the VGA's window. */
export const VBE_BANK_BYTES = 0x1_0000;

/** What a register says while the capabilities are shown. */
const CAPABILITIES: Readonly<Record<number, number>> = {
  [Reg.Xres]: MAX_SIZE.width,
  [Reg.Yres]: MAX_SIZE.height,
  [Reg.Bpp]: MAX_BITS_PER_PIXEL,
};

export interface VbeChange {
  readonly isEnabling: boolean;
  /** Of the frame buffer, from its begin. */
  readonly clearedBytes: number;
}

/** How the mode's pixels are arranged. */
interface Mode extends Size {
  readonly format: FrameBufferFormat;
  readonly strideBytes: number;
}

export class VbeRegisters implements IoRegion {
  /** The same registers behind an index. Compat: VGA BIOSes use these; C has them in the BAR alone. */
  readonly ports: IoRegion = {
    read: (offset, size) => this.#readPort(offset, size),
    write: (offset, size, value) => this.#writePort(offset, size, value),
  };
  readonly #regs = new Uint16Array(Reg.count);
  readonly #initial: Size;
  readonly #memoryBytes: number;
  readonly #onModeSet: (change: VbeChange) => void;
  #index = 0;

  /** @param onModeSet the picture may be another one now */
  constructor(initial: Size, memoryBytes: number, onModeSet: (change: VbeChange) => void) {
    this.#initial = initial;
    this.#memoryBytes = memoryBytes;
    this.#onModeSet = onModeSet;
    this.reset();
  }

  reset(): void {
    this.#index = 0;
    this.#regs.fill(0);
    this.#regs[Reg.Id] = VBE_ID;
    this.#regs[Reg.Xres] = this.#initial.width;
    this.#regs[Reg.Yres] = this.#initial.height;
    this.#regs[Reg.Bpp] = MAX_BITS_PER_PIXEL;
    this.#regs[Reg.VideoMemory64k] = this.#memoryBytes >>> 16;
  }

  /** @param offset in bytes. Whole registers and their halves; C answers dwords with 0. */
  read(offset: number, size: AccessSize): number {
    if (size === 4) return 0;
    if (size === 2 && (offset & 1) !== 0) return allOnes(2);
    const value = this.#shown(offset >> 1);
    return size === 2 ? value : (value >>> (8 * (offset & 1))) & 0xff;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (size === 4 || (size === 2 && (offset & 1) !== 0)) return;
    const reg = offset >> 1;
    const shift = 8 * (offset & 1);
    this.#set(reg, size === 2 ? value : (this.#reg(reg) & ~(0xff << shift)) | (value << shift));
  }

  #readPort(offset: number, size: AccessSize): number {
    if (size !== 2) return allOnes(size);
    if (offset === 0) return this.#index;
    // A BIOS divides by it. Compat: in the BAR it is 0 until the guest sets one, as with C.
    return this.#index === Reg.VirtWidth && this.isEnabled ? this.#lineWidth : this.#shown(this.#index);
  }

  #writePort(offset: number, size: AccessSize, value: number): void {
    if (size !== 2) return;
    if (offset === 0) this.#index = value;
    else this.#set(this.#index, value);
  }

  #set(reg: number, value: number): void {
    if (reg >= Reg.count || reg === Reg.VideoMemory64k) return;
    const before = this.#reg(reg);
    this.#regs[reg] = reg === Reg.Enable ? value & ~EnableBit.EightBitPalette : value;
    const isOn = (word: number) => (word & EnableBit.Enabled) !== 0;
    const isEnabling = reg === Reg.Enable && isOn(value) && !isOn(before);
    if (isEnabling) for (const cleared of [Reg.Bank, Reg.VirtWidth, Reg.XOffset, Reg.YOffset]) this.#regs[cleared] = 0;
    if (reg === Reg.Id || reg === Reg.Bank) return;
    const isKept = !isEnabling || (value & EnableBit.NoClear) !== 0;
    this.#onModeSet({ isEnabling, clearedBytes: isKept ? 0 : this.#modeBytes });
  }

  get isEnabled(): boolean {
    return (this.#reg(Reg.Enable) & EnableBit.Enabled) !== 0;
  }

  /** Where in the frame buffer the 64 KiB are that the VGA's window shows meanwhile. */
  get bankOffset(): number {
    return this.#reg(Reg.Bank) * VBE_BANK_BYTES;
  }

  /**
   * What of the frame buffer is shown, undefined while it is off or what is asked for is not in it.
   * @param palette colours as 32-bit pixels, for modes of 256
   */
  picture(memory: Uint8Array, palette: () => Uint32Array): FrameBufferPicture | undefined {
    const mode = this.isEnabled ? this.#mode(palette) : undefined;
    if (mode === undefined) return undefined;
    const offset = this.#reg(Reg.YOffset) * mode.strideBytes + this.#reg(Reg.XOffset) * mode.format.pixelBytes;
    if (offset + mode.height * mode.strideBytes > memory.length) return undefined;
    return new FrameBufferPicture(memory.subarray(offset), mode, mode.strideBytes, mode.format);
  }

  #mode(palette: () => Uint32Array): Mode | undefined {
    const width = this.#reg(Reg.Xres);
    const height = this.#reg(Reg.Yres);
    const format = frameBufferFormat(this.#reg(Reg.Bpp), palette);
    if (format === undefined || width === 0 || height === 0) return undefined;
    return { width, height, format, strideBytes: format.pixelBytes * this.#lineWidth };
  }

  /** In the frame buffer, as far as it reaches. */
  get #modeBytes(): number {
    const mode = this.#mode(() => new Uint32Array(0));
    return mode === undefined ? 0 : Math.min(mode.height * mode.strideBytes, this.#memoryBytes);
  }

  /** In pixels. */
  get #lineWidth(): number {
    return Math.max(this.#reg(Reg.Xres), this.#reg(Reg.VirtWidth));
  }

  #shown(reg: number): number {
    const isCapability = (this.#reg(Reg.Enable) & EnableBit.Capabilities) !== 0;
    return (isCapability ? CAPABILITIES[reg] : undefined) ?? this.#reg(reg);
  }

  #reg(index: number): number {
    return this.#regs[index] ?? 0xffff;
  }
}
