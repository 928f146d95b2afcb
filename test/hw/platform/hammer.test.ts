/** A guest that writes anything anywhere: the device model goes on, and the host is not kept busy. */
import { expect, test } from 'vitest';
import { type AccessSize, allOnes } from '../../../devicemodel/core/address.ts';
import { MmioBus, PioBus } from '../../../devicemodel/core/io-bus.ts';
import { MiB } from '../../../devicemodel/core/units.ts';
import { CmosIo } from '../../../devicemodel/hw/platform/cmos-io.ts';
import { DebugExit } from '../../../devicemodel/hw/platform/debug-exit.ts';
import { Hpet } from '../../../devicemodel/hw/platform/hpet.ts';
import { I8042 } from '../../../devicemodel/hw/platform/i8042.ts';
import { Pit } from '../../../devicemodel/hw/platform/pit.ts';
import { AcpiPm } from '../../../devicemodel/hw/platform/pm.ts';
import { QuietPorts } from '../../../devicemodel/hw/platform/quiet-ports.ts';
import { ResetRegister } from '../../../devicemodel/hw/platform/reset.ts';
import { Rtc } from '../../../devicemodel/hw/platform/rtc.ts';
import { expectWithin } from '../../support/bus-access.ts';
import { FakeClock } from '../../support/fake-clock.ts';
import { FakeLine, FakePower } from '../../support/fake-line.ts';

const ACCESSES = 100_000;
const ACCESS_NS = 10_000;
/** Interrupt sources that can be at their fastest at once: PIT, 8 HPET timers; 20,000 interrupts a second each. */
const MAX_WAKE_UPS = (9 * ACCESSES * ACCESS_NS) / 50_000;

test('a hundred thousand random accesses to every port and register', () => {
  const clock = new FakeClock();
  const power = new FakePower();
  const pio = new PioBus();
  const mmio = new MmioBus();
  const nothing = { pulse: () => {}, set: () => {}, signal: () => {} };
  const devices = [
    new I8042({ keyboardIrq: new FakeLine(1), auxIrq: new FakeLine(12), power }),
    new Rtc({ clock, irq: new FakeLine(8), lowMemoryBytes: 256 * MiB, highMemoryBytes: 0 }),
    new CmosIo(),
    new Pit({ clock, irq: new FakeLine(2) }),
    new Hpet({ clock, ioapic: nothing, msi: nothing }),
    new AcpiPm({ sci: new FakeLine(9), power }),
    new ResetRegister(power),
    new DebugExit(power),
    new QuietPorts(),
  ];
  const ranges = devices.flatMap((d) => d.attach(pio, mmio)).map((r) => r.range);
  const ports = ranges
    .filter((r) => r.base < 0x1_0000)
    .flatMap((r) => Array.from({ length: r.size }, (_, i) => r.base + i));

  // Seeded, so that a failure comes again (Numerical Recipes' generator).
  let seed = 1;
  const random = (limit: number) => {
    seed = (Math.imul(seed, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((seed / 2 ** 32) * limit);
  };
  for (let i = 0; i < ACCESSES; i++) {
    const size = ([1, 1, 1, 2, 4] as const)[random(5)] as AccessSize;
    const value = random(random(2) === 0 ? 256 : 2 ** 32) & allOnes(size);
    const isWrite = random(2) === 0;
    const address = random(4) === 0 ? 0xfed0_0000 + random(256) * 4 : (ports[random(ports.length)] as number);
    const bus = address < 0x1_0000 ? pio : mmio;
    if (isWrite) bus.write(address, size, value >>> 0);
    else expectWithin(bus.read(address, size) as number, size);
    clock.advance(ACCESS_NS);
  }
  expect(clock.wakeUps).toBeLessThan(MAX_WAKE_UPS);
  for (const device of devices) device.reset();
  expect(clock.armed).toBe(0);
});
