/** The controller with a driver in front and a device behind: xHCI 1.0, by section. */
import { describe, expect, test, vi } from 'vitest';
import { UsbSpeed } from '../../../../devicemodel/hw/usb/device.ts';
import { FakeUsbDevice } from '../../../support/fake-usb-device.ts';
import { At, portRegister, Reg, XhciGuest } from '../../../support/xhci-guest.ts';

const Code = {
  success: 1,
  transaction: 4,
  trb: 5,
  stall: 6,
  notEnabled: 11,
  short: 13,
  parameter: 17,
  context: 19,
  full: 21,
  stopped: 26,
};
const Command = {
  enable: 9,
  disable: 10,
  address: 11,
  configure: 12,
  resetEndpoint: 14,
  stop: 15,
  setDequeue: 16,
  resetDevice: 17,
  noOp: 23,
};
const Type = { normal: 1, isoch: 5, link: 6, eventData: 7, noOp: 8 };
const IOC = 1 << 5;
const ISP = 1 << 2;
const CHAIN = 1 << 4;
const [RUNNING, HALTED, STOPPED, ERROR] = [1, 2, 3, 4];
const GET_DEVICE_DESCRIPTOR = [0x80, 6, 0x0100, 0];
const SET_CONFIGURATION = [0x00, 9, 1, 0];
const USB2_PORT = 11;
const [BULK_IN, BULK_OUT] = [3, 4];

/** Promises that are settled have had their listeners called. */
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** A device at port 11 with an address, in slot 1, its bulk endpoints 1 IN and 2 OUT configured. */
function configured({ eventTrbs = 64, speed = UsbSpeed.High as UsbSpeed } = {}) {
  const guest = new XhciGuest(eventTrbs).setUp();
  const device = new FakeUsbDevice(speed);
  const port = guest.controller.ports.connect(device) ?? 0;
  guest.events();
  const slot = guest.address(port);
  expect(guest.configure(slot, { [BULK_IN]: 6, [BULK_OUT]: 2 })?.code).toBe(Code.success);
  return { guest, device, slot, port };
}

