/** The test device of kvm-unit-tests. */
import { describe, expect, test } from 'vitest';
import { MmioBus, PioBus } from '../../../devicemodel/core/io-bus.ts';
import type { PlatformEnv } from '../../../devicemodel/hw/platform/driver.ts';
import { testdev } from '../../../devicemodel/hw/platform/testdev.ts';
import { FakePower } from '../../support/fake-line.ts';

async function machine() {
  const pio = new PioBus();
  const mmio = new MmioBus();
  const power = new FakePower();
  const lines: string[] = [];
  const hsm = { setIrqLine: (gsi: number, op: string) => void lines.push(`${gsi} ${op}`) };
  const device = await testdev.create({}, { hsm, power } as unknown as PlatformEnv);
  device.attach(pio, mmio);
  return { pio, mmio, power, lines, device };
}

describe('ports', () => {
  test('0xe0 and 0xe8 are the same four bytes, in any width', async () => {
    const { pio } = await machine();
    pio.write(0xe0, 4, 0x1234_5678);
    expect([pio.read(0xe0, 1), pio.read(0xe1, 1), pio.read(0xe2, 2), pio.read(0xe8, 4)]).toEqual([
      0x78, 0x56, 0x1234, 0x1234_5678,
    ]);
  });

  // An access that starts in the last byte must not end the program.
  test('an access over the end is cut off', async () => {
    const { pio, mmio } = await machine();
    pio.write(0xe3, 4, 0xffff_ffff);
    expect(pio.read(0xe3, 1)).toBe(0xff);
    mmio.write(0xff00_fffe, 4, 1);
    expect(mmio.read(0xff00_fffe, 4)).toBe(0xffff_ffff);
  });

  test('0x2000 and up drive the lines', async () => {
    const { pio, lines } = await machine();
    pio.write(0x200b, 4, 1);
    pio.write(0x200b, 4, 0);
    pio.write(0x2017, 1, 5);
    expect(lines).toEqual(['11 high', '11 low', '23 high']);
    expect(pio.write(0x2018, 1, 1)).toBe(false);
  });

  test('0xf4 ends the VM, with the status of QEMU', async () => {
    const { pio, power } = await machine();
    pio.write(0xf4, 4, 0);
    pio.write(0xf4, 1, 3);
    expect(power.events.map((event) => ('status' in event ? event.status : undefined))).toEqual([1, 7]);
  });

  test('0xe4 takes an address and does nothing', async () => {
    const { pio, power } = await machine();
    expect(pio.write(0xe4, 4, 0x10_0000)).toBe(true);
    expect(power.events).toEqual([]);
  });
});

test('its memory keeps what is written, until a reset', async () => {
  const { mmio, device } = await machine();
  mmio.write(0xff00_1000, 2, 0xbeef);
  expect(mmio.read(0xff00_1000, 4)).toBe(0xbeef);
  device.reset();
  expect(mmio.read(0xff00_1000, 4)).toBe(0);
});
