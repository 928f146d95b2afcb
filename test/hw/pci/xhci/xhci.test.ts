/** The PCI function around the controller: which interrupt a guest has, and what is left of it after its end. */
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { loadPciDriver } from '../../../../devicemodel/hw/registry.ts';
import { UsbSpeed } from '../../../../devicemodel/hw/usb/device.ts';
import { FakeHostUsb } from '../../../support/fake-host-usb.ts';
import { PciMachine } from '../../../support/pci-machine.ts';
import { At, portRegister, RAM_BYTES, Reg, XhciGuest } from '../../../support/xhci-guest.ts';

const made = vi.hoisted((): { host: FakeHostUsb | undefined } => ({ host: undefined }));
vi.mock('../../../../devicemodel/hw/usb/host-usb.ts', () => ({ openHostUsb: () => made.host }));

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

/** A driver in front of the whole function. */
class FunctionGuest extends XhciGuest {
  readonly #machine: PciMachine;
  readonly #base: number;

  constructor(machine: PciMachine) {
    super(64, machine.memory.pieces(0, RAM_BYTES)[0]);
    this.#machine = machine;
    this.#base = (machine.cfgRead(AT, 0x10) & ~0xf) >>> 0;
    machine.cfgWrite(AT, 4, 6, 2);
  }
  override read(register: number): number {
    return this.#machine.mmioRead(this.#base + register);
  }
  override write(register: number, value: number): void {
    this.#machine.mmioWrite(this.#base + register, value >>> 0);
  }
}

/** A guest with a device of the host at its first port. Time of waits stands still. */
async function withHostDevice() {
  vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
  onTestFinished(() => void vi.useRealTimers());
  const where = { path: '1-2', deviceNumber: 2, node: '/dev/bus/usb/001/002', speed: UsbSpeed.High, release: 0x200 };
  const host = new FakeHostUsb([{ ...where, id: '0781:5567', isHub: false }]);
  made.host = host;
  const driver = await loadPciDriver('xhci');
  const options = checkOptions(driver.options, driver.parseText?.('1-2') ?? {});
  const machine = new PciMachine({ ramBytes: RAM_BYTES }).plug(AT, driver, options).power();
  await machine.host.start();
  const guest = new FunctionGuest(machine).setUp();
  guest.events();
  guest.write(portRegister(USB2_PORT), 0x210);
  guest.events();
  return { host, machine, guest, slot: guest.command(9)?.slot ?? 0 };
}
type World = Awaited<ReturnType<typeof withHostDevice>>;

/** As `withHostDevice`, its bulk endpoints configured, and a transfer in flight. */
async function withTransfer() {
  const world = await withHostDevice();
  const { guest, slot } = world;
  guest.addressSlot(slot, USB2_PORT);
  await turn();
  expect(guest.configure(slot, { 3: 6, 4: 2 })?.code).toBe(1);
  guest.queue(slot, 3, 1, At.buffers, 8, 1 << 5);
  guest.ring(slot, 3);
  expect(world.host.handles[0]?.requests).toHaveLength(1);
  return world;
}

async function stop({ machine }: World): Promise<void> {
  machine.waits.patience.force();
  const stopped = machine.host.stop();
  await vi.advanceTimersByTimeAsync(10_000);
  await stopped;
}

/** Every way to the guest's RAM, which is not there any more. */
function unmap({ machine: { memory } }: World) {
  const ways = (['readU32', 'writeU32', 'readU64', 'read', 'write', 'pieces'] as const).map((name) =>
    vi.spyOn(memory, name).mockImplementation(() => {
      throw new Error(`${name} after the end`);
    }),
  );
  return () => ways.flatMap(({ mock }) => mock.calls);
}

const USB2_PORT = 11;
const turn = () => new Promise((resolve) => setImmediate(resolve));

describe('after its end the function reaches no guest memory', () => {
  test('when a transfer that nobody waits for any more comes back', async () => {
    const world = await withTransfer();
    await stop(world);
    const accesses = unmap(world);
    world.host.handles[0]?.give('gone');
    await turn();
    expect(accesses()).toEqual([]);
  });

  test('when a ring had work without an end', async () => {
    const world = await withHostDevice();
    const { guest, slot, machine } = world;
    guest.addressSlot(slot, USB2_PORT);
    await turn();
    guest.configure(slot, { 4: 2 });
    const ring = guest.ringOf(slot, 4);
    guest.trb(ring, 0, 0, (8 << 10) | 1);
    guest.trb(ring + 16, ring, 0, (6 << 10) | 1);
    guest.ring(slot, 4);
    await stop(world);
    const accesses = unmap(world);
    machine.clock.advance(1_000_000);
    expect(accesses()).toEqual([]);
  });

  test('when a device is there that took longer to open than anybody waits', async () => {
    const world = await withHostDevice();
    const { guest, host, slot } = world;
    const open = host.open.bind(host);
    let answer = () => {};
    host.open = () => new Promise((resolve) => (answer = () => resolve(open())));
    guest.addressSlot(slot, USB2_PORT);
    await turn();
    await stop(world);
    const accesses = unmap(world);
    answer();
    await turn();
    await turn();
    expect(accesses()).toEqual([]);
  });
});