describe('ports (§4.19)', () => {
  test('a device that is plugged in is told, reset and enabled', () => {
    const guest = new XhciGuest().setUp();
    expect(guest.controller.ports.connect(new FakeUsbDevice())).toBe(USB2_PORT);
    expect(guest.events()).toMatchObject([{ type: 34, pointer: USB2_PORT * 0x100_0000 }]);
    // CCS, polling, power, high speed, CSC.
    expect(guest.read(portRegister(USB2_PORT))).toBe(0x20ee1);
    guest.write(portRegister(USB2_PORT), 0x210);
    // Enabled, U0, and PRC beside the CSC that nobody cleared.
    expect(guest.read(portRegister(USB2_PORT))).toBe(0x220e03);
    guest.write(portRegister(USB2_PORT), 0x220200);
    expect(guest.read(portRegister(USB2_PORT))).toBe(0xe03);
  });

  test('a USB 3 device gets a USB 3 port and is enabled by itself', () => {
    const guest = new XhciGuest().setUp();
    expect(guest.controller.ports.connect(new FakeUsbDevice(UsbSpeed.Super))).toBe(1);
    expect(guest.read(portRegister(1))).toBe(0x21203);
  });

  test('there are ten ports of each kind, and the eleventh device has none', () => {
    const guest = new XhciGuest();
    const ports = Array.from({ length: 11 }, () => guest.controller.ports.connect(new FakeUsbDevice()));
    expect(ports).toEqual([11, 12, 13, 14, 15, 16, 17, 18, 19, 20, undefined]);
  });

  test('a device that comes back has its port again', () => {
    const guest = new XhciGuest();
    guest.controller.ports.connect(new FakeUsbDevice());
    expect(guest.controller.ports.connect(new FakeUsbDevice(), 15)).toBe(15);
  });

  test('a device that is pulled out is told, and its transfers fail', () => {
    const { guest, device, slot, port } = configured();
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    guest.ring(slot, BULK_IN);
    guest.controller.ports.disconnect(device);
    expect(guest.read(portRegister(port)) & 0x20003).toBe(0x20000);
    device.give(device.inFlight[0]!, 'gone');
    expect(guest.events()).toMatchObject([{ type: 34 }, { type: 32, code: Code.transaction }]);
    expect(guest.command(Command.disable, 0, { slot })?.code).toBe(Code.success);
  });

  // Mutation: let a port without power ignore all writes, as C does.
  test.each([UsbSpeed.High, UsbSpeed.Super])('power off and on plugs a device of speed %i in anew', (speed) => {
    const { guest, port } = configured({ speed });
    const status = () => guest.read(portRegister(port));
    const fresh = speed === UsbSpeed.Super ? 0x21203 : 0x20ee1;
    guest.write(portRegister(port), 0xfe0200);
    expect(status() & 0xfe0203).toBe(0x203);
    guest.write(portRegister(port), 0x0e000000);
    // No power, nothing there, and no event: only the wake bits are left.
    expect(status() & ~0x1e0).toBe(0x0e000000);
    expect(guest.events()).toEqual([]);
    // Neither a reset nor a link state brings it back.
    guest.write(portRegister(port), 0x10);
    guest.write(portRegister(port), 0x10060);
    expect(status() & 0x213).toBe(0);
    guest.write(portRegister(port), 0x0e000200);
    expect(status()).toBe((0x0e000000 | fresh) >>> 0);
    expect(guest.events()).toMatchObject([{ type: 34, pointer: (port << 24) >>> 0 }]);
  });

  test('a port without power tells of nobody who comes and goes, and shows who is there with it', () => {
    const guest = new XhciGuest().setUp();
    guest.write(portRegister(USB2_PORT), 0);
    const device = new FakeUsbDevice();
    expect(guest.controller.ports.connect(device)).toBe(USB2_PORT);
    expect(guest.read(portRegister(USB2_PORT)) & 0x20203).toBe(0);
    guest.controller.ports.disconnect(device);
    guest.controller.ports.connect(device);
    expect(guest.read(portRegister(USB2_PORT)) & 0x20203).toBe(0);
    expect(guest.events()).toEqual([]);
    guest.write(portRegister(USB2_PORT), 0x200);
    expect(guest.read(portRegister(USB2_PORT))).toBe(0x20ee1);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
  });

  test.each([
    ['the guest asked for its power back', (guest: XhciGuest) => guest.write(portRegister(USB2_PORT), 0x200)],
    ['the controller was reset', (guest: XhciGuest) => guest.startAgain()],
  ])('a port that was switched off with nobody there shows who comes, once %s', (_what, wake) => {
    const guest = new XhciGuest().setUp();
    guest.write(portRegister(USB2_PORT), 0);
    wake(guest);
    guest.controller.ports.connect(new FakeUsbDevice());
    expect(guest.read(portRegister(USB2_PORT))).toBe(0x20ee1);
  });

  test('a suspended port resumes when its device wants so', () => {
    const { guest, device, port } = configured();
    guest.write(portRegister(port), 0x10260);
    expect((guest.read(portRegister(port)) >>> 5) & 0xf).toBe(3);
    device.onRemoteWake?.();
    expect((guest.read(portRegister(port)) >>> 5) & 0xf).toBe(15);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
  });

  test('a reset that takes its time shows as one', async () => {
    const { guest, device, port } = configured();
    let answer: (isThere: boolean) => void = () => {};
    device.resetting = new Promise((resolve) => (answer = resolve));
    guest.write(portRegister(port), 0x210);
    expect(guest.read(portRegister(port)) & 0x10).toBe(0x10);
    // One that is being reset is not reset again.
    const { resets } = device;
    guest.write(portRegister(port), 0x210);
    expect(device.resets).toBe(resets);
    answer(true);
    await device.resetting;
    expect(guest.read(portRegister(port)) & 0x200012).toBe(0x200002);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
    // Its time is not looked at any more.
    guest.write(portRegister(port), 0x200200);
    guest.clock.advance(10_000_000_000);
    expect(guest.events()).toEqual([]);
  });

  test('a reset that does not end ends for the guest, and can be asked for again', async () => {
    const { guest, device, port } = configured();
    let answer: (isThere: boolean) => void = () => {};
    device.resetting = new Promise((resolve) => (answer = resolve));
    guest.write(portRegister(port), 0x200200);
    for (let i = 0; i < 2; i++) {
      guest.write(portRegister(port), 0x210);
      guest.clock.advance(1_000_000_000);
      expect(guest.read(portRegister(port)) & 0x200010).toBe(0x10);
      expect(guest.events()).toEqual([]);
      guest.clock.advance(10_000_000_000);
      // §4.19.5: the reset of a USB 2 port never fails.
      expect(guest.read(portRegister(port)) & 0x200013).toBe(0x200003);
      expect(guest.events()).toMatchObject([{ type: 34 }]);
      guest.write(portRegister(port), 0x200200);
    }
    answer(true);
    await device.resetting;
    expect(guest.read(portRegister(port)) & 0x200013).toBe(3);
    expect(guest.events()).toEqual([]);
  });

  test.each([
    ['USB 2', UsbSpeed.High, 0x210],
    ['USB 3', UsbSpeed.Super, 0x210],
    ['USB 3, warm', UsbSpeed.Super, 0x8000_0200],
  ])('a port that is being reset is not enabled (%s)', async (_kind, speed, value) => {
    const { guest, device, port } = configured({ speed });
    device.resetting = Promise.resolve(true);
    expect(guest.read(portRegister(port)) & 0x12).toBe(2);
    guest.write(portRegister(port), value);
    expect(guest.read(portRegister(port)) & 0x12).toBe(0x10);
    // Nor does what has changed include that (table 5-27, PEC).
    expect(guest.read(portRegister(port)) & 0x4_0000).toBe(0);
    await device.resetting;
    expect(guest.read(portRegister(port)) & 0x12).toBe(2);
  });

  test('a write that resets a port clears the change bits that it says', () => {
    const guest = new XhciGuest().setUp();
    const port = guest.controller.ports.connect(new FakeUsbDevice()) as number;
    expect(guest.read(portRegister(port)) & 0x22_0000).toBe(0x2_0000);
    guest.write(portRegister(port), 0x2_0210);
    expect(guest.read(portRegister(port)) & 0x22_0000).toBe(0x20_0000);
    // The reset is over, and changed again.
    guest.write(portRegister(port), 0x20_0210);
    expect(guest.read(portRegister(port)) & 0x22_0000).toBe(0x20_0000);
  });

  test.each([
    ['USB 2', UsbSpeed.High],
    ['USB 3', UsbSpeed.Super],
  ])('a port that is switched off while it is reset is not enabled by the end of that (%s)', async (_kind, speed) => {
    const { guest, device, port } = configured({ speed });
    let answer: (isThere: boolean) => void = () => {};
    device.resetting = new Promise((resolve) => (answer = resolve));
    guest.write(portRegister(port), 0xfe_0200);
    guest.write(portRegister(port), 0x210);
    guest.events();
    guest.write(portRegister(port), 0);
    expect(guest.read(portRegister(port)) & 0x20_0212).toBe(0);
    answer(true);
    await device.resetting;
    guest.clock.advance(10_000_000_000);
    expect(guest.read(portRegister(port)) & 0x20_0212).toBe(0);
    expect(guest.events()).toEqual([]);
    // With its power it is as if just plugged in, whatever else is asked for by that write.
    guest.write(portRegister(port), 0x210);
    await turn();
    expect(guest.read(portRegister(port)) & 0x22_0213).toBe(speed === UsbSpeed.Super ? 0x2_0203 : 0x2_0201);
    // The controller's reset has it on again.
    guest.startAgain();
    expect(guest.read(portRegister(port)) & 0x201).toBe(0x201);
  });

  test('a USB 3 device whose reset does not end is gone, until it comes to itself', async () => {
    const device = new FakeUsbDevice(UsbSpeed.Super);
    const guest = new XhciGuest().setUp();
    const port = guest.controller.ports.connect(device) as number;
    guest.events();
    let answer: (isThere: boolean) => void = () => {};
    device.resetting = new Promise((resolve) => (answer = resolve));
    guest.write(portRegister(port), 0x2_0200);
    guest.write(portRegister(port), 0x8000_0200);
    guest.clock.advance(10_000_000_000);
    // Reset and warm reset are over; neither connected nor enabled.
    expect(guest.read(portRegister(port)) & 0x2a0013).toBe(0x2a0000);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
    guest.write(portRegister(port), 0xfe_0200);
    // Again: what is lost already does not change.
    guest.write(portRegister(port), 0x210);
    guest.clock.advance(10_000_000_000);
    expect(guest.read(portRegister(port)) & 0x2a0013).toBe(0x200000);
    guest.events();
    answer(true);
    await device.resetting;
    expect(guest.read(portRegister(port)) & 0x20013).toBe(0x20003);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
  });

  test('a USB 3 device that is lost by a reset is connected again by the next one', async () => {
    const device = new FakeUsbDevice(UsbSpeed.Super);
    const guest = new XhciGuest().setUp();
    const port = guest.controller.ports.connect(device) as number;
    let answer: (isThere: boolean) => void = () => {};
    device.resetting = new Promise((resolve) => (answer = resolve));
    guest.write(portRegister(port), 0x210);
    guest.clock.advance(10_000_000_000);
    // All change bits are cleared.
    guest.write(portRegister(port), 0xfe_0200);
    guest.events();
    expect(guest.read(portRegister(port)) & 0xfe0013).toBe(0);
    guest.write(portRegister(port), 0x8000_0200);
    answer(true);
    await device.resetting;
    // CCS, PED, U0, power, super speed; CSC, WRC, PRC.
    expect(guest.read(portRegister(port))).toBe(0x2a1203);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
  });

  test('a reset that hangs is listened to once, however often port and controller are reset meanwhile', async () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    let answer: (isThere: boolean) => void = () => {};
    device.resetting = new Promise((resolve) => (answer = resolve));
    const listened = vi.spyOn(device.resetting, 'then');
    const port = guest.controller.ports.connect(device) as number;
    for (let i = 0; i < 100; i++) {
      guest.write(portRegister(port), 0x210);
      guest.startAgain();
      guest.events();
    }
    expect(device.resets).toBe(100);
    expect(listened).toHaveBeenCalledTimes(1);
    // Nobody asked since the controller was reset.
    guest.write(portRegister(port), 0xfe_0200);
    answer(true);
    await turn();
    expect(guest.read(portRegister(port)) & 0x200012).toBe(0);
    expect(guest.events()).toEqual([]);
  });

  test('the answer to a reset is that of the last one, which may have been asked for before', async () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    let answer: (isThere: boolean) => void = () => {};
    device.resetting = new Promise((resolve) => (answer = resolve));
    const port = guest.controller.ports.connect(device) as number;
    guest.write(portRegister(port), 0x210);
    guest.startAgain();
    guest.write(portRegister(port), 0x210);
    answer(true);
    await turn();
    expect(guest.read(portRegister(port)) & 0x200012).toBe(0x200002);
    expect(guest.events()).toMatchObject([{ type: 34 }]);
    // An answer that is over can be given again.
    guest.write(portRegister(port), 0x20_0200);
    guest.write(portRegister(port), 0x210);
    await turn();
    expect(guest.read(portRegister(port)) & 0x200012).toBe(0x200002);
  });
});

test('a doorbell with a target that no slot has does nothing, not even for commands', () => {
  const guest = new XhciGuest().setUp();
  guest.queueCommand(Command.noOp);
  guest.write(Reg.doorbell, 33);
  expect(guest.events()).toEqual([]);
  guest.write(Reg.doorbell, 32);
  expect(guest.events()).toHaveLength(1);
});

