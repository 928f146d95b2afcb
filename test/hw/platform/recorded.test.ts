/** The platform devices against recorded runs of the C device model: same reads, same interrupts, same endings. */
import { describe, expect, test } from 'vitest';
import type { IrqLineOp } from '../../../devicemodel/core/hsm/hsm.ts';
import { MmioBus, PioBus } from '../../../devicemodel/core/io-bus.ts';
import { MiB } from '../../../devicemodel/core/units.ts';
import { CmosIo } from '../../../devicemodel/hw/platform/cmos-io.ts';
import { DebugExit } from '../../../devicemodel/hw/platform/debug-exit.ts';
import { Hpet } from '../../../devicemodel/hw/platform/hpet.ts';
import { I8042 } from '../../../devicemodel/hw/platform/i8042.ts';
import { PIT_GSI, Pit } from '../../../devicemodel/hw/platform/pit.ts';
import { AcpiPm, SCI_GSI } from '../../../devicemodel/hw/platform/pm.ts';
import { QuietPorts } from '../../../devicemodel/hw/platform/quiet-ports.ts';
import { ResetRegister } from '../../../devicemodel/hw/platform/reset.ts';
import { Rtc } from '../../../devicemodel/hw/platform/rtc.ts';
import { FakeClock } from '../../support/fake-clock.ts';
import { FakeMsi, FakePower } from '../../support/fake-line.ts';
import { type Machine, type PlayedIrq, playRecordedCase } from '../../support/golden-player.ts';
import { recordedDir } from '../../support/recorded-cases.ts';

/** The board as the C device model wires it, 256 MiB of RAM. */
function makeMachine(options: { debugExit?: boolean } = {}) {
  const clock = new FakeClock();
  const power = new FakePower();
  const pio = new PioBus();
  const mmio = new MmioBus();
  let irqs: PlayedIrq[] = [];
  const raise = (gsi: number, op: IrqLineOp) => irqs.push({ gsi, op });
  const edge = (gsi: number) => ({ gsi, set: (on: boolean) => on && raise(gsi, 'rising-pulse') });
  const level = (gsi: number) => ({ gsi, set: (on: boolean) => raise(gsi, on ? 'high' : 'low') });
  const devices = [
    new I8042({ keyboardIrq: edge(1), auxIrq: edge(12), power }),
    new Rtc({ clock, irq: level(8), lowMemoryBytes: 256 * MiB, highMemoryBytes: 0 }),
    new CmosIo(),
    new Pit({ clock, irq: edge(PIT_GSI) }),
    new Hpet({
      clock,
      ioapic: { pulse: (gsi) => raise(gsi, 'rising-pulse'), set: (gsi, on) => raise(gsi, on ? 'high' : 'low') },
      msi: new FakeMsi(),
    }),
    new AcpiPm({ sci: level(SCI_GSI), power }),
    new ResetRegister(power),
    new QuietPorts(),
    ...(options.debugExit === true ? [new DebugExit(power)] : []),
  ];
  for (const device of devices) device.attach(pio, mmio);
  const machine: Machine = {
    pio,
    mmio,
    clock,
    takeIrqs: () => {
      const taken = irqs;
      irqs = [];
      return taken;
    },
  };
  return { machine, power, devices };
}

const isIsaAccess = (action: { op: string }) => action.op.startsWith('pio_') || action.op.startsWith('mmio_');

describe.skipIf(recordedDir === undefined)('recorded cases', () => {
  test.for(['rtc', 'pit', 'hpet', 'misc_ports', 'pm_regs', 'reset_not'])('%s', (name) => {
    const { machine, power } = makeMachine();
    const comparisons = playRecordedCase(name, machine, isIsaAccess);
    expect(comparisons.length).toBeGreaterThan(1);
    expect(comparisons.map((c) => ({ ...c, played: c.recorded }))).toEqual(comparisons);
    expect(power.events).toEqual([]);
  });

  test('kbd: as recorded, but for the keyboard lock in bit 4 of the status', () => {
    const UNLOCKED = 0x10;
    const { machine, power } = makeMachine();
    const read = machine.pio.read.bind(machine.pio);
    machine.pio.read = (port, size) => {
      const value = read(port, size);
      if (port !== 0x64 || size !== 1 || value === undefined) return value;
      expect(value & UNLOCKED).toBe(UNLOCKED);
      return value & ~UNLOCKED;
    };
    const comparisons = playRecordedCase('kbd', machine, isIsaAccess);
    expect(comparisons.length).toBeGreaterThan(1);
    expect(comparisons.map((c) => ({ ...c, played: c.recorded }))).toEqual(comparisons);
    expect(power.events).toEqual([]);
  });

  test.for([
    ['debugexit', 'poweroff'],
    ['s5_poweroff', 'poweroff'],
    ['suspend_s3', 'suspend'],
    ['reset_cf9_6', 'system-reset'],
    ['reset_cf9_e', 'full-reset'],
    ['reset_kbd', 'full-reset'],
  ] as const)('%s ends with %s', ([name, kind]) => {
    const { machine, power, devices } = makeMachine({ debugExit: name === 'debugexit' });
    let isReset = false;
    const comparisons = playRecordedCase(name, machine, (action) => {
      // The VM goes through its reset before the next access of the guest.
      if (power.events.length > 0 && !isReset) {
        isReset = true;
        for (const device of devices) device.reset();
      }
      return isIsaAccess(action);
    });
    expect(comparisons.filter((c) => c.what !== 'interrupts' && c.recorded !== c.played)).toEqual([]);
    expect(power.kinds).toEqual([kind]);
  });
});
