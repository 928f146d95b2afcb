/**
 * PS/2 keyboard, scan code set 2, US layout.
 * Spec: IBM PS/2 Hardware Interface Technical Reference, "Keyboards (101- and 102-key)"; key names are X11 keysyms, as
 * a remote display sends them.
 */
import { ByteFifo } from './byte-fifo.ts';

/** Commands from the system. */
const Command = {
  SetLeds: 0xed,
  Echo: 0xee,
  ScanCodeSet: 0xf0,
  ReadId: 0xf2,
  SetTypematic: 0xf3,
  Enable: 0xf4,
  DefaultDisable: 0xf5,
  SetDefault: 0xf6,
  /** 0xf7..0xfd set key types, which only scan code set 3 has. */
  FirstSet3: 0xf7,
  LastSet3: 0xfd,
  Resend: 0xfe,
  Reset: 0xff,
} as const;
/** Answers. */
const Answer = { SelfTestPassed: 0xaa, Ack: 0xfa, Resend: 0xfe } as const;
const KEYBOARD_ID: readonly number[] = [0xab, 0x83];
const SCAN_CODE_SET = 2;

const BREAK_PREFIX = 0xf0;
const EXTENDED_PREFIX = 0xe0;
/** Marks an extended key in the tables below. */
const EXTENDED = 0x100;

const QUEUE_BYTES = 16;

/** Set 2 make code, then the characters on the key. */
const CHARACTER_KEYS: readonly (readonly [number, string])[] = [
  [0x0e, '`~'],
  [0x16, '1!'],
  [0x1e, '2@'],
  [0x26, '3#'],
  [0x25, '4$'],
  [0x2e, '5%'],
  [0x36, '6^'],
  [0x3d, '7&'],
  [0x3e, '8*'],
  [0x46, '9('],
  [0x45, '0)'],
  [0x4e, '-_'],
  [0x55, '=+'],
  [0x15, 'qQ'],
  [0x1d, 'wW'],
  [0x24, 'eE'],
  [0x2d, 'rR'],
  [0x2c, 'tT'],
  [0x35, 'yY'],
  [0x3c, 'uU'],
  [0x43, 'iI'],
  [0x44, 'oO'],
  [0x4d, 'pP'],
  [0x54, '[{'],
  [0x5b, ']}'],
  [0x5d, '\\|'],
  [0x1c, 'aA'],
  [0x1b, 'sS'],
  [0x23, 'dD'],
  [0x2b, 'fF'],
  [0x34, 'gG'],
  [0x33, 'hH'],
  [0x3b, 'jJ'],
  [0x42, 'kK'],
  [0x4b, 'lL'],
  [0x4c, ';:'],
  [0x52, '\'"'],
  [0x1a, 'zZ'],
  [0x22, 'xX'],
  [0x21, 'cC'],
  [0x2a, 'vV'],
  [0x32, 'bB'],
  [0x31, 'nN'],
  [0x3a, 'mM'],
  [0x41, ',<'],
  [0x49, '.>'],
  [0x4a, '/?'],
  [0x29, ' '],
];

/** Keysym, set 2 make code. */
const NAMED_KEYS: readonly (readonly [number, number])[] = [
  [0xff08, 0x66], // BackSpace
  [0xff09, 0x0d], // Tab
  [0xff0d, 0x5a], // Return
  [0xff14, 0x7e], // Scroll_Lock
  [0xff1b, 0x76], // Escape
  [0xff50, EXTENDED | 0x6c], // Home
  [0xff51, EXTENDED | 0x6b], // Left
  [0xff52, EXTENDED | 0x75], // Up
  [0xff53, EXTENDED | 0x74], // Right
  [0xff54, EXTENDED | 0x72], // Down
  [0xff55, EXTENDED | 0x7d], // Page_Up
  [0xff56, EXTENDED | 0x7a], // Page_Down
  [0xff57, EXTENDED | 0x69], // End
  [0xff63, EXTENDED | 0x70], // Insert
  [0xff67, EXTENDED | 0x2f], // Menu
  [0xff7f, 0x77], // Num_Lock
  [0xff8d, EXTENDED | 0x5a], // KP_Enter
  [0xffaa, 0x7c], // KP_Multiply
  [0xffab, 0x79], // KP_Add
  [0xffad, 0x7b], // KP_Subtract
  [0xffae, 0x71], // KP_Decimal
  [0xffaf, EXTENDED | 0x4a], // KP_Divide
  [0xffb0, 0x70], // KP_0
  [0xffb1, 0x69],
  [0xffb2, 0x72],
  [0xffb3, 0x7a],
  [0xffb4, 0x6b],
  [0xffb5, 0x73],
  [0xffb6, 0x74],
  [0xffb7, 0x6c],
  [0xffb8, 0x75],
  [0xffb9, 0x7d], // KP_9
  [0xffbe, 0x05], // F1
  [0xffbf, 0x06],
  [0xffc0, 0x04],
  [0xffc1, 0x0c],
  [0xffc2, 0x03],
  [0xffc3, 0x0b],
  [0xffc4, 0x83],
  [0xffc5, 0x0a],
  [0xffc6, 0x01],
  [0xffc7, 0x09],
  [0xffc8, 0x78],
  [0xffc9, 0x07], // F12
  [0xffe1, 0x12], // Shift_L
  [0xffe2, 0x59], // Shift_R
  [0xffe3, 0x14], // Control_L
  [0xffe4, EXTENDED | 0x14], // Control_R
  [0xffe5, 0x58], // Caps_Lock
  [0xffe7, EXTENDED | 0x1f], // Meta_L
  [0xffe8, EXTENDED | 0x27], // Meta_R
  [0xffe9, 0x11], // Alt_L
  [0xffea, EXTENDED | 0x11], // Alt_R
  [0xfe03, EXTENDED | 0x11], // ISO_Level3_Shift
  [0xffeb, EXTENDED | 0x1f], // Super_L
  [0xffec, EXTENDED | 0x27], // Super_R
  [0xffff, EXTENDED | 0x71], // Delete
];