describe('commands (§4.6)', () => {
  test('an address is the number of the slot', () => {
    const { guest, slot } = configured();
    const dword3 = guest.memory.readU32(guest.contextOf(slot) + 12);
    expect(dword3).toBe(((3 << 27) | slot) >>> 0);
    expect(guest.endpointState(slot, 1)).toBe(RUNNING);
  });

  test('Address Device with BSR gives none, and a second one does', () => {
    const guest = new XhciGuest().setUp();
    guest.controller.ports.connect(new FakeUsbDevice());
    const slot = guest.command(Command.enable)?.slot ?? 0;
    expect(guest.addressSlot(slot, USB2_PORT, 1 << 9)?.code).toBe(Code.success);
    expect(guest.memory.readU32(guest.contextOf(slot) + 12)).toBe(1 << 27);
    expect(guest.addressSlot(slot, USB2_PORT, 1 << 9)?.code).toBe(Code.context);
    expect(guest.addressSlot(slot, USB2_PORT)?.code).toBe(Code.success);
    expect(guest.addressSlot(slot, USB2_PORT)?.code).toBe(Code.context);
  });

  test('a device that cannot be opened is a transaction error, and the next command waits for it', async () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    let answer: (isThere: boolean) => void = () => {};
    device.opening = new Promise((resolve) => (answer = resolve));
    guest.controller.ports.connect(device);
    const slot = guest.command(Command.enable)?.slot ?? 0;
    expect(guest.addressSlot(slot, USB2_PORT)).toBeUndefined();
    expect(guest.read(Reg.crcrLow)).toBe(8);
    expect(guest.command(Command.noOp)).toBeUndefined();
    answer(false);
    await device.opening;
    await turn();
    expect(guest.events()).toMatchObject([{ code: Code.transaction }, { code: Code.success }]);
    expect(guest.read(Reg.crcrLow)).toBe(0);
  });

  test('a device that is opened while the controller is reset is nobody’s', async () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    let answer: (isThere: boolean) => void = () => {};
    device.opening = new Promise((resolve) => (answer = resolve));
    guest.controller.ports.connect(device);
    const slot = guest.command(Command.enable)?.slot ?? 0;
    guest.addressSlot(slot, USB2_PORT);
    guest.write(Reg.command, 2);
    answer(true);
    await device.opening;
    await turn();
    expect(guest.read(Reg.crcrLow)).toBe(0);
    guest.write(Reg.doorbell + 4 * slot, 1);
    expect(device.inFlight).toEqual([]);
  });

  test('an opening that hangs is listened to once, however often it is asked for and the controller reset', async () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    let answer: (isThere: boolean) => void = () => {};
    device.opening = new Promise((resolve) => (answer = resolve));
    const listened = vi.spyOn(device.opening, 'then');
    guest.controller.ports.connect(device);
    for (let i = 0; i < 100; i++) {
      guest.startAgain();
      const slot = guest.command(Command.enable)?.slot ?? 0;
      expect(guest.addressSlot(slot, USB2_PORT)).toBeUndefined();
    }
    expect(device.opens).toBe(100);
    expect(listened).toHaveBeenCalledTimes(1);
    answer(true);
    await turn();
    expect(guest.events()).toMatchObject([{ type: 33, code: Code.success, slot: 1 }]);
    guest.control(1, SET_CONFIGURATION, 0);
    expect(device.inFlight).toHaveLength(1);
  });

  // Mutation: wait for the device for ever: no other command is carried out meanwhile.
  test('an opening that hangs ends the command after three seconds, and the device can be had later', async () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    let answer: (isThere: boolean) => void = () => {};
    device.opening = new Promise((resolve) => (answer = resolve));
    guest.controller.ports.connect(device);
    const slot = guest.command(Command.enable)?.slot ?? 0;
    for (let i = 0; i < 2; i++) {
      expect(guest.addressSlot(slot, USB2_PORT)).toBeUndefined();
      guest.clock.advance(2_999_999_999);
      await turn();
      expect(guest.events()).toEqual([]);
      guest.clock.advance(1);
      await turn();
      expect(guest.events()).toMatchObject([{ type: 33, code: Code.transaction, slot }]);
      expect(guest.command(Command.noOp)?.code).toBe(Code.success);
    }
    answer(true);
    await turn();
    expect(guest.events()).toEqual([]);
    device.opening = true;
    expect(guest.addressSlot(slot, USB2_PORT)?.code).toBe(Code.success);
    guest.clock.advance(10_000_000_000);
    expect(guest.events()).toEqual([]);
  });

  test('a command that waits can be aborted', () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    device.opening = new Promise(() => {});
    guest.controller.ports.connect(device);
    const slot = guest.command(Command.enable)?.slot ?? 0;
    guest.addressSlot(slot, USB2_PORT);
    guest.write(Reg.crcrLow, 4);
    expect(guest.events()).toMatchObject([{ code: 25 }, { code: 24 }]);
    expect(guest.read(Reg.crcrLow)).toBe(0);
  });

  test('an abort is not forgotten while the event ring has no room', () => {
    const guest = new XhciGuest(16).setUp();
    const device = new FakeUsbDevice();
    device.opening = new Promise(() => {});
    const port = guest.controller.ports.connect(device) ?? 0;
    guest.events();
    guest.write(portRegister(port), 0x210);
    guest.command(Command.enable);
    guest.addressSlot(1, port);
    const other = new FakeUsbDevice();
    for (let i = 0; i < 20; i++) {
      guest.controller.ports.connect(other);
      guest.controller.ports.disconnect(other);
    }
    guest.write(Reg.crcrLow, 4);
    const seen = [guest.events(), guest.events(), guest.events()].flat();
    expect(seen.filter(({ type }) => type === 33).map(({ code }) => code)).toEqual([25, 24]);
    expect(guest.read(Reg.crcrLow) & 8).toBe(0);
  });

  test('an endpoint of the wrong direction, and streams that are too many, are parameter errors', () => {
    const { guest, slot } = configured();
    expect(guest.configure(slot, { 5: 2 })?.code).toBe(Code.parameter);
    expect(guest.configure(slot, { 2: 6 })?.code).toBe(Code.parameter);
  });

  test('a control endpoint has no streams, however many', () => {
    const guest = new XhciGuest().setUp();
    const port = guest.controller.ports.connect(new FakeUsbDevice()) ?? 0;
    const slot = guest.command(Command.enable)?.slot ?? 0;
    guest.memory.writeU64(At.contextArray + 8 * slot, BigInt(guest.contextOf(slot)));
    guest.memory.writeU32(At.input + 4, 3);
    guest.memory.writeU32(At.input + 0x24, port << 16);
    guest.endpointContext(1, 4, 0x100, 15 << 10);
    expect(guest.command(Command.address, At.input, { slot })?.code).toBe(Code.parameter);
    // Nor has one of interrupts or packets.
    guest.addressSlot(slot, port);
    for (const [id, type] of [
      [7, 5],
      [7, 7],
      [6, 1],
      [6, 3],
    ] as const) {
      guest.ram.fill(0, At.input, At.input + 0x420);
      guest.endpointContext(id, type, 0x100, (1 << 10) | (1 << 15));
      guest.memory.writeU32(At.input + 4, 1 | (1 << id));
      expect(guest.command(Command.configure, At.input, { slot })?.code).toBe(Code.parameter);
    }
  });

  test('Reset Device leaves the control endpoint', () => {
    const { guest, slot } = configured();
    expect(guest.command(Command.resetDevice, 0, { slot })?.code).toBe(Code.success);
    expect(guest.endpointState(slot, BULK_IN)).toBe(0);
    expect(guest.endpointState(slot, 1)).toBe(RUNNING);
    expect(guest.command(Command.stop, 0, { slot, endpoint: BULK_IN })?.code).toBe(12);
  });

  test('64 slots, and no more', () => {
    const guest = new XhciGuest(256).setUp();
    for (let i = 1; i <= 64; i++) expect(guest.command(Command.enable)?.slot).toBe(i);
    expect(guest.command(Command.enable)).toMatchObject({ code: 9, slot: 0 });
    expect(guest.command(Command.disable, 0, { slot: 7 })?.code).toBe(Code.success);
    expect(guest.command(Command.enable)?.slot).toBe(7);
  });
});

