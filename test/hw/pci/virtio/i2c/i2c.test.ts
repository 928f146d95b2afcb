/** virtio-i2c as its driver sees it, on a made-up bus. */
import { afterEach, expect, test } from 'vitest';
import { ConfigError } from '../../../../../devicemodel/core/errors.ts';
import type { I2cBus } from '../../../../../devicemodel/core/host/i2c-dev.ts';
import { checkOptions } from '../../../../../devicemodel/core/options.ts';
import { VirtioI2c, virtioI2c } from '../../../../../devicemodel/hw/pci/virtio/i2c/i2c.ts';
import { I2cOptions, parseI2cText } from '../../../../../devicemodel/hw/pci/virtio/i2c/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { PciMachine } from '../../../../support/pci-machine.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** A client that gives back its address, and refuses messages of more than 16 bytes. */
class FakeBus implements I2cBus {
  readonly data = new Uint8Array(8192);
  readonly messages: Array<[address: number, data: number[] | number]> = [];
  transfer(address: number, length: number, isRead: boolean): boolean {
    this.messages.push([address, isRead ? length : [...this.data.subarray(0, length)]]);
    if (length > 16) return false;
    if (isRead) this.data.fill(address, 0, length);
    return true;
  }
  close(): void {}
}

async function makeI2c() {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const bus = new FakeBus();
  const fn = new VirtioPci(new VirtioI2c(() => [{ bus, addresses: [0x1c] }]), machine.env(), {
    mode: 'modern',
    identity: { legacyDeviceId: 0, type: 34, classCode: 0x050000 },
  });
  const driver = new VirtioDriver(machine, fn, 'modern');
  await fn.start();
  undo.push(() => fn.stop());
  driver.init();
  const header = (address: number, flags: number) => [address & 0xff, address >>> 8, 0, 0, flags, 0, 0, 0];
  const status = (index: number) => driver.buffer(index)[0];
  return { driver, bus, header, status };
}

test('write, read and a message without data', async () => {
  const { driver, bus, header, status } = await makeI2c();
  driver.request(0, [{ read: header(0x1c << 1, 0) }, { read: [1, 2, 3] }, { write: 1 }]);
  expect(status(2)).toBe(0);
  expect(driver.request(0, [{ read: header(0x1c << 1, 2) }, { write: 4 }, { write: 1 }]).length).toBe(5);
  expect([...driver.buffer(1), status(2)]).toEqual([0x1c, 0x1c, 0x1c, 0x1c, 0]);
  driver.request(0, [{ read: header(0x1c << 1, 0) }, { write: 1 }]);
  expect(bus.messages).toEqual([
    [0x1c, [1, 2, 3]],
    [0x1c, 4],
    [0x1c, []],
  ]);
});

test('a failed request fails the rest of its group, not the next group', async () => {
  const { driver, bus, header, status } = await makeI2c();
  driver.request(0, [{ read: header(0x1c << 1, 1) }, { read: new Uint8Array(20) }, { write: 1 }]);
  expect(status(2)).toBe(1);
  driver.request(0, [{ read: header(0x1c << 1, 1) }, { read: [1] }, { write: 1 }]);
  expect(status(2)).toBe(1);
  driver.request(0, [{ read: header(0x1c << 1, 0) }, { read: [1] }, { write: 1 }]);
  expect(status(2)).toBe(1);
  expect(bus.messages).toHaveLength(1);
  driver.request(0, [{ read: header(0x1c << 1, 0) }, { read: [1] }, { write: 1 }]);
  expect(status(2)).toBe(0);
});

test.each([
  ['an address that was not given to the guest', 0x1d << 1],
  ['a ten-bit address', 0xf0 << 8],
  ['an odd address', (0x1c << 1) | 1],
])('%s is an error and reaches no bus', async (_name, address) => {
  const { driver, bus, header, status } = await makeI2c();
  driver.request(0, [{ read: header(address, 0) }, { read: [1] }, { write: 1 }]);
  expect(status(2)).toBe(1);
  expect(bus.messages).toEqual([]);
});

test('too long, too short, no status', async () => {
  const { driver, bus, header, status } = await makeI2c();
  driver.request(0, [{ read: header(0x1c << 1, 0) }, { read: new Uint8Array(8193) }, { write: 1 }]);
  expect(status(2)).toBe(1);
  expect(driver.request(0, [{ read: [1, 2] }, { write: 1 }]).length).toBe(0);
  expect(driver.request(0, [{ read: header(0x1c << 1, 0) }]).length).toBe(0);
  expect(bus.messages).toEqual([]);
});

test.each(['x:1c', '0:80', '0:0', '0:zz', '0:1c,', ',0:1c', '0:1c,1:1c'])('"%s" is refused', (text) => {
  expect(() => checkOptions(I2cOptions, parseI2cText(text))).toThrow(ConfigError);
});

test('no buses and no clients are taken, as C does it', () => {
  expect(checkOptions(I2cOptions, parseI2cText(''))).toEqual({ buses: [] });
  expect(checkOptions(I2cOptions, parseI2cText('3'))).toEqual({ buses: [{ bus: 3, clients: [] }] });
});

test('ids, class and revision are those of the C device model', () => {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  expect(virtioI2c.create({ buses: [] }, machine.env()).identity).toEqual({
    vendorId: 0x1af4,
    deviceId: 0x1062,
    classCode: 0x050000,
    revisionId: 0,
    subsystemVendorId: 0x1af4,
    subsystemId: 0xfff6,
  });
});

test('adapters are numbered and described in the DSDT, with the clients that have a node', () => {
  const machine = new PciMachine();
  const plug = (at: string, text: string) => machine.plug(at, virtioI2c, checkOptions(I2cOptions, parseI2cText(text)));
  plug('0:9.0', '1:30@nobody');
  plug('0:5.0', '0:71@cam2:70@cam1:2f,4:1c@default');
  machine.host.configure();
  const tables = machine.host.aml().map(({ bdf, aml }) => [bdf.device, Buffer.from(aml())] as const);
  expect(tables.map(([device]) => device)).toEqual([5, 9]);
  const namesIn = (index: number) =>
    ['I2C0', 'I2C1', 'CAM1', 'CAM2', 'HDAC'].filter((name) => tables[index]?.[1].includes(name));
  expect(namesIn(0)).toEqual(['I2C0', 'CAM1', 'CAM2']);
  expect(namesIn(1)).toEqual(['I2C1']);
  const [, first] = tables[0] as (typeof tables)[number];
  expect(first.indexOf('CAM1')).toBeLessThan(first.indexOf('CAM2'));
  expect(machine.lines.filter((l) => l.includes('nobody'))).toHaveLength(1);
});