test('a device that comes to itself after the end is closed then', async () => {
  const world = await withTransfer();
  await stop(world);
  expect(world.host.handles[0]?.calls).not.toContain('close');
  world.host.handles[0]?.give('gone');
  await turn();
  expect(world.host.handles[0]?.calls.at(-1)).toBe('close');
});

/** Longer than anybody may wait for USB, and far less than `--io-timeout`. */
const SHORT_MS = 5_000;

/** @returns whether it came in a short time */
async function comesSoon(wait: Promise<unknown> | undefined): Promise<boolean> {
  let hasCome = wait === undefined;
  void wait?.then(() => (hasCome = true));
  await vi.advanceTimersByTimeAsync(SHORT_MS);
  return hasCome;
}

describe('a device that keeps what it has', () => {
  test('costs a short time at one reset, none at the next, and as little at the end', async () => {
    const world = await withTransfer();
    const { machine, host } = world;
    expect(await comesSoon(machine.host.settle(false))).toBe(true);
    machine.host.reset();
    expect(machine.host.settle(false)).toBeUndefined();
    machine.host.reset();
    expect(await comesSoon(machine.host.settle(true))).toBe(true);
    expect(await comesSoon(machine.host.stop())).toBe(true);
    expect(machine.lines.filter((line) => line.startsWith('warn'))).toEqual([
      expect.stringMatching(/transfers are not given back by their device \(1\)/),
      expect.stringMatching(/USB device 1-2 .* is not given back/),
    ]);
    host.handles[0]?.give('gone');
    await turn();
    expect(host.handles[0]?.calls.at(-1)).toBe('close');
  });

  test('costs a short time at S3, and the guest goes on with it and with others', async () => {
    const world = await withTransfer();
    const { machine, host, guest, slot } = world;
    expect(await comesSoon(machine.host.settle(true))).toBe(true);
    machine.host.suspend();
    machine.host.resume();
    // It is done again, since nobody knows how far it came.
    expect(host.handles[0]?.requests).toHaveLength(2);
    const [old, again] = host.handles[0]!.requests;
    guest.ram.fill(0xee, At.buffers, At.buffers + 8);
    old!.buffer.fill(9);
    old!.done('completed', 8);
    expect(guest.events()).toEqual([]);
    expect([...guest.memory.read(At.buffers, 8)]).toEqual(new Array(8).fill(0xee));
    again!.buffer.fill(5);
    again!.done('completed', 8);
    expect(guest.events()).toMatchObject([{ type: 32, code: 1, slot }]);
    expect([...guest.memory.read(At.buffers, 8)]).toEqual(new Array(8).fill(5));
  });

  test('is none of the next life, whenever it comes', async () => {
    const world = await withTransfer();
    const { machine, host } = world;
    await comesSoon(machine.host.settle(false));
    machine.host.reset();
    const guest = new FunctionGuest(machine).setUp();
    guest.ram.fill(0, 0x1000, 0x80000);
    guest.ram.fill(0xee, At.buffers, At.buffers + 8);
    guest.setUp();
    const [old] = host.handles[0]!.requests.splice(0);
    const slot = guest.command(9)?.slot ?? 0;
    guest.addressSlot(slot, USB2_PORT);
    expect(guest.configure(slot, { 3: 6 })?.code).toBe(1);
    guest.queue(slot, 3, 1, At.buffers, 8, 1 << 5);
    guest.ring(slot, 3);
    // What the new life waits for is its own.
    const settled = machine.host.settle(false);
    old!.buffer.fill(9);
    old!.done('completed', 8);
    let hasCome = false;
    void settled?.then(() => (hasCome = true));
    await turn();
    expect(hasCome).toBe(false);
    expect(guest.events()).toEqual([]);
    expect([...guest.memory.read(At.buffers, 8)]).toEqual(new Array(8).fill(0xee));
    host.handles[0]?.give('cancelled');
    await settled;
    expect(machine.host.settle(false)).toBeUndefined();
  });

  test('ends a port reset of the next life with an error, and the one after it is well', async () => {
    const world = await withTransfer();
    const { machine, host } = world;
    await comesSoon(machine.host.settle(false));
    machine.host.reset();
    const guest = new FunctionGuest(machine).setUp();
    guest.ram.fill(0, 0x1000, 0x80000);
    guest.setUp();
    guest.events();
    const port = portRegister(USB2_PORT);
    const isBeingReset = () => (guest.read(port) & 0x10) !== 0;
    guest.write(port, 0x210);
    await turn();
    expect(isBeingReset()).toBe(true);
    machine.clock.advance(SHORT_MS * 1_000_000);
    expect(isBeingReset()).toBe(false);
    expect(guest.events()).toMatchObject([{ type: 34 }]);

    // The device answers nothing, as the guest's driver then sees.
    const slot = guest.command(9)?.slot ?? 0;
    guest.addressSlot(slot, USB2_PORT);
    await turn();
    expect(guest.configure(slot, { 3: 6 })?.code).toBe(1);
    guest.queue(slot, 3, 1, At.buffers, 8, 1 << 5);
    guest.ring(slot, 3);
    expect(guest.events()).toMatchObject([{ type: 32, code: 4, slot }]);

    host.handles[0]?.give('cancelled');
    await turn();
    guest.write(port, 0x200200);
    guest.write(port, 0x210);
    await turn();
    expect(isBeingReset()).toBe(false);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
    expect(host.handles[0]?.calls.filter((call) => call === 'reset')).toHaveLength(3);
  });
});
