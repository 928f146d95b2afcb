import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { PioBus } from '../../../devicemodel/core/io-bus.ts';
import { I8042 } from '../../../devicemodel/hw/platform/i8042.ts';
import { MouseButton } from '../../../devicemodel/hw/platform/ps2-mouse.ts';
import { applyAccess, busAccesses } from '../../support/bus-access.ts';
import { FakeLine, FakePower } from '../../support/fake-line.ts';

const DATA = 0x60;
const COMMAND = 0x64;
const Status = { full: 1, system: 4, command: 8, aux: 0x20, unlocked: 0x10 };
const [ACK, BAT] = [0xfa, 0xaa];

function makeI8042() {
  const keyboardIrq = new FakeLine(1);
  const auxIrq = new FakeLine(12);
  const power = new FakePower();
  const i8042 = new I8042({ keyboardIrq, auxIrq, power });
  const pio = new PioBus();
  i8042.attach(pio);
  const status = () => pio.read(COMMAND, 1) as number;
  const read = () => pio.read(DATA, 1) as number;
  /** Everything that waits. */
  const drain = () => {
    const bytes: number[] = [];
    while ((status() & Status.full) !== 0) bytes.push(read());
    return bytes;
  };
  const command = (byte: number, argument?: number) => {
    pio.write(COMMAND, 1, byte);
    if (argument !== undefined) pio.write(DATA, 1, argument);
  };
  const toKeyboard = (...bytes: number[]) => {
    for (const byte of bytes) pio.write(DATA, 1, byte);
  };
  const toMouse = (...bytes: number[]) => {
    for (const byte of bytes) command(0xd4, byte);
  };
  /** Interrupts on, translation as given, keyboard scanning, mouse reporting. */
  const enable = (translate = 0) => {
    command(0x60, 0x03 | translate);
    command(0xa8);
    toKeyboard(0xf4);
    drain();
    toMouse(0xf4);
    drain();
    keyboardIrq.clear();
    auxIrq.clear();
  };
  return { i8042, keyboardIrq, auxIrq, power, pio, status, read, drain, command, toKeyboard, toMouse, enable };
}

describe('controller', () => {
  test('self test and port tests pass', () => {
    const { command, drain } = makeI8042();
    command(0xaa);
    expect(drain()).toEqual([0x55]);
    command(0xab);
    expect(drain()).toEqual([0x00]);
    command(0xa9);
    expect(drain()).toEqual([0x00]);
  });

  test('OBF goes with the last byte, also the controller’s own', () => {
    const { command, read, status } = makeI8042();
    command(0xaa);
    expect(status()).toBe(Status.full | Status.command | Status.unlocked);
    read();
    expect(status() & Status.full).toBe(0);
  });

  test('an empty buffer reads as the last byte', () => {
    const { command, read } = makeI8042();
    expect(read()).toBe(0);
    command(0xaa);
    expect([read(), read()]).toEqual([0x55, 0x55]);
  });

  test('the command byte is RAM byte 0, its system flag shows in the status', () => {
    const { command, drain, status } = makeI8042();
    command(0x60, 0x45);
    expect(status() & Status.system).toBe(Status.system);
    command(0x20);
    expect(drain()).toEqual([0x45]);
    command(0x7f, 0x5a);
    command(0x3f);
    expect(drain()).toEqual([0x5a]);
  });

  test('switching the ports shows in the command byte, as Linux checks', () => {
    const { command, drain } = makeI8042();
    command(0xa7);
    command(0xad);
    command(0x20);
    expect(drain()).toEqual([0x30]);
    command(0xa8);
    command(0xae);
    command(0x20);
    expect(drain()).toEqual([0x00]);
  });

  test('the auxiliary loop gives the byte back as the mouse’s, with its interrupt', () => {
    const { auxIrq, command, read, status } = makeI8042();
    command(0x60, 0x02);
    command(0xd3, 0xa5);
    expect(auxIrq.edges).toBe(1);
    expect(status()).toBe(Status.full | Status.aux | Status.unlocked);
    expect(read()).toBe(0xa5);
    expect(status()).toBe(Status.unlocked);
  });

  test('the keyboard loop likewise', () => {
    const { keyboardIrq, command, read, status } = makeI8042();
    command(0x60, 0x01);
    command(0xd2, 0x5a);
    expect(keyboardIrq.edges).toBe(1);
    expect(status()).toBe(Status.full | Status.unlocked);
    expect(read()).toBe(0x5a);
  });

  test('the output port follows what is waiting', () => {
    const { command, read, toMouse } = makeI8042();
    command(0xd1, 0x03);
    toMouse(0xf2);
    command(0xd0);
    expect(read()).toBe(0x23);
  });

  test('0xfe resets the machine, other pulses do not', () => {
    const { command, power } = makeI8042();
    command(0xf0);
    command(0xff);
    expect(power.events).toEqual([]);
    command(0xfe);
    expect(power.kinds).toEqual(['full-reset']);
  });

  test('wide accesses are refused', () => {
    const { pio } = makeI8042();
    expect(pio.read(COMMAND, 2)).toBe(0xffff);
    expect(pio.read(DATA, 4)).toBe(0xffffffff);
    pio.write(COMMAND, 2, 0xaa);
    expect(pio.read(COMMAND, 1)).toBe(Status.unlocked);
  });
});

