/**
 * What firmware and a guest without a driver draw on: a VGA and the Bochs VBE registers with their frame buffer, which
 * share one screen with the device they are part of. Who set a mode last has it.
 */
import type { AccessSize } from '../../../core/address.ts';
import type { IoRegion } from '../../../core/device.ts';
import { PIXEL_BYTES, type Picture, type Screen } from '../display.ts';
import { BGRX, readPixels } from '../formats.ts';
import type { Rect, Size } from '../rect.ts';
import { VBE_BANK_BYTES, VbeRegisters } from '../vbe.ts';
import { VgaMemory } from './memory.ts';
import { VgaRegisters } from './registers.ts';
import { paletteOf, renderVga, vgaSize } from './renderer.ts';

export class VgaAdapter {
  readonly vbe: VbeRegisters;
  /** Planes; with VBE on, a bank of the frame buffer. */
  readonly window: IoRegion = {
    read: (offset, size) => (this.vbe.isEnabled ? this.#readBank(offset, size) : this.#memory.read(offset, size)),
    write: (offset, size, value) => {
      if (this.vbe.isEnabled) this.#writeBank(offset, size, value);
      else this.#memory.write(offset, size, value);
    },
  };
  readonly #registers = new VgaRegisters(() => this.#changed());
  readonly #memory = new VgaMemory(this.#registers, () => this.#changed());
  #frameBuffer: Uint8Array = new Uint8Array(0);
  #screen: Screen | undefined;
  /** It is ours to draw on, and nobody else's. */
  #isShown = true;
  #text: VgaPicture | undefined;

  /** @param memoryBytes of the frame buffer */
  constructor(initial: Size, memoryBytes: number) {
    this.vbe = new VbeRegisters(initial, memoryBytes, ({ isEnabling, clearedBytes }) => {
      if (isEnabling) this.#isShown = true;
      this.#frameBuffer.fill(0, 0, clearedBytes);
      this.#choose();
    });
  }

  get ports(): IoRegion {
    return this.#registers;
  }

  #readBank(offset: number, size: AccessSize): number {
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 0x100 + (this.#frameBuffer[this.#inBank(offset + i)] ?? 0xff);
    return value;
  }

  #writeBank(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const at = this.#inBank(offset + i);
      if (at < this.#frameBuffer.length) this.#frameBuffer[at] = (value >>> (8 * i)) & 0xff;
    }
  }

  /** @returns beyond the frame buffer where the window has no bank */
  #inBank(offset: number): number {
    return offset < VBE_BANK_BYTES ? this.vbe.bankOffset + offset : Number.POSITIVE_INFINITY;
  }

  /** Whether this, and not the driver of the device, has the screen. */
  get isShown(): boolean {
    return this.#isShown;
  }

  /** @param screen undefined: unplugged */
  plugIn(screen: Screen | undefined, frameBuffer: Uint8Array): void {
    // What it shows may be of memory that goes away now.
    if (this.#isShown && frameBuffer !== this.#frameBuffer) this.#screen?.show(undefined);
    this.#screen = screen;
    this.#frameBuffer = frameBuffer;
    this.#choose();
  }

  /** Somebody else has the screen now. */
  hide(): void {
    this.#isShown = false;
    this.#text = undefined;
  }

  /** The driver let go of it. */
  showAgain(): void {
    this.#isShown = true;
    this.#choose();
  }

  reset(): void {
    this.#registers.reset();
    this.#memory.reset();
    this.vbe.reset();
    this.showAgain();
  }

  #choose(): void {
    if (!this.#isShown || this.#screen === undefined) return;
    this.#text = undefined;
    const size = vgaSize(this.#registers);
    const picture = this.vbe.picture(this.#frameBuffer, () => paletteOf(this.#registers));
    if (picture !== undefined) this.#screen.show(picture);
    else if (size === undefined || this.vbe.isEnabled) this.#screen.show(undefined);
    else {
      this.#text = new VgaPicture(this.#registers, this.#memory.planes, size);
      this.#screen.show(this.#text);
    }
  }

  /** A register or a byte of the window was written. */
  #changed(): void {
    if (!this.#isShown || this.vbe.isEnabled) return;
    const size = vgaSize(this.#registers);
    const text = this.#text;
    if (text === undefined ? size !== undefined : size?.width !== text.width || size.height !== text.height) {
      this.#choose();
    } else text?.touch();
  }
}

/** Drawn when somebody looks, if something was written since the last time. */
class VgaPicture implements Picture {
  readonly width: number;
  readonly height: number;
  readonly #registers: VgaRegisters;
  readonly #planes: Uint8Array;
  /** Made at the first look: a guest may set modes faster than anybody looks. */
  #pixels: Uint8Array | undefined;
  #before: Uint8Array | undefined;
  #isTouched = true;

  constructor(registers: VgaRegisters, planes: Uint8Array, { width, height }: Size) {
    this.#registers = registers;
    this.#planes = planes;
    this.width = width;
    this.height = height;
  }

  touch(): void {
    this.#isTouched = true;
  }

  read(rect: Rect, into: Uint8Array, at: number, strideBytes: number): void {
    if (this.#pixels === undefined) return;
    const memory = { bytes: this.#pixels, offset: 0, strideBytes: this.width * PIXEL_BYTES, format: BGRX };
    readPixels(memory, rect, into, at, strideBytes);
  }

  poll(damaged: (rect: Rect) => void): void {
    if (!this.#isTouched) return;
    this.#isTouched = false;
    const rowBytes = this.width * PIXEL_BYTES;
    const pixels = this.#before ?? new Uint8Array(this.height * rowBytes);
    const before = this.#pixels ?? new Uint8Array(this.height * rowBytes);
    this.#pixels = pixels;
    this.#before = before;
    renderVga(this.#registers, this.#planes, this, pixels);
    for (let y = 0; y < this.height; y++) {
      const row = (bytes: Uint8Array) => bytes.subarray(y * rowBytes, (y + 1) * rowBytes);
      if (Buffer.compare(row(pixels), row(before)) !== 0) {
        damaged({ x: 0, y, width: this.width, height: 1 });
      }
    }
  }
}