describe('transfers (§4.10, §4.11)', () => {
  test('a control transfer: data in guest memory, short packet told at the data, success at the status', () => {
    const { guest, device, slot } = configured();
    const status = guest.control(slot, GET_DEVICE_DESCRIPTOR, 64);
    expect(device.inFlight[0]?.setup).toEqual({ requestType: 0x80, request: 6, value: 0x100, index: 0, length: 64 });
    device.complete(Uint8Array.from({ length: 18 }, (_, i) => i + 1));
    expect(guest.memory.read(At.buffers, 19)).toEqual(
      Uint8Array.from([...Array(18).keys()].map((i) => i + 1).concat(0)),
    );
    expect(guest.events()).toMatchObject([
      { code: Code.short, rest: 46, pointer: status - 16 },
      { code: Code.success, pointer: status },
    ]);
  });

  test('a control transfer without data; the second waits for the first', () => {
    const { guest, device, slot } = configured();
    guest.control(slot, SET_CONFIGURATION, 0);
    guest.control(slot, SET_CONFIGURATION, 0);
    expect(device.inFlight).toHaveLength(1);
    device.complete(0);
    expect(device.inFlight).toHaveLength(1);
    device.complete(0);
    expect(guest.events()).toMatchObject([{ code: Code.success }, { code: Code.success }]);
  });

  test('an OUT descriptor of several blocks is one transfer', () => {
    const { guest, device, slot } = configured();
    guest.memory.write(At.buffers, Uint8Array.of(1, 2, 3));
    guest.memory.write(At.buffers + 0x1000, Uint8Array.of(4, 5));
    guest.queue(slot, BULK_OUT, Type.normal, At.buffers, 3, CHAIN);
    const last = guest.queue(slot, BULK_OUT, Type.normal, At.buffers + 0x1000, 2, IOC);
    guest.ring(slot, BULK_OUT);
    expect(device.inFlight[0]).toMatchObject({ endpoint: 0x02, isIn: false, type: 'bulk' });
    expect([...(device.inFlight[0]?.buffer ?? [])]).toEqual([1, 2, 3, 4, 5]);
    device.complete();
    expect(guest.events()).toMatchObject([{ code: Code.success, pointer: last, rest: 0, slot, endpoint: BULK_OUT }]);
  });

  test('a descriptor whose end is not there yet waits', () => {
    const { guest, device, slot } = configured();
    guest.queue(slot, BULK_OUT, Type.normal, At.buffers, 3, CHAIN);
    guest.ring(slot, BULK_OUT);
    expect(device.inFlight).toEqual([]);
    guest.queue(slot, BULK_OUT, Type.normal, At.buffers, 3, IOC);
    guest.ring(slot, BULK_OUT);
    expect(device.inFlight[0]?.buffer).toHaveLength(6);
  });

  test('short: told once, where the data ended', () => {
    const { guest, device, slot } = configured();
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, CHAIN | ISP);
    const second = guest.queue(slot, BULK_IN, Type.normal, At.buffers + 0x1000, 512, CHAIN | ISP);
    guest.queue(slot, BULK_IN, Type.normal, At.buffers + 0x2000, 512, IOC | ISP);
    guest.ring(slot, BULK_IN);
    device.complete(new Uint8Array(600).fill(7));
    expect(guest.events()).toMatchObject([{ code: Code.short, pointer: second, rest: 512 - 88 }]);
    expect(guest.memory.read(At.buffers + 0x1000 + 87, 2)).toEqual(Uint8Array.of(7, 0));
  });

  test('event data tells how much was moved', () => {
    const { guest, device, slot } = configured();
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, CHAIN);
    guest.queue(slot, BULK_IN, Type.eventData, 0x1234_5678_9abc, 0, IOC);
    guest.ring(slot, BULK_IN);
    device.complete(new Uint8Array(100));
    expect(guest.events()).toMatchObject([{ code: Code.short, pointer: 0x1234_5678_9abc, rest: 100 }]);
  });

  test('event data comes back as it was given, all 64 bits of it', () => {
    const { guest, device, slot } = configured();
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, CHAIN);
    const block = guest.queue(slot, BULK_IN, Type.eventData, 0, 0, IOC);
    // Drivers have the address of something of their own there: of a kernel, in the upper half.
    guest.memory.writeU64(block, 0xffff_8001_2345_6789n);
    guest.ring(slot, BULK_IN);
    device.complete();
    expect(guest.events()).toMatchObject([{ code: Code.success, parameter: 0xffff_8001_2345_6789n }]);
  });

  test('a stall halts the endpoint; reset and a new dequeue pointer bring it back', () => {
    const { guest, device, slot } = configured();
    const first = guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    const next = guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    guest.ring(slot, BULK_IN);
    device.give(device.inFlight[0]!, 'stall');
    expect(guest.events()).toMatchObject([{ code: Code.stall, pointer: first, rest: 512 }]);
    expect(guest.endpointState(slot, BULK_IN)).toBe(HALTED);
    expect(guest.dequeueOf(slot, BULK_IN)).toBe(first | 1);
    expect(device.inFlight).toEqual([]);
    guest.ring(slot, BULK_IN);
    expect(device.inFlight).toEqual([]);
    expect(guest.command(Command.setDequeue, next | 1, { slot, endpoint: BULK_IN })?.code).toBe(Code.context);
    expect(guest.command(Command.resetEndpoint, 0, { slot, endpoint: BULK_IN })?.code).toBe(Code.success);
    expect(guest.endpointState(slot, BULK_IN)).toBe(STOPPED);
    expect(guest.command(Command.setDequeue, next | 1, { slot, endpoint: BULK_IN })?.code).toBe(Code.success);
    guest.ring(slot, BULK_IN);
    expect(guest.endpointState(slot, BULK_IN)).toBe(RUNNING);
    device.complete();
    expect(guest.events()).toMatchObject([{ code: Code.success, pointer: next }]);
  });

  test('a block that is none is a TRB error, and the endpoint waits for another pointer', () => {
    const { guest, slot } = configured();
    const bad = guest.queue(slot, BULK_IN, 30, 0, 0, IOC);
    guest.ring(slot, BULK_IN);
    expect(guest.events()).toMatchObject([{ code: Code.trb, pointer: bad }]);
    expect(guest.endpointState(slot, BULK_IN)).toBe(ERROR);
    expect(guest.command(Command.setDequeue, (bad + 16) | 1, { slot, endpoint: BULK_IN })?.code).toBe(Code.success);
  });

  test('data outside of RAM is a TRB error', () => {
    const { guest, device, slot } = configured();
    guest.queue(slot, BULK_IN, Type.normal, 0xf000_0000, 512, IOC);
    guest.ring(slot, BULK_IN);
    expect(device.inFlight).toEqual([]);
    expect(guest.events()).toMatchObject([{ code: Code.trb }]);
  });

  test('rings and contexts that are no RAM (ACRN CVE-2021-36146)', () => {
    const { guest, device, slot } = configured();
    guest.command(Command.stop, 0, { slot, endpoint: BULK_IN });
    expect(guest.command(Command.setDequeue, 0xf000_0001, { slot, endpoint: BULK_IN })?.code).toBe(Code.success);
    guest.ring(slot, BULK_IN);
    expect(guest.events()).toMatchObject([{ code: Code.trb, pointer: 0xf000_0000 }]);
    expect(guest.command(Command.configure, 0xf000_0000, { slot })?.code).toBe(Code.trb);
    guest.write(Reg.dcbaapLow, 0xf000_0000);
    guest.write(Reg.dcbaapHigh, 0xffff_ffff);
    guest.write(Reg.crcrLow, 0xf000_0001);
    guest.write(Reg.crcrHigh, 0xffff_ffff);
    guest.write(Reg.doorbell, 0);
    expect([guest.read(Reg.crcrLow), device.inFlight.length]).toEqual([0, 0]);
    guest.write(Reg.erstHigh, 0xffff_ffff);
    guest.controller.ports.connect(new FakeUsbDevice());
    expect(guest.line).toBe(false);
  });

  test('doorbells of slots and endpoints that there are not (bhyve CVE-2019-5604)', () => {
    const { guest, device, slot } = configured();
    for (const target of [0, 2, 32, 33, 255]) guest.ring(slot, target);
    for (const other of [2, 64, 65, 255]) guest.write(Reg.doorbell + 4 * other, 1);
    guest.ring(slot, BULK_IN, 7);
    expect([device.inFlight, guest.events()]).toEqual([[], []]);
  });

  test('descriptors without data are not remembered without end', () => {
    const { guest, device, slot } = configured();
    const ring = 0x10_0000;
    const blocks = 1500;
    for (let i = 0; i < 20 * blocks; i++) {
      guest.trb(ring + 16 * i, At.buffers, 0, (Type.normal << 10) | ((i + 1) % blocks === 0 ? IOC : CHAIN) | 1);
    }
    guest.command(Command.stop, 0, { slot, endpoint: BULK_IN });
    guest.command(Command.setDequeue, ring | 1, { slot, endpoint: BULK_IN });
    guest.ring(slot, BULK_IN);
    guest.clock.advance(1e6);
    // 16 MiB in all, and a block counts for a kibibyte.
    expect(device.inFlight.length).toBe(10);
    device.complete();
    guest.clock.advance(1e6);
    expect(device.inFlight.length).toBe(10);
  });

  test('links are followed, and a circle of them ends', () => {
    const { guest, device, slot } = configured();
    const at = guest.queue(slot, BULK_IN, Type.link, guest.ringOf(slot, 9), 0, 0);
    guest.trb(guest.ringOf(slot, 9), At.buffers, 8, (Type.normal << 10) | IOC | 1);
    guest.ring(slot, BULK_IN);
    expect(device.inFlight).toHaveLength(1);
    device.complete();
    guest.trb(at, at, 0, (Type.link << 10) | 1);
    guest.command(Command.stop, 0, { slot, endpoint: BULK_IN });
    guest.command(Command.setDequeue, at | 1, { slot, endpoint: BULK_IN });
    guest.ring(slot, BULK_IN);
    expect(guest.events()).toMatchObject([{ code: Code.trb }]);
  });

  test('a ring of blocks without an end gives others their turn', () => {
    const { guest, slot } = configured();
    const base = guest.ringOf(slot, BULK_OUT);
    guest.trb(base, 0, 0, (Type.noOp << 10) | 1);
    guest.trb(base + 16, base, 0, (Type.link << 10) | 1);
    guest.ring(slot, BULK_OUT);
    expect(guest.clock.armed).toBe(1);
    guest.clock.advance(50_000);
    expect(guest.clock.armed).toBe(1);
    guest.write(Reg.command, 2);
    expect(guest.clock.armed).toBe(0);
  });
});