const makeCodes: ReadonlyMap<number, number> = new Map([
  ...CHARACTER_KEYS.flatMap(([code, keys]) => [...keys].map((key) => [key.charCodeAt(0), code] as const)),
  ...NAMED_KEYS,
]);

export class Ps2Keyboard {
  readonly #queue = new ByteFifo(QUEUE_BYTES);
  readonly #onData: () => void;
  #isScanning = false;
  /** The command whose argument comes next, 0 for none. */
  #command = 0;
  #leds = 0;
  #lastSent = 0;

  /** @param onData a key put bytes into the queue; answers to commands do not call it. */
  constructor(onData: () => void) {
    this.#onData = onData;
  }

  reset(): void {
    this.#queue.clear();
    this.#isScanning = false;
    this.#command = 0;
    this.#leds = 0;
    this.#lastSent = 0;
  }

  /** Scroll, num and caps lock in bits 0, 1, 2. */
  get leds(): number {
    return this.#leds;
  }

  /**
   * A key went down or up.
   * @param keysym X11 keysym; unknown ones are ignored.
   * @returns false if the guest does not see it: keyboard off, unknown key, or the queue is full.
   */
  key(keysym: number, isDown: boolean): boolean {
    const code = makeCodes.get(keysym);
    if (code === undefined) return false;
    const bytes: number[] = [];
    if (code >= EXTENDED) bytes.push(EXTENDED_PREFIX);
    if (!isDown) bytes.push(BREAK_PREFIX);
    bytes.push(code & 0xff);
    return this.scan(bytes);
  }

  /** Scan codes of set 2 as they are. All of them or none, so that no prefix is ever left alone. */
  scan(bytes: readonly number[]): boolean {
    if (!this.#isScanning || !this.#queue.pushAll(bytes)) return false;
    this.#onData();
    return true;
  }

  /** The next byte for the controller, or -1. */
  read(): number {
    const byte = this.#queue.shift();
    if (byte >= 0) this.#lastSent = byte;
    return byte;
  }

  /** A byte from the controller. */
  write(byte: number): void {
    const command = this.#command;
    if (command !== 0) {
      this.#command = 0;
      this.#argument(command, byte);
      return;
    }
    switch (byte) {
      case 0x00: // Compat: acknowledged by the C device model
        this.#queue.push(Answer.Ack);
        break;
      case Command.Reset:
        this.#queue.clear();
        this.#leds = 0;
        this.#queue.push(Answer.Ack);
        this.#queue.push(Answer.SelfTestPassed);
        break;
      case Command.Resend:
        this.#queue.push(this.#lastSent);
        break;
      case Command.DefaultDisable:
        this.#isScanning = false;
        this.#queue.push(Answer.Ack);
        break;
      case Command.Enable:
        this.#isScanning = true;
        this.#queue.clear();
        this.#queue.push(Answer.Ack);
        break;
      case Command.ReadId:
        this.#queue.push(Answer.Ack);
        this.#queue.pushAll(KEYBOARD_ID);
        break;
      case Command.Echo:
        this.#queue.push(Command.Echo);
        break;
      case Command.SetLeds:
      case Command.ScanCodeSet:
      case Command.SetTypematic:
        this.#command = byte;
        this.#queue.push(Answer.Ack);
        break;
      default:
        // Compat: the C device model leaves these without an answer, and a driver waits for its timeout.
        this.#queue.push(
          byte === Command.SetDefault || (byte >= Command.FirstSet3 && byte <= Command.LastSet3)
            ? Answer.Ack
            : Answer.Resend,
        );
    }
  }

  #argument(command: number, byte: number): void {
    this.#queue.push(Answer.Ack);
    if (command === Command.SetLeds) this.#leds = byte & 7;
    // Argument 0 asks which set is in use. Compat: the C device model only acknowledges.
    if (command === Command.ScanCodeSet && byte === 0) this.#queue.push(SCAN_CODE_SET);
  }
}