describe('keyboard', () => {
  test.for([
    ['reset', [0xff], [ACK, BAT]],
    ['identify', [0xf2], [ACK, 0xab, 0x83]],
    ['echo', [0xee], [0xee]],
    ['LEDs', [0xed, 0x07], [ACK, ACK]],
    ['typematic rate', [0xf3, 0x20], [ACK, ACK]],
    ['which scan code set', [0xf0, 0x00], [ACK, ACK, 0x02]],
    ['select scan code set', [0xf0, 0x02], [ACK, ACK]],
    ['defaults', [0xf6], [ACK]],
    ['disable', [0xf5], [ACK]],
    ['what it does not know', [0xe1], [0xfe]],
    ['a set 3 command', [0xfa], [ACK]],
  ] as const)('%s', ([, bytes, answer]) => {
    const { drain, toKeyboard } = makeI8042();
    toKeyboard(...bytes);
    expect(drain()).toEqual(answer);
  });

  test('remembers its LEDs', () => {
    const { i8042, toKeyboard } = makeI8042();
    toKeyboard(0xed, 0x05);
    expect(i8042.keyboard.leds).toBe(5);
  });

  test('resend gives the last byte again', () => {
    const { read, toKeyboard } = makeI8042();
    toKeyboard(0xf2);
    expect([read(), read()]).toEqual([ACK, 0xab]);
    toKeyboard(0xfe);
    expect(read()).toBe(0x83);
  });

  test('keys arrive in set 2, released with the break prefix', () => {
    const { i8042, drain, enable, keyboardIrq } = makeI8042();
    enable();
    i8042.keyboard.key(0x61, true); // a
    expect(keyboardIrq.edges).toBe(1);
    i8042.keyboard.key(0x61, false);
    i8042.keyboard.key(0xff51, true); // Left
    expect(drain()).toEqual([0x1c, 0xf0, 0x1c, 0xe0, 0x6b]);
  });

  test('and in set 1 when the controller translates', () => {
    const { i8042, drain, enable } = makeI8042();
    enable(0x40);
    i8042.keyboard.key(0x61, true);
    i8042.keyboard.key(0x61, false);
    i8042.keyboard.key(0xff51, false);
    i8042.keyboard.key(0xffc4, true); // F7 is beyond the table
    expect(drain()).toEqual([0x1e, 0x9e, 0xe0, 0xcb, 0x41]);
  });

  test('shifted and unshifted characters are one key', () => {
    const { i8042, drain, enable } = makeI8042();
    enable();
    for (const key of 'aA1!;:') i8042.keyboard.key(key.charCodeAt(0), true);
    expect(drain()).toEqual([0x1c, 0x1c, 0x16, 0x16, 0x4c, 0x4c]);
  });

  test('one interrupt for each byte that is read', () => {
    const { drain, enable, keyboardIrq, toKeyboard } = makeI8042();
    enable();
    toKeyboard(0xf2);
    drain();
    expect(keyboardIrq.edges).toBe(3);
  });

  test('keys are dropped while scanning is off, unknown ones always', () => {
    const { i8042, drain, enable, toKeyboard } = makeI8042();
    enable();
    expect(i8042.keyboard.key(0x1234, true)).toBe(false);
    toKeyboard(0xf5);
    drain();
    expect(i8042.keyboard.key(0x61, true)).toBe(false);
    expect(drain()).toEqual([]);
  });

  test('with the port off keys wait until it is on', () => {
    const { i8042, command, drain, enable, status } = makeI8042();
    enable();
    command(0xad);
    i8042.keyboard.key(0x61, true);
    expect(status() & Status.full).toBe(0);
    command(0xae);
    expect(drain()).toEqual([0x1c]);
  });

  test('a full queue drops whole keys, never half of one', () => {
    const { i8042, drain, enable } = makeI8042();
    enable();
    for (let n = 0; n < 40; n++) i8042.keyboard.key(0xff51, n % 2 === 0);
    const bytes = drain();
    expect(bytes.length).toBeGreaterThan(15);
    expect(bytes.join(' ')).toMatch(/^(224 (240 )?107 ?)+$/);
  });
});