describe('a controller that is halted (§5.4.1, R/S)', () => {
  test('touches no guest memory, and goes on where it was when it runs again', () => {
    const { guest, device, slot } = configured();
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 8, IOC);
    guest.queue(slot, BULK_IN, Type.normal, At.buffers + 0x1000, 8, IOC);
    for (let i = 0; i < 20; i++) guest.queue(slot, BULK_OUT, Type.normal, At.buffers, 8, IOC);
    guest.ring(slot, BULK_IN);
    guest.ring(slot, BULK_OUT);
    const taken = device.inFlight.length;
    guest.write(Reg.command, 4);
    const before = guest.ram.slice();
    // What the device has comes back, and the guest may have other things in that memory by now.
    device.complete(new Uint8Array(8).fill(0xaa));
    device.give(device.inFlight[0]!, 'stall');
    device.give(device.inFlight[0]!, 'completed', 8);
    expect(Buffer.compare(guest.ram, before)).toBe(0);
    expect(device.inFlight).toHaveLength(taken - 3);
    guest.write(Reg.command, 5);
    expect(guest.memory.read(At.buffers, 8)).toEqual(new Uint8Array(8).fill(0xaa));
    expect(guest.endpointState(slot, BULK_IN)).toBe(HALTED);
    expect(guest.events().map(({ code, endpoint }) => [code, endpoint])).toEqual([
      [Code.success, BULK_IN],
      [Code.stall, BULK_IN],
      [Code.success, BULK_OUT],
    ]);
  });

  test('gives no device an address that was opened when it was halted already', async () => {
    const guest = new XhciGuest().setUp();
    const device = new FakeUsbDevice();
    let answer: (isThere: boolean) => void = () => {};
    device.opening = new Promise((resolve) => (answer = resolve));
    guest.controller.ports.connect(device);
    const slot = guest.command(Command.enable)?.slot ?? 0;
    guest.addressSlot(slot, USB2_PORT);
    guest.write(Reg.command, 4);
    const before = guest.ram.slice();
    const reads = vi.spyOn(guest.memory, 'readU32');
    answer(true);
    await device.opening;
    await turn();
    expect(Buffer.compare(guest.ram, before)).toBe(0);
    expect(reads).not.toHaveBeenCalled();
    guest.write(Reg.command, 5);
    expect(guest.events()).toMatchObject([{ type: 33, code: Code.transaction }]);
    expect(guest.addressSlot(slot, USB2_PORT)).toBeUndefined();
    await turn();
    expect(guest.events()).toMatchObject([{ type: 33, code: Code.success, slot }]);
  });

  test('looks at no command, though there may be room for events', () => {
    const guest = new XhciGuest(16).setUp();
    for (let i = 0; i < 40; i++) guest.queueCommand(Command.noOp);
    guest.write(Reg.doorbell, 0);
    expect(guest.read(Reg.crcrLow)).toBe(8);
    guest.write(Reg.command, 4);
    const { memory } = guest;
    const ofCommands = vi.spyOn(memory, 'readU32');
    guest.write(Reg.erdpLow, At.events | 8);
    guest.write(Reg.crcrLow, 2);
    guest.clock.advance(1e6);
    expect(ofCommands.mock.calls.filter(([at]) => at >= At.commands && at < At.eventTable)).toEqual([]);
    ofCommands.mockRestore();
    guest.write(Reg.command, 5);
    const seen = [guest.events(), guest.events(), guest.events(), guest.events()].flat();
    expect(seen.filter(({ type }) => type === 33).at(-1)?.code).toBe(24);
    expect(guest.read(Reg.crcrLow)).toBe(0);
  });

  test('is reset, and an endpoint that was just being reset writes nothing', async () => {
    const { guest, device, slot } = configured();
    device.isSlow = true;
    for (const _ of [1, 2]) guest.queue(slot, BULK_IN, Type.normal, At.buffers, 8, IOC);
    guest.ring(slot, BULK_IN);
    device.give(device.inFlight[0]!, 'stall');
    expect(guest.events()).toMatchObject([{ code: Code.stall }]);
    expect(guest.command(Command.resetEndpoint, 0, { slot, endpoint: BULK_IN })).toBeUndefined();
    guest.write(Reg.command, 4);
    const before = guest.ram.slice();
    guest.write(Reg.command, 2);
    await turn();
    expect(Buffer.compare(guest.ram, before)).toBe(0);
  });
});

