/** Keys and pointer of one client, to the guest's devices. */
import type { InputSink } from '../../input/input-hub.ts';
import { keyOfKeysym, keyOfScanCode, keysymOfKey } from '../../input/keysyms.ts';
import { pointerAt } from '../pointer.ts';
import type { Size } from '../rect.ts';
import { WheelButton } from './protocol.ts';

/** Buttons that are not the wheel's: left, middle, right as everywhere. */
const BUTTONS = 0x07;
/** Nobody has more fingers; a keyboard has about a hundred keys. */
const MAX_KEYS_DOWN = 128;

export class ClientInput {
  readonly #input: InputSink;
  /** By key, or the negative keysym of what is none: the keysym it went down with. */
  readonly #down = new Map<number, number>();
  #buttons = 0;
  #x = 0;
  #y = 0;
  #size: Size = { width: 1, height: 1 };

  constructor(input: InputSink) {
    this.#input = input;
  }

  /** @param scanCode of set 1, where the client knows which key it was: then its own layout does not matter */
  key(isDown: boolean, keysym: number, scanCode: number | undefined): void {
    const code = (scanCode === undefined ? 0 : keyOfScanCode(scanCode)) || keyOfKeysym(keysym);
    const id = code || -keysym;
    if (isDown ? this.#down.size >= MAX_KEYS_DOWN && !this.#down.has(id) : !this.#down.has(id)) return;
    if (isDown) this.#down.set(id, keysym);
    else this.#down.delete(id);
    this.#input.key({ code, keysym: keysymOfKey(code) || keysym, isDown });
  }

  /** @param size of the desktop */
  pointer(x: number, y: number, buttons: number, size: Size): void {
    const pressed = buttons & ~this.#buttons;
    const wheel = ((pressed & WheelButton.Up) !== 0 ? 1 : 0) - ((pressed & WheelButton.Down) !== 0 ? 1 : 0);
    this.#buttons = buttons;
    this.#size = size;
    this.#x = Math.min(x, size.width - 1);
    this.#y = Math.min(y, size.height - 1);
    this.#tell(buttons & BUTTONS, wheel);
  }

  /** The client is gone: nothing stays pressed. */
  release(): void {
    for (const [id, keysym] of this.#down) {
      const code = Math.max(id, 0);
      this.#input.key({ code, keysym: keysymOfKey(code) || keysym, isDown: false });
    }
    this.#down.clear();
    if ((this.#buttons & BUTTONS) !== 0) this.#tell(0, 0);
    this.#buttons = 0;
  }

  #tell(buttons: number, wheel: number): void {
    this.#input.pointer(pointerAt(this.#x, this.#y, this.#size, buttons, wheel));
  }
}