describe('mouse', () => {
  test.for([
    ['reset', [0xff], [ACK, BAT, 0x00]],
    ['identify', [0xf2], [ACK, 0x00]],
    ['status', [0xe9], [ACK, 0x20, 4, 100]],
    ['a command without meaning', [0xe1], [ACK]],
  ] as const)('%s', ([, bytes, answer]) => {
    const { drain, toMouse } = makeI8042();
    toMouse(...bytes);
    expect(drain()).toEqual(answer);
  });

  test('status shows what was set', () => {
    const { drain, toMouse } = makeI8042();
    toMouse(0xe8, 3, 0xf3, 200, 0xe7, 0xf5, 0xf0, 0xe9);
    expect(drain()).toEqual([ACK, 0x50, 3, 200]);
    toMouse(0xe6, 0xea, 0xf4, 0xe9);
    expect(drain()).toEqual([ACK, 0x20, 3, 200]);
  });

  test('the wheel knock is not answered with a wheel', () => {
    const { drain, toMouse } = makeI8042();
    toMouse(0xf3, 200, 0xf3, 100, 0xf3, 80, 0xf2);
    expect(drain()).toEqual([ACK, 0x00]);
  });

  test('movement makes a packet, y upwards, and an interrupt', () => {
    const { i8042, auxIrq, drain, enable, status } = makeI8042();
    enable();
    i8042.mouse.move(10, 5, MouseButton.Left);
    expect(auxIrq.edges).toBe(1);
    expect(status() & Status.aux).toBe(Status.aux);
    expect(drain()).toEqual([0x08 | 0x20 | 0x01, 10, 0xfb]);
    i8042.mouse.move(-1, 0, MouseButton.Right | MouseButton.Middle);
    expect(drain()).toEqual([0x08 | 0x10 | 0x06, 0xff, 0]);
  });

  test('a large movement is told in pieces', () => {
    const { i8042, drain, enable } = makeI8042();
    enable();
    i8042.mouse.move(300, 0, 0);
    expect(drain()).toEqual([0x08, 255, 0, 0x08, 45, 0]);
  });

  test('a pointer is told as movement', () => {
    const { i8042, drain, enable } = makeI8042();
    enable();
    i8042.mouse.pointer(100, 50, 0);
    drain();
    i8042.mouse.pointer(103, 50, 0);
    expect(drain()).toEqual([0x08, 3, 0]);
  });

  test('in remote mode it answers only when asked', () => {
    const { i8042, drain, enable, toMouse } = makeI8042();
    enable();
    toMouse(0xf0);
    drain();
    i8042.mouse.move(7, 0, 0);
    expect(drain()).toEqual([]);
    toMouse(0xeb);
    expect(drain()).toEqual([ACK, 0x08, 7, 0]);
  });

  test('is silent while its port is off', () => {
    const { i8042, command, drain, enable } = makeI8042();
    enable();
    i8042.mouse.move(1, 1, 0);
    command(0xa7);
    i8042.mouse.move(1, 1, 0);
    expect(drain()).toEqual([]);
  });

  test('goes before the keyboard, whose interrupt follows', () => {
    const { i8042, keyboardIrq, drain, enable } = makeI8042();
    enable();
    i8042.mouse.move(1, 0, 0);
    i8042.keyboard.key(0x61, true);
    expect(keyboardIrq.edges).toBe(0);
    expect(drain()).toEqual([0x08, 1, 0, 0x1c]);
    expect(keyboardIrq.edges).toBe(1);
  });
});

test('any access sequence: no throw, reads in width, reset equals fresh', () => {
  fc.assert(
    fc.property(busAccesses(5), busAccesses(5), (before, after) => {
      const used = makeI8042();
      const onBus = (pio: PioBus) => ({
        // Ports 0x61-0x63 are others': leave them out.
        read: (offset: number, size: 1 | 2 | 4) => pio.read(offset < 3 ? DATA : COMMAND, size) as number,
        write: (offset: number, size: 1 | 2 | 4, value: number) => {
          pio.write(offset < 3 ? DATA : COMMAND, size, value);
        },
      });
      for (const access of before) {
        applyAccess(onBus(used.pio), access);
        used.i8042.keyboard.key(0x61, true);
        used.i8042.mouse.move(access.value, -access.offset, access.size);
      }
      used.i8042.reset();
      const fresh = makeI8042();
      for (const access of after) {
        for (const { i8042 } of [used, fresh]) {
          i8042.keyboard.key(0x62, true);
          i8042.mouse.pointer(access.offset * 3, access.value, 1);
        }
        expect(applyAccess(onBus(used.pio), access)).toBe(applyAccess(onBus(fresh.pio), access));
      }
    }),
  );
});