describe('what waits for its turn', () => {
  test('an endpoint that is no more waits for nothing: however many were made, one is remembered', () => {
    const { guest, device, slot } = configured();
    // As much as may be in flight, of a device that has nothing to say.
    const ring = 0x10_0000;
    for (let i = 0; i < 200; i++) guest.trb(ring + 16 * i, At.buffers, 0x1_ff00, (Type.normal << 10) | IOC | 1);
    guest.trb(ring + 16 * 200, 0, 0, 0);
    for (const id of [BULK_IN, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31]) {
      guest.ram.fill(0, At.input, At.input + 0x420);
      guest.endpointContext(id, 6, ring);
      guest.memory.writeU32(At.input + 4, 1 | (1 << id));
      guest.memory.writeU32(At.input, id === BULK_IN ? 1 << id : 0);
      guest.command(Command.configure, At.input, { slot });
      guest.ring(slot, id);
      guest.events();
    }
    const inFlight = device.inFlight.length;
    guest.queue(slot, BULK_OUT, Type.normal, At.buffers, 0x1_ff00, IOC);
    guest.ring(slot, BULK_OUT);
    expect(device.inFlight).toHaveLength(inFlight);
    const waiting = guest.controller.waiting;
    for (let i = 0; i < 30; i++) {
      guest.ram.fill(0, At.input, At.input + 0x420);
      guest.endpointContext(BULK_OUT, 2, guest.ringOf(slot, BULK_OUT));
      guest.memory.writeU32(At.input, 1 << BULK_OUT);
      guest.memory.writeU32(At.input + 4, 1 | (1 << BULK_OUT));
      guest.command(Command.configure, At.input, { slot });
      guest.ring(slot, BULK_OUT);
    }
    expect(guest.controller.waiting).toBe(waiting);
  });

  /** A slot with all endpoints there can be, and how many words of guest memory some work reads. */
  function manyRings() {
    const { guest, slot } = configured();
    const ids = Array.from({ length: 30 }, (_, i) => i + 2);
    guest.configure(slot, Object.fromEntries(ids.map((id) => [id, id % 2 === 1 ? 6 : 2])));
    const reads = vi.spyOn(guest.memory, 'readU32');
    const readsOf = (work: () => void) => {
      reads.mockClear();
      work();
      return reads.mock.calls.length;
    };
    return { guest, slot, ids, readsOf };
  }

  test('many rings without an end have one turn among them, by a timer and when there is room for events', () => {
    const { guest, slot, ids, readsOf } = manyRings();
    for (const id of ids) {
      const base = guest.ringOf(slot, id);
      guest.trb(base, 0, 0, (Type.noOp << 10) | 1);
      guest.trb(base + 16, base, 0, (Type.link << 10) | 1);
      guest.ring(slot, id);
    }
    // Of the 2048 a descriptor counts for one, and its block for another; with its link that is eight words to be read.
    const turn = 1024 * 8;
    const ofTimer = readsOf(() => guest.clock.advance(50_000));
    const ofRoom = readsOf(() => guest.write(Reg.erdpHigh, 0));
    for (const count of [ofTimer, ofRoom]) expect([count >= turn, count < 2 * turn]).toEqual([true, true]);
    // None of them is forgotten.
    expect(guest.controller.waiting).toBe(ids.length);
  });

  test.each<[string, { blocks: number; links?: number; isWhole?: boolean }]>([
    ['has no end yet', { blocks: 1000 }],
    ['has no end yet, and links between its blocks', { blocks: 100, links: 16 }],
    ['is refused, as too much is in flight', { blocks: 1000, isWhole: true }],
  ])(
    'many rings whose descriptor %s have one turn among them, too',
    (_what, { blocks, links = 0, isWhole = false }) => {
      const { guest, slot, ids, readsOf } = manyRings();
      const ring = 0x10_0000;
      let at = ring;
      for (let i = 0; i < blocks; i++) {
        const flags = isWhole && i === blocks - 1 ? 0 : CHAIN;
        guest.trb(at, At.buffers, 0, (Type.normal << 10) | flags | 1);
        for (let link = 0; link < links; link++) guest.trb((at += 16), at + 16, 0, (Type.link << 10) | 1);
        at += 16;
      }
      // As at S3: nothing more is lent to a device.
      if (isWhole) guest.controller.recall();
      for (const id of ids) {
        guest.trb(guest.ringOf(slot, id), ring, 0, (Type.link << 10) | 1);
        guest.ring(slot, id);
      }
      // 2048 blocks of four words.
      const turn = 2048 * 4;
      const ofRoom = readsOf(() => guest.write(Reg.erdpHigh, 0));
      const ofTimer = readsOf(() => guest.clock.advance(50_000));
      for (const count of [ofTimer, ofRoom]) expect([count >= turn, count < 2 * turn]).toEqual([true, true]);
      // Each has its turn, and what has no end is not looked at again until the guest says so.
      guest.clock.advance(1e6);
      expect(guest.controller.waiting).toBe(isWhole ? ids.length : 0);
      expect(readsOf(() => guest.clock.advance(1e6))).toBe(0);
    },
  );
});

