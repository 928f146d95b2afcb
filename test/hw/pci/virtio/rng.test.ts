/** virtio-rnd as its driver sees it. */
import { afterEach, expect, test } from 'vitest';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { virtioRnd } from '../../../../devicemodel/hw/pci/virtio/rng.ts';
import { parseRngText, RngOptions } from '../../../../devicemodel/hw/pci/virtio/transport/options.ts';
import { type DriverMode, type MachineChoices, VirtioDriver, VirtioMachine } from '../../../support/virtio-driver.ts';

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function makeRng(text = '', mode: DriverMode = 'legacy', choices: MachineChoices = {}) {
  const machine = new VirtioMachine(choices);
  undo.push(() => machine.dispose());
  const fn = virtioRnd.create(checkOptions(RngOptions, parseRngText(text)), machine.env());
  const driver = new VirtioDriver(machine, fn, mode);
  await driver.fn.start?.();
  undo.push(() => driver.fn.stop?.());
  return { machine, driver };
}

test.each([
  ['legacy', '', {}],
  ['modern', 'transport=modern', {}],
  ['packed', 'transport=modern', {}],
  ['modern', 'transport=transitional', {}],
  ['legacy', 'transport=transitional', {}],
  ['legacy', '', { viewsOnly: true }],
] as const)('%s driver, "%s" %j: a request is filled and its length reported', async (mode, text, choices) => {
  const { driver } = await makeRng(text, mode, choices);
  driver.init();
  const used = driver.request(0, [{ write: 48 }, { write: 16 }]);
  expect(used.length).toBe(64);
  // 64 zero bytes are as likely as 2^-512.
  expect(driver.buffer(0).some((b) => b !== 0)).toBe(true);
  expect(driver.buffer(1).some((b) => b !== 0)).toBe(true);
});

test.each([
  ['kernel=on', ['kernel=on']],
  ['kernel', ['kernel']],
  ['bogus', ['bogus']],
  ['x=y,kernel=on,a', ['x=y', 'kernel=on', 'a']],
])('option "%s" is passed over, as with C, and named', (text, unknown) => {
  expect(checkOptions(RngOptions, parseRngText(text))).toEqual({ transport: 'legacy', unknown });
  expect(checkOptions(RngOptions, parseRngText(`${text},transport=modern`))).toEqual({ transport: 'modern', unknown });
});

test('a request of 2 MiB gets what the device gives at once', async () => {
  const { driver } = await makeRng('', 'legacy', { ram: [[0, 0x400000]] });
  driver.init();
  expect(driver.request(0, [{ write: 0x200000, at: 0x200000 }]).length).toBe(64 * 1024);
});

test('a chain with nothing to write gets nothing', async () => {
  const { driver } = await makeRng();
  driver.init();
  expect(driver.request(0, [{ read: [1, 2, 3] }]).length).toBe(0);
});

test('a ring that is broken needs a reset, after which the device works again', async () => {
  const { driver, machine } = await makeRng();
  driver.init();
  driver.add(0, [{ write: 16, at: 0x9000_0000 }]);
  driver.kick(0);
  expect(driver.needsReset).toBe(true);
  expect(machine.intx).toBe(true);
  expect(driver.isr).toBe(2);
  driver.kick(0);
  expect(driver.takeUsed(0)).toEqual([]);
  driver.init();
  expect(driver.needsReset).toBe(false);
  expect(driver.request(0, [{ write: 16 }]).length).toBe(16);
});
