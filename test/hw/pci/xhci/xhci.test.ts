/** The PCI function around the controller: which interrupt a guest has. */
import { expect, test } from 'vitest';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { loadPciDriver } from '../../../../devicemodel/hw/registry.ts';
import { PciMachine } from '../../../support/pci-machine.ts';
import { At, Reg } from '../../../support/xhci-guest.ts';

const AT = '0:8.0';
const MSI_ENABLE = 1;

test('a pending interrupt comes by the pin when the guest takes MSI back', async () => {
  const driver = await loadPciDriver('xhci');
  const options = checkOptions(driver.options, driver.parseText?.('tablet') ?? {});
  const machine = new PciMachine({ ramBytes: 0x10_0000 }).plug(AT, driver, options).power();
  await machine.host.start();
  const base = machine.cfgRead(AT, 0x10) & ~0xf;
  const msi = machine.cfgRead(AT, 0x34, 1);
  const write = (register: number, value: number) => machine.mmioWrite((base >>> 0) + register, value);
  machine.cfgWrite(AT, 4, 6, 2);
  machine.cfgWrite(AT, msi + 2, MSI_ENABLE, 2);
  machine.memory.writeU32(At.eventTable, At.events);
  machine.memory.writeU32(At.eventTable + 8, 64);
  for (const [register, value] of [
    [Reg.crcrLow, At.commands | 1],
    [Reg.crcrHigh, 0],
    [Reg.erstSize, 1],
    [Reg.erdpLow, At.events],
    [Reg.erdpHigh, 0],
    [Reg.erstLow, At.eventTable],
    [Reg.erstHigh, 0],
    [Reg.iman, 2],
    [Reg.command, 5],
  ] as const) {
    write(register, value);
  }
  // A command that does nothing, and its event.
  machine.memory.writeU32(At.commands + 12, (23 << 10) | 1);
  machine.takeIrqs();
  write(Reg.doorbell, 0);
  expect(machine.takeIrqs()).toEqual([]);
  machine.cfgWrite(AT, msi + 2, 0, 2);
  expect(machine.takeIrqs()).toHaveLength(1);
  machine.cfgWrite(AT, msi + 2, MSI_ENABLE, 2);
  expect(machine.takeIrqs()).toHaveLength(1);
  await machine.host.stop();
});