describe('stop (§4.6.9)', () => {
  test('everything comes back first, and is done again when the doorbell rings', async () => {
    const { guest, device, slot } = configured();
    device.isSlow = true;
    const first = guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    guest.queue(slot, BULK_IN, Type.normal, At.buffers + 0x1000, 512, IOC);
    guest.ring(slot, BULK_IN);
    expect(guest.command(Command.stop, 0, { slot, endpoint: BULK_IN })).toBeUndefined();
    const [a, b] = [...device.inFlight];
    // The last one is asked for first.
    expect(device.cancelled).toEqual([b, a]);
    device.give(b!, 'cancelled');
    device.give(a!, 'cancelled');
    await turn();
    expect(guest.events()).toMatchObject([
      { type: 32, code: Code.stopped, pointer: first, rest: 512 },
      { type: 33, code: Code.success },
    ]);
    expect(guest.endpointState(slot, BULK_IN)).toBe(STOPPED);
    expect(guest.dequeueOf(slot, BULK_IN)).toBe(first | 1);
    guest.ring(slot, BULK_IN);
    expect(device.inFlight).toHaveLength(2);
  });

  test('what was done meanwhile is told before', async () => {
    const { guest, device, slot } = configured();
    device.isSlow = true;
    const first = guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    const second = guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    guest.ring(slot, BULK_IN);
    guest.command(Command.stop, 0, { slot, endpoint: BULK_IN });
    device.complete();
    device.give(device.inFlight[0]!, 'cancelled');
    await turn();
    expect(guest.events()).toMatchObject([
      { code: Code.success, pointer: first },
      { code: Code.stopped, pointer: second },
      { type: 33, code: Code.success },
    ]);
    expect(guest.dequeueOf(slot, BULK_IN)).toBe(second | 1);
  });

  test('data that came before the stop is kept, and the rest follows it', () => {
    const { guest, device, slot } = configured();
    device.isSlow = true;
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 4, CHAIN);
    const second = guest.queue(slot, BULK_IN, Type.normal, At.buffers + 0x1000, 4, IOC);
    guest.ring(slot, BULK_IN);
    guest.command(Command.stop, 0, { slot, endpoint: BULK_IN });
    const [transfer] = device.inFlight;
    transfer!.buffer.set([1, 2, 3, 4, 5]);
    device.give(transfer!, 'cancelled', 5);
    expect(guest.events()).toMatchObject([{ code: Code.stopped, pointer: second, rest: 3 }]);
    device.isSlow = false;
    guest.clock.advance(50_000);
    guest.ring(slot, BULK_IN);
    expect(device.inFlight[0]?.buffer).toHaveLength(3);
    device.complete(Uint8Array.of(6, 7, 8));
    expect([...guest.memory.read(At.buffers + 0x1000, 4)]).toEqual([5, 6, 7, 8]);
  });

  // A driver that waits longer gives the whole controller up: Linux's after five seconds.
  test('a device that does not give back what it has keeps no driver waiting, and reaches no memory', async () => {
    const { guest, device, slot } = configured();
    device.isSlow = true;
    const first = guest.queue(slot, BULK_IN, Type.normal, At.buffers, 8, IOC);
    guest.ring(slot, BULK_IN);
    const [old] = device.inFlight;
    expect(guest.command(Command.stop, 0, { slot, endpoint: BULK_IN })).toBeUndefined();
    guest.clock.advance(2e9);
    await turn();
    expect(guest.events()).toMatchObject([
      { type: 32, code: Code.stopped, pointer: first, rest: 8 },
      { type: 33, code: Code.success },
    ]);
    expect(guest.endpointState(slot, BULK_IN)).toBe(STOPPED);
    guest.ring(slot, BULK_IN);
    expect(device.inFlight).toHaveLength(2);
    old!.buffer.fill(9);
    device.give(old!, 'completed', 8);
    expect(guest.events()).toEqual([]);
    expect([...guest.memory.read(At.buffers, 8)]).toEqual(new Array(8).fill(0));
    device.complete(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    expect(guest.events()).toMatchObject([{ type: 32, code: Code.success, pointer: first }]);
    expect([...guest.memory.read(At.buffers, 8)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(guest.controller.inFlight).toBe(0);
  });

  test('an endpoint that is let go tells nothing of what comes back', () => {
    const { guest, device, slot } = configured();
    device.isSlow = true;
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    guest.ring(slot, BULK_IN);
    const [transfer] = device.inFlight;
    expect(guest.command(Command.disable, 0, { slot })?.code).toBe(Code.success);
    transfer!.buffer.fill(9);
    device.give(transfer!, 'completed', 512);
    expect(guest.events()).toEqual([]);
    expect(guest.memory.readU8(At.buffers)).toBe(0);
    expect(guest.controller.inFlight).toBe(0);
  });
});

describe('what a driver does with transfers in flight', () => {
  type World = ReturnType<typeof configured>;
  const halt = ({ guest }: World) => guest.write(Reg.command, 4);
  const restart = ({ guest }: World) => guest.write(Reg.command, 2);
  // Mutation: let `letGoEndpoints` only forget them.
  test.each<[string, (world: World) => void]>([
    ['HCRST', restart],
    ['HCRST while it is halted', (w) => [halt(w), restart(w)]],
    ['HCRST twice', (w) => [restart(w), restart(w)]],
    [
      'HCRST while the endpoint stops',
      (w) => [w.guest.command(Command.stop, 0, { slot: w.slot, endpoint: BULK_IN }), restart(w)],
    ],
    ['Disable Slot', (w) => w.guest.command(Command.disable, 0, { slot: w.slot })],
    [
      'Disable Slot while the endpoint stops',
      (w) => [
        w.guest.command(Command.stop, 0, { slot: w.slot, endpoint: BULK_IN }),
        restart(w),
        w.guest.command(Command.disable, 0, { slot: w.slot }),
      ],
    ],
    ['Reset Device', (w) => w.guest.command(Command.resetDevice, 0, { slot: w.slot })],
    ['power-on', (w) => w.guest.controller.reset()],
    [
      'the endpoint configured anew, its ring empty',
      (w) => {
        const ring = w.guest.ringOf(w.slot, BULK_IN);
        w.guest.ram.fill(0, ring, ring + 0x400);
        w.guest.configure(w.slot, { [BULK_IN]: 6 });
      },
    ],
    [
      'another context array',
      (w) => [restart(w), w.guest.write(Reg.dcbaapLow, 0x7000), w.guest.write(Reg.dcbaapHigh, 0)],
    ],
  ])('%s: what comes back is nobody’s, and the next driver is served', async (_what, change) => {
    const world = configured();
    const { guest, device, slot, port } = world;
    device.isSlow = true;
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    guest.queue(slot, BULK_IN, Type.normal, At.buffers + 0x1000, 512, IOC);
    guest.ring(slot, BULK_IN);
    const old = [...device.inFlight];
    expect(old).toHaveLength(2);
    change(world);
    guest.events();
    // Buffers and contexts are something else's by now.
    guest.ram.fill(0xee, At.buffers, At.buffers + 0x2000);
    const contexts = guest.memory.read(guest.contextOf(slot), 0x400);
    for (const transfer of old) {
      transfer.buffer.fill(9);
      device.give(transfer, 'completed', 512);
    }
    await turn();
    guest.clock.advance(1_000_000);
    expect(guest.memory.read(At.buffers, 0x2000)).toEqual(new Uint8Array(0x2000).fill(0xee));
    expect(guest.memory.read(guest.contextOf(slot), 0x400)).toEqual(contexts);
    expect(guest.events()).toEqual([]);
    expect(guest.controller.inFlight).toBe(0);
    // A driver that begins from nothing.
    device.isSlow = false;
    const next = guest.startAgain();
    const again = next.address(port);
    expect(next.configure(again, { [BULK_IN]: 6 })?.code).toBe(Code.success);
    next.queue(again, BULK_IN, Type.normal, At.buffers, 8, IOC);
    next.ring(again, BULK_IN);
    device.complete(Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8));
    expect(next.events()).toMatchObject([{ type: 32, code: Code.success, slot: again }]);
    expect([...next.memory.read(At.buffers, 8)]).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
  });
});

describe('recall: a reset, S3 or the end of the VM', () => {
  test('resolves when everything is back', async () => {
    const { guest, device, slot } = configured();
    device.isSlow = true;
    guest.queue(slot, BULK_IN, Type.normal, At.buffers, 512, IOC);
    guest.ring(slot, BULK_IN);
    let isBack = false;
    const recalled = guest.controller.recall()?.then(() => (isBack = true));
    await turn();
    expect(isBack).toBe(false);
    device.give(device.inFlight[0]!, 'cancelled');
    await recalled;
    expect(isBack).toBe(true);
    expect(guest.controller.recall()).toBeUndefined();
    // After S3 it is done again.
    guest.controller.resume();
    expect(device.inFlight).toHaveLength(1);
    guest.controller.reset();
    expect(device.cancelled).toHaveLength(2);
  });
});

test('a device that keeps what it has: neither a reset nor S3 nor the end waits for ever, and it reaches no memory', async () => {
  const { guest, device, slot } = configured();
  device.isSlow = true;
  guest.queue(slot, BULK_IN, Type.normal, At.buffers, 8, IOC);
  guest.ring(slot, BULK_IN);
  guest.patience.force();
  await guest.controller.recall();
  expect(guest.lines.filter((line) => line.startsWith('warn'))).toHaveLength(1);
  guest.controller.reset();
  device.complete(new Uint8Array(8).fill(0xaa));
  expect(guest.memory.read(At.buffers, 8)).toEqual(new Uint8Array(8));
  expect(guest.controller.recall()).toBeUndefined();
});

test('a guest that resets without end does not make a device that hangs keep more and more', async () => {
  const guest = new XhciGuest().setUp();
  const device = new FakeUsbDevice();
  device.isSlow = true;
  const port = guest.controller.ports.connect(device) ?? 0;
  const MIB = 1024 * 1024;
  const keptBytes = () => device.inFlight.reduce((sum, { buffer }) => sum + buffer.length, 0);
  const kept: number[] = [];
  for (let life = 0; life < 6; life++) {
    const slot = guest.startAgain().address(port);
    guest.configure(slot, { [BULK_IN]: 6, 5: 6 });
    for (const id of [BULK_IN, 5]) {
      for (let i = 0; i < 16; i++) {
        for (let j = 0; j < 15; j++) guest.queue(slot, id, Type.normal, At.buffers, 0x1_0000, CHAIN);
        guest.queue(slot, id, Type.normal, At.buffers, 0x1_0000, IOC);
      }
      guest.ring(slot, id);
    }
    kept.push(keptBytes() / MIB);
    guest.controller.reset();
  }
  // The first life has as much as any, and the others what is left.
  expect(kept[0]).toBeGreaterThan(12);
  expect(kept.at(-1)).toBeLessThanOrEqual(32);
  // When it has come to itself there is room again.
  device.isSlow = false;
  for (const transfer of [...device.inFlight]) device.give(transfer, 'cancelled');
  const slot = guest.startAgain().address(port);
  guest.configure(slot, { [BULK_IN]: 6 });
  guest.queue(slot, BULK_IN, Type.normal, At.buffers, 8, IOC);
  guest.ring(slot, BULK_IN);
  device.complete(8);
  expect(guest.events()).toMatchObject([{ type: 32, code: Code.success }]);
  expect(guest.controller.inFlight).toBe(0);
});

describe('event ring (§4.9.4)', () => {
  test('when it is full the guest is told once, and nothing is lost', () => {
    const { guest, slot } = configured({ eventTrbs: 16 });
    const commands = Array.from({ length: 40 }, () => guest.queueCommand(Command.noOp));
    guest.write(Reg.doorbell, 0);
    expect(guest.read(Reg.crcrLow)).toBe(8);
    const seen: number[] = [];
    const first = guest.events();
    expect(first).toHaveLength(15);
    expect(first.at(-1)).toMatchObject({ type: 37, code: Code.full });
    for (let events = first; events.length > 0; events = guest.events()) {
      seen.push(...events.filter(({ type }) => type === 33).map(({ pointer }) => pointer));
    }
    expect(seen).toEqual(commands);
    expect(guest.read(Reg.crcrLow)).toBe(0);
    expect(slot).toBe(1);
  });

  test('transfers that are done wait for room, and no more are begun than can wait', () => {
    const { guest, device, slot } = configured({ eventTrbs: 16 });
    const blocks = Array.from({ length: 60 }, () => guest.queue(slot, BULK_OUT, Type.normal, At.buffers, 8, IOC));
    guest.ring(slot, BULK_OUT);
    while (device.inFlight.length > 0) device.complete();
    const seen: number[] = [];
    for (;;) {
      const events = guest.events();
      if (events.length === 0) break;
      seen.push(...events.filter(({ type }) => type === 32).map(({ pointer }) => pointer));
      while (device.inFlight.length > 0) device.complete();
    }
    expect(seen).toEqual(blocks);
  });

  test('the line follows the pending bit, and falls with it', () => {
    const guest = new XhciGuest().setUp();
    guest.command(Command.noOp);
    expect(guest.line).toBe(false);
    guest.queueCommand(Command.noOp);
    guest.write(Reg.doorbell, 0);
    expect(guest.line).toBe(true);
    guest.write(Reg.iman, 0);
    expect(guest.line).toBe(false);
    guest.write(Reg.iman, 2);
    expect(guest.line).toBe(true);
    guest.write(Reg.command, 1);
    expect(guest.line).toBe(false);
    guest.write(Reg.command, 5);
    guest.write(Reg.iman, 3);
    expect(guest.line).toBe(false);
  });

  test('a pending interrupt is not told again by a reset of the controller, and the next event is', () => {
    const guest = new XhciGuest().setUp();
    guest.queueCommand(Command.noOp);
    guest.write(Reg.doorbell, 0);
    expect([guest.messages, guest.line]).toEqual([1, true]);
    const driver = guest.startAgain();
    expect(driver.read(Reg.iman) & 1).toBe(1);
    expect(guest.messages).toBe(1);
    driver.queueCommand(Command.noOp);
    driver.write(Reg.doorbell, 0);
    expect(guest.messages).toBe(2);
  });

  test('nor by a power-on, where the line falls, too', () => {
    const guest = new XhciGuest().setUp();
    guest.queueCommand(Command.noOp);
    guest.write(Reg.doorbell, 0);
    const levels: boolean[] = [];
    guest.onLine = (level) => levels.push(level);
    guest.controller.reset();
    expect(guest.messages).toBe(1);
    expect(levels.includes(true)).toBe(false);
    expect(guest.line).toBe(false);
  });

  test('one message for what came while the guest was busy, and one more when it is not through', () => {
    const guest = new XhciGuest().setUp();
    guest.queueCommand(Command.noOp);
    guest.queueCommand(Command.noOp);
    guest.write(Reg.doorbell, 0);
    expect(guest.messages).toBe(1);
    guest.events();
    expect(guest.messages).toBe(1);
    guest.queueCommand(Command.noOp);
    guest.queueCommand(Command.noOp);
    guest.write(Reg.doorbell, 0);
    expect(guest.messages).toBe(2);
    // The guest saw the first of the two only.
    guest.write(Reg.erdpLow, (At.events + 16 * 3) | 8);
    expect(guest.messages).toBe(3);
  });
});

describe('streams (§4.12)', () => {
  test('each has its ring, and its dequeue pointer in its context', () => {
    const { guest, device, slot } = configured();
    const array = 0x70000;
    const ringOfStream = (id: number) => 0x71000 + 0x1000 * id;
    for (const id of [1, 2, 3]) guest.memory.writeU32(array + 16 * id, ringOfStream(id) | 2 | 1);
    guest.ram.fill(0, At.input, At.input + 0x420);
    guest.endpointContext(5, 6, array, (1 << 10) | (1 << 15));
    guest.memory.writeU32(At.input + 0x20 + 0x20 * 5 + 8, array);
    guest.memory.writeU32(At.input + 4, 1 | (1 << 5));
    expect(guest.command(Command.configure, At.input, { slot })?.code).toBe(Code.success);
    for (const id of [2, 3]) guest.trb(ringOfStream(id), At.buffers, 16, (Type.normal << 10) | IOC | 1);
    guest.ring(slot, 5, 3);
    guest.ring(slot, 5, 2);
    expect(device.inFlight.map(({ streamId }) => streamId)).toEqual([3, 2]);
    device.give(device.inFlight[1]!, 'completed', 16);
    expect(guest.events()).toMatchObject([{ code: Code.success, pointer: ringOfStream(2) }]);
    expect(guest.command(Command.stop, 0, { slot, endpoint: 5 })?.code ?? Code.success).toBe(Code.success);
    expect(guest.memory.readU32(array + 16 * 2)).toBe((ringOfStream(2) + 16) | 3);
    expect(guest.memory.readU32(array + 16 * 3)).toBe(ringOfStream(3) | 3);
  });
});

describe('isochronous (§4.10.3, §4.14)', () => {
  function withIsoch(type: number, id: number) {
    const made = configured();
    expect(made.guest.configure(made.slot, { [id]: type })?.code).toBe(Code.success);
    return made;
  }

  test('descriptors are packets of one transfer; what goes wrong with one halts nothing', () => {
    const { guest, device, slot } = withIsoch(5, 7);
    const blocks = [0, 1, 2].map((i) => guest.queue(slot, 7, Type.isoch, At.buffers + 0x100 * i, 16, IOC | ISP));
    guest.ring(slot, 7);
    const [transfer] = device.inFlight;
    expect(transfer?.packets.map(({ lengthBytes }) => lengthBytes)).toEqual([16, 16, 16]);
    transfer!.buffer.fill(1, 0, 16);
    transfer!.buffer.fill(3, 32, 40);
    for (const [i, status, actualBytes] of [
      [0, 'completed', 16],
      [1, 'error', 0],
      [2, 'completed', 8],
    ] as const) {
      Object.assign(transfer!.packets[i]!, { status, actualBytes });
    }
    device.give(transfer!, 'completed', 24);
    expect(guest.events()).toMatchObject([
      { code: Code.success, pointer: blocks[0] },
      { code: Code.transaction, pointer: blocks[1] },
      { code: Code.short, pointer: blocks[2], rest: 8 },
    ]);
    expect(guest.memory.readU8(At.buffers + 0x207)).toBe(3);
    expect(guest.endpointState(slot, 7)).toBe(RUNNING);
  });

  test('a ring that runs dry is told after a while', () => {
    const { guest, device, slot } = withIsoch(1, 8);
    guest.queue(slot, 8, Type.isoch, At.buffers, 16, IOC);
    guest.ring(slot, 8);
    const [transfer] = device.inFlight;
    Object.assign(transfer!.packets[0]!, { status: 'completed', actualBytes: 16 });
    device.give(transfer!, 'completed', 16);
    guest.events();
    guest.clock.advance(99e6);
    expect(guest.events()).toEqual([]);
    guest.clock.advance(2e6);
    expect(guest.events()).toMatchObject([{ type: 32, code: 14, slot, endpoint: 8 }]);
  });
});
