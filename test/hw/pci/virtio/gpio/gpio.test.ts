/** virtio-gpio as ACRN's driver and the one of Virtio 1.2 see it, on made-up lines. */
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { ConfigError, HostError } from '../../../../../devicemodel/core/errors.ts';
import { Log } from '../../../../../devicemodel/core/log.ts';
import { checkOptions } from '../../../../../devicemodel/core/options.ts';
import { AcrnGpio, virtioGpio } from '../../../../../devicemodel/hw/pci/virtio/gpio/gpio.ts';
import { openGpioLines } from '../../../../../devicemodel/hw/pci/virtio/gpio/lines.ts';
import { ModernGpio } from '../../../../../devicemodel/hw/pci/virtio/gpio/modern.ts';
import { GpioOptions, parseGpioText } from '../../../../../devicemodel/hw/pci/virtio/gpio/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { FakeGpioLine } from '../../../../support/fake-gpio.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function makeGpio(mode: 'legacy' | 'modern', names: readonly string[]) {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const lines = names.map((name) => new FakeGpioLine(name));
  const { log } = machine.env();
  const device = mode === 'legacy' ? new AcrnGpio(() => lines, log) : new ModernGpio(() => lines, log);
  const identity = { legacyDeviceId: 0x8609, type: 41, classCode: 0x080000 };
  const fn = new VirtioPci(device, machine.env(), { mode, identity });
  const driver = new VirtioDriver(machine, fn, mode);
  await fn.start();
  undo.push(() => fn.stop());
  driver.init();
  const line = (index: number) => lines[index] as FakeGpioLine;
  return { machine, driver, fn, line, lines };
}

// ACRN's driver: three queues, registers.

/** Commands of the operation queue. */
const Op = { SetValue: 0, GetValue: 1, MakeInput: 2, MakeOutput: 3, GetDirection: 4, SetConfig: 5 } as const;
/** Actions of the interrupt queue. */
const Irq = { Enable: 0, Disable: 1, Acknowledge: 2, Mask: 3, Unmask: 4 } as const;
const Type = { Rising: 1, Falling: 2, Both: 3, High: 4, Low: 8 } as const;
/** Linux's PIN_CONFIG_… */
const OPEN_DRAIN = 6;
const PULL_UP = 5;

async function makeAcrn(...names: string[]) {
  const gpio = await makeGpio('legacy', names);
  const { driver } = gpio;
  const operate = (command: number, index: number, data = 0) => {
    const request = [command, index, data & 0xff, (data >>> 8) & 0xff, 0, 0, 0, 0, 0, 0];
    expect(driver.request(0, [{ read: request }, { write: 2 }]).length).toBe(2);
    const [error, value] = driver.buffer(1) as unknown as [number, number];
    return error === 0 ? value : 'error';
  };
  const command = (action: number, index: number, type = 0) => {
    driver.request(1, [{ read: [action, index, type] }]);
  };
  const buffers: number[] = [];
  const addBuffer = () => {
    driver.add(2, [{ write: 8 }]);
    buffers.push((driver.lastBuffers[0] as { at: number }).at);
  };
  /** Lines of the interrupts that were told since the last look; buffers go back without a kick, as the driver does it. */
  const interrupts = () =>
    driver.takeUsed(2).map(({ length }) => {
      expect(length).toBe(8);
      const mask = Buffer.from(driver.read(buffers.shift() as number, 8)).readBigUInt64LE();
      addBuffer();
      return Array.from({ length: 64 }, (_, bit) => bit).filter((bit) => (mask >> BigInt(bit)) & 1n);
    });
  for (let i = 0; i < 4; i++) addBuffer();
  const register = (index: number) => driver.readConfig(4 + 4 * index, 4);
  const setRegister = (index: number, value: number) => driver.writeConfig(4 + 4 * index, 4, value);
  return { ...gpio, operate, command, interrupts, register, setRegister };
}

describe("ACRN's device", () => {
  test('has the ids, the window and the feature of the C device model', () => {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const fn = virtioGpio.create(checkOptions(GpioOptions, parseGpioText('@gpiochip0{0}')), machine.env());
    expect(fn.identity).toMatchObject({
      vendorId: 0x8086,
      deviceId: 0x8609,
      revisionId: 0,
      classCode: 0x080000,
      subsystemVendorId: 0x8086,
      subsystemId: 0xfff7,
    });
    expect(fn.bars).toContainEqual({ index: 0, kind: 'io', sizeBytes: 512 });
    expect(new VirtioDriver(machine, fn, 'legacy').hostFeatures).toBe(1n);
  });

  test('configuration: lines from 0, as many as were had; three queues of 64', async () => {
    const { driver } = await makeAcrn('a', 'b', 'c');
    expect([driver.readConfig(0, 2), driver.readConfig(2, 2), driver.readConfig(0, 4)]).toEqual([0, 3, 0x30000]);
    expect(driver.queues.map((q) => q.size)).toEqual([64, 64, 64]);
  });

  test('names come in 32 bytes each; the length is their number', async () => {
    const { driver } = await makeAcrn('reset', '', 'x'.repeat(40));
    expect(driver.request(0, [{ write: 96 }]).length).toBe(3);
    const text = Buffer.from(driver.buffer(0)).toString();
    expect([text.slice(0, 32), text.slice(32, 64), text.slice(64)]).toEqual([
      'reset'.padEnd(32, '\0'),
      '\0'.repeat(32),
      `${'x'.repeat(31)}\0`,
    ]);
  });

  test('directions and levels', async () => {
    const { operate, line } = await makeAcrn('a', 'b');
    expect(operate(Op.GetDirection, 1)).toBe(1);
    expect(operate(Op.SetValue, 1, 1)).toBe('error'); // an input
    expect(operate(Op.MakeOutput, 1, 1)).toBe(0);
    expect([line(1).isOutput, line(1).level, operate(Op.GetDirection, 1)]).toEqual([true, 1, 0]);
    expect(operate(Op.SetValue, 1, 0)).toBe(0);
    expect([line(1).level, operate(Op.GetValue, 1)]).toEqual([0, 0]);
    expect(operate(Op.MakeInput, 1)).toBe(0);
    line(1).drives(1);
    expect([operate(Op.GetDirection, 1), operate(Op.GetValue, 1)]).toEqual([1, 1]);
    expect(line(0)).toMatchObject({ isOutput: false, level: 0 });
  });

  test('an open drain: from when the line is an output, and at once if it is', async () => {
    const { operate, line } = await makeAcrn('a', 'b');
    expect(operate(Op.SetConfig, 0, OPEN_DRAIN)).toBe(0);
    expect(line(0)).toMatchObject({ isOutput: false, drive: 'push-pull' });
    operate(Op.MakeOutput, 0, 1);
    expect(line(0)).toMatchObject({ isOutput: true, level: 1, drive: 'open-drain' });
    operate(Op.MakeOutput, 1, 1);
    expect(operate(Op.SetConfig, 1, OPEN_DRAIN)).toBe(0);
    expect(line(1)).toMatchObject({ isOutput: true, level: 1, drive: 'open-drain' });
    // Accepted without effect, as C does.
    expect(operate(Op.SetConfig, 1, PULL_UP)).toBe(0);
    expect(line(1).drive).toBe('open-drain');
  });

  test.each([
    ['a line there is not', Op.GetValue, 2],
    ['line 255', Op.MakeOutput, 255],
    ['an unknown command', 6, 0],
  ])('%s is an error', async (_what, command, index) => {
    const { operate } = await makeAcrn('a', 'b');
    expect(operate(command, index)).toBe('error');
  });

  test.each([
    ['short', [{ read: [1, 0] }, { write: 2 }]],
    ['long', [{ read: new Uint8Array(11) }, { write: 2 }]],
    ['without room', [{ read: new Uint8Array(10) }, { write: 1 }]],
    ['with room for other names', [{ write: 31 }]],
    ['without anything', [{ read: [] }]],
  ])('a request %s comes back untouched', async (_what, specs) => {
    const { driver, operate } = await makeAcrn('a');
    expect(driver.request(0, specs).length).toBe(0);
    expect(operate(Op.GetValue, 0)).toBe(0);
  });

  test('a line that the host takes away is an error, not an end', async () => {
    const { operate, line } = await makeAcrn('a');
    line(0).isGone = true;
    for (const command of [Op.SetValue, Op.GetValue, Op.MakeInput, Op.MakeOutput]) {
      expect(operate(command, 0)).toBe('error');
    }
  });

  test('reset leaves levels and directions, and stops interrupts', async () => {
    const { operate, command, line, driver } = await makeAcrn('a', 'b');
    operate(Op.MakeOutput, 0, 1);
    command(Irq.Enable, 1, Type.Rising);
    driver.status = 0;
    expect(line(0)).toMatchObject({ isOutput: true, level: 1 });
    expect(line(1)).toMatchObject({ edges: 0, onEdge: undefined, isClosed: false });
  });
});

describe("interrupts of ACRN's device", () => {
  test('an edge is told once, the next one when it was acknowledged', async () => {
    const { command, interrupts, line, machine } = await makeAcrn('a', 'b');
    command(Irq.Enable, 1, Type.Rising);
    expect(line(1).edges).toBe(1);
    const before = machine.intxEdges;
    line(1).drives(1);
    expect(interrupts()).toEqual([[1]]);
    expect(machine.intxEdges).toBe(before);
    line(1).drives(0);
    line(1).drives(1);
    expect(interrupts()).toEqual([]);
    command(Irq.Acknowledge, 1);
    expect(interrupts()).toEqual([[1]]);
  });

  test('lines that interrupt while another is handled are told together', async () => {
    const { command, interrupts, lines, line } = await makeAcrn(...new Array(64).fill('x'));
    for (const i of lines.keys()) command(Irq.Enable, i, Type.Both);
    line(0).drives(1);
    line(31).drives(1);
    line(32).drives(1);
    line(63).drives(1);
    expect(interrupts()).toEqual([[0]]);
    command(Irq.Acknowledge, 0);
    expect(interrupts()).toEqual([[31, 32, 63]]);
  });

  test('a level interrupts until it is gone, as handle_level_irq does it', async () => {
    const { command, interrupts, line } = await makeAcrn('a');
    command(Irq.Enable, 0, Type.Low);
    command(Irq.Unmask, 0);
    const handle = (during?: () => void) => {
      const told = interrupts();
      command(Irq.Mask, 0);
      command(Irq.Acknowledge, 0);
      during?.();
      command(Irq.Unmask, 0);
      return told;
    };
    expect(handle()).toEqual([[0]]);
    expect(handle(() => line(0).drives(1))).toEqual([[0]]);
    expect(handle()).toEqual([]);
    line(0).drives(0);
    expect(handle(() => line(0).drives(1))).toEqual([[0]]);
    expect(interrupts()).toEqual([]);
  });

  test('a masked line is silent', async () => {
    const { command, interrupts, line } = await makeAcrn('a');
    command(Irq.Enable, 0, Type.Rising);
    command(Irq.Mask, 0);
    line(0).drives(1);
    command(Irq.Unmask, 0);
    expect(interrupts()).toEqual([]);
  });

  test('without a buffer an interrupt waits for one', async () => {
    const { driver, machine, command, line } = await makeAcrn('a', 'b');
    command(Irq.Enable, 0, Type.Rising);
    command(Irq.Enable, 1, Type.Rising);
    for (let i = 0; i < 4; i++) {
      line(0).drives(0);
      line(0).drives(1);
      command(Irq.Acknowledge, 0);
    }
    expect(driver.takeUsed(2)).toHaveLength(4);
    line(1).drives(1);
    expect(driver.takeUsed(2)).toEqual([]);
    driver.add(2, [{ write: 8 }]);
    driver.kick(2);
    expect(driver.takeUsed(2)).toHaveLength(1);
    expect(driver.buffer(0)[0]).toBe(2);
    expect(machine.lines).toEqual([]);
  });

  test('a buffer of another size is given back unused', async () => {
    const { driver, machine, command, line } = await makeAcrn('a');
    command(Irq.Enable, 0, Type.Rising);
    for (let i = 0; i < 4; i++) {
      line(0).drives(0);
      line(0).drives(1);
      command(Irq.Acknowledge, 0);
    }
    driver.takeUsed(2);
    driver.add(2, [{ write: 4 }]);
    line(0).drives(0);
    line(0).drives(1);
    expect(driver.takeUsed(2)).toMatchObject([{ length: 0 }]);
    expect(machine.lines.join()).toMatch(/buffer of 4 bytes/);
  });

  test('while a line interrupts it stays an input; afterwards it is an ordinary line', async () => {
    const { operate, command, line, interrupts } = await makeAcrn('a');
    command(Irq.Enable, 0, Type.Both);
    expect([operate(Op.MakeOutput, 0, 1), operate(Op.SetValue, 0, 1), operate(Op.GetDirection, 0)]).toEqual([
      'error',
      'error',
      1,
    ]);
    expect(operate(Op.GetValue, 0)).toBe(0);
    line(0).drives(1);
    expect(interrupts()).toEqual([[0]]);
    command(Irq.Disable, 0);
    expect(line(0)).toMatchObject({ edges: 0, onEdge: undefined });
    expect(operate(Op.MakeOutput, 0, 0)).toBe(0);
  });

  test('disabling a line that is being handled does not hold up the others', async () => {
    const { command, line, interrupts } = await makeAcrn('a', 'b');
    command(Irq.Enable, 0, Type.Rising);
    command(Irq.Enable, 1, Type.Rising);
    line(0).drives(1);
    line(1).drives(1);
    expect(interrupts()).toEqual([[0]]);
    command(Irq.Disable, 0);
    expect(interrupts()).toEqual([[1]]);
  });

  test.each([
    ['type 0', [Irq.Enable, 0, 0]],
    ['type 16', [Irq.Enable, 0, 16]],
    ['a line there is not', [Irq.Enable, 9, Type.Rising]],
    ['an unknown action', [5, 0, 0]],
    ['a short command', [Irq.Enable, 0]],
  ])('%s changes nothing', async (_what, bytes) => {
    const { driver, line, machine } = await makeAcrn('a');
    driver.request(1, [{ read: bytes }]);
    expect(line(0)).toMatchObject({ edges: 0, onEdge: undefined });
    expect(machine.lines).toHaveLength(1);
  });

  test('a chip that is unplugged is reported once', async () => {
    const { command, line, machine } = await makeAcrn('a');
    command(Irq.Enable, 0, Type.Rising);
    line(0).isGone = true;
    line(0).onEdge?.();
    expect(line(0).onEdge).toBeUndefined();
    expect(machine.lines.filter((l) => l.includes('gone'))).toHaveLength(1);
  });
});

describe('registers for ACPI', () => {
  test('level, direction, interrupt and what was asked for', async () => {
    const { register, operate, command, line, driver } = await makeAcrn('a', 'b');
    expect(register(0)).toBe(0b010);
    line(0).drives(1);
    expect(register(0)).toBe(0b011);
    operate(Op.MakeInput, 0);
    expect(register(0)).toBe(0x1_0003);
    operate(Op.MakeOutput, 1, 1);
    expect([register(1), driver.readConfig(8, 2), driver.readConfig(8, 1)]).toEqual([0x2_0001, 1, 1]);
    operate(Op.SetConfig, 1, OPEN_DRAIN);
    expect(register(1)).toBe(0xa_0001);
    command(Irq.Enable, 0, Type.Rising);
    expect(register(0)).toBe(0x1_0007);
    expect(register(2)).toBe(0xffff_ffff);
    expect(register(63)).toBe(0xffff_ffff);
  });

  test('a method changes the two low bits and leaves the rest as it was', async () => {
    const { register, setRegister, line, operate } = await makeAcrn('a');
    const set = (low: number) => setRegister(0, (register(0) & ~3) | low);
    set(0b01);
    expect(line(0)).toMatchObject({ isOutput: true, level: 1 });
    set(0b00);
    expect(line(0)).toMatchObject({ isOutput: true, level: 0 });
    operate(Op.SetConfig, 0, OPEN_DRAIN);
    set(0b01);
    expect(line(0)).toMatchObject({ level: 1, drive: 'open-drain' });
    set(0b10);
    expect(line(0).isOutput).toBe(false);
  });

  test('an output that was high from the start can be made low', async () => {
    const { setRegister, line } = await makeAcrn('a');
    Object.assign(line(0), { isOutput: true, level: 1 });
    setRegister(0, 0);
    expect(line(0).level).toBe(0);
  });

  test('writes to a line that interrupts, to one there is not, and before the registers have no effect', async () => {
    const { setRegister, command, line, driver } = await makeAcrn('a');
    command(Irq.Enable, 0, Type.Rising);
    setRegister(0, 0b001);
    setRegister(0, 0b101);
    setRegister(5, 0b001);
    driver.writeConfig(0, 4, 0x12345678);
    expect(line(0)).toMatchObject({ isOutput: false, edges: 1 });
    expect(driver.readConfig(0, 4)).toBe(0x10000);
  });

  test('the controller and its methods are in the DSDT, with the port of the first register', () => {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const fn = virtioGpio.create(checkOptions(GpioOptions, parseGpioText('@gpiochip0{0}')), machine.env());
    const bdf = { bus: 0, device: 3, function: 0 };
    const aml = fn.backing === 'device-model' ? fn.aml?.({ bdf, barAddress: () => 0x2040 }, 0) : undefined;
    const bytes = Buffer.from(aml?.aml() ?? []);
    for (const name of ['AGPI', 'GPCS', 'GPCG']) expect(bytes.includes(name)).toBe(true);
    // 0x2040 + 24 bytes of legacy header + 4 bytes of configuration, as a word constant.
    expect(bytes.includes(Buffer.from([0x0b, 0x5c, 0x20]))).toBe(true);
  });
});

// The driver of Virtio 1.2.

const Message = { GetNames: 1, GetDirection: 2, SetDirection: 3, GetValue: 4, SetValue: 5, IrqType: 6 } as const;
const Direction = { None: 0, Out: 1, In: 2 } as const;

async function makeModern(...names: string[]) {
  const gpio = await makeGpio('modern', names);
  const { driver } = gpio;
  const operate = (type: number, index: number, value = 0) => {
    const request = Buffer.alloc(8);
    request.writeUInt16LE(type);
    request.writeUInt16LE(index, 2);
    request.writeUInt32LE(value, 4);
    expect(driver.request(0, [{ read: request }, { write: 2 }]).length).toBe(2);
    const [status, result] = driver.buffer(1) as unknown as [number, number];
    return status === 0 ? result : 'error';
  };
  /** Give a buffer for the line's next interrupt. @returns its status, once it is back. */
  const arm = (index: number) => {
    const head = driver.add(1, [{ read: [index, 0] }, { write: 1 }]);
    const [, { at }] = driver.lastBuffers as unknown as [unknown, { at: number }];
    driver.kick(1);
    return () => (driver.takeUsed(1).some((u) => u.head === head) ? driver.read(at, 1)[0] : undefined);
  };
  return { ...gpio, operate, arm };
}

describe('the GPIO device of Virtio 1.2', () => {
  test('has its type, and the configuration says how many lines and how long their names are', async () => {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const options = checkOptions(GpioOptions, parseGpioText('@gpiochip0{0},transport=modern'));
    expect(virtioGpio.create(options, machine.env()).identity).toMatchObject({ vendorId: 0x1af4, deviceId: 0x1069 });
    const { driver } = await makeModern('reset', '', 'led');
    expect([driver.readConfig(0, 2), driver.readConfig(4, 4)]).toEqual([3, 11]);
    expect(driver.queues).toHaveLength(2);
    const unnamed = await makeModern('', '');
    expect([unnamed.driver.readConfig(0, 2), unnamed.driver.readConfig(4, 4)]).toEqual([2, 0]);
  });

  test('names', async () => {
    const { driver } = await makeModern('reset', '', 'led');
    expect(driver.request(0, [{ read: [Message.GetNames, 0, 0, 0, 0, 0, 0, 0] }, { write: 12 }]).length).toBe(12);
    expect(Buffer.from(driver.buffer(1)).toString()).toBe('\0reset\0\0led\0');
    driver.request(0, [{ read: [Message.GetNames, 0, 0, 0, 0, 0, 0, 0] }, { write: 11 }]);
    expect(driver.buffer(1)[0]).toBe(1);
  });

  test('an output gets its level before its direction', async () => {
    const { operate, line } = await makeModern('a', 'b');
    expect(operate(Message.GetDirection, 1)).toBe(Direction.In);
    expect(operate(Message.SetValue, 1, 1)).toBe(0);
    expect(line(1).level).toBe(0);
    expect(operate(Message.SetDirection, 1, Direction.Out)).toBe(0);
    expect(line(1)).toMatchObject({ isOutput: true, level: 1 });
    expect([operate(Message.GetDirection, 1), operate(Message.GetValue, 1)]).toEqual([Direction.Out, 1]);
    expect(operate(Message.SetValue, 1, 0)).toBe(0);
    expect(line(1).level).toBe(0);
    expect(operate(Message.SetDirection, 1, Direction.None)).toBe(0);
    expect(line(1).isOutput).toBe(true);
    expect(operate(Message.SetDirection, 1, Direction.In)).toBe(0);
    expect(line(1).isOutput).toBe(false);
  });

  test.each([
    ['a line there is not', Message.GetValue, 2, 0],
    ['an unknown message', 7, 0, 0],
    ['an unknown direction', Message.SetDirection, 0, 3],
    ['level 2', Message.SetValue, 0, 2],
    ['interrupt type 16', Message.IrqType, 0, 16],
  ])('%s is an error', async (_what, type, index, value) => {
    const { operate } = await makeModern('a', 'b');
    expect(operate(type, index, value)).toBe('error');
  });

  test('an edge answers the waiting buffer; one in between is kept for the next', async () => {
    const { operate, arm, line } = await makeModern('a');
    operate(Message.SetDirection, 0, Direction.In);
    expect(operate(Message.IrqType, 0, Type.Rising)).toBe(0);
    const first = arm(0);
    expect(first()).toBeUndefined();
    line(0).drives(1);
    expect(first()).toBe(1);
    line(0).drives(0);
    line(0).drives(1);
    const second = arm(0);
    expect(second()).toBe(1);
    expect(arm(0)()).toBeUndefined();
  });

  test('a level answers every buffer while it is there, and nothing is kept', async () => {
    const { operate, arm, line } = await makeModern('a');
    operate(Message.IrqType, 0, Type.High);
    const first = arm(0);
    expect(first()).toBeUndefined();
    line(0).drives(1);
    expect(first()).toBe(1);
    expect(arm(0)()).toBe(1);
    line(0).drives(0);
    expect(arm(0)()).toBeUndefined();
  });

  test('disabling gives the buffer back as invalid, and so is one for a line without interrupt', async () => {
    const { operate, arm, line } = await makeModern('a');
    expect(arm(0)()).toBe(0);
    operate(Message.IrqType, 0, Type.Both);
    const waiting = arm(0);
    expect(arm(0)()).toBe(0); // a second one
    operate(Message.IrqType, 0, 0);
    expect(waiting()).toBe(0);
    expect(line(0)).toMatchObject({ edges: 0, onEdge: undefined });
  });

  test('an output does not interrupt, and what interrupts does not become an output', async () => {
    const { operate } = await makeModern('a', 'b');
    operate(Message.SetDirection, 0, Direction.Out);
    expect(operate(Message.IrqType, 0, Type.Rising)).toBe('error');
    operate(Message.IrqType, 1, Type.Rising);
    expect(operate(Message.SetDirection, 1, Direction.Out)).toBe('error');
  });

  test('a driver that did not accept interrupts gets none', async () => {
    const { driver, operate } = await makeModern('a');
    driver.init((offered) => offered & ~1n);
    expect(operate(Message.IrqType, 0, Type.Rising)).toBe('error');
  });

  test('reset forgets buffers', async () => {
    const { driver, operate, arm, line } = await makeModern('a');
    operate(Message.IrqType, 0, Type.Rising);
    arm(0);
    driver.init();
    line(0).drives(1);
    expect(driver.takeUsed(1)).toEqual([]);
    operate(Message.IrqType, 0, Type.Falling);
    const waiting = arm(0);
    line(0).drives(0);
    expect(waiting()).toBe(1);
  });

  test.each([
    ['short request', 0, [{ read: [1, 0] }, { write: 2 }], 0],
    ['no room', 0, [{ read: new Uint8Array(8) }, { write: 1 }], 0],
    ['event without room', 1, [{ read: [0, 0] }], 0],
    ['event without line', 1, [{ write: 1 }], 1],
  ])('%s comes back', async (_what, queue, specs, length) => {
    const { driver } = await makeModern('a');
    expect(driver.request(queue, specs).length).toBe(length);
  });
});

test.each(['legacy', 'modern'] as const)(
  '%s: any requests, edges and resets leave a device that works',
  async (mode) => {
    const step = fc.oneof(
      {
        weight: 8,
        arbitrary: fc.record({
          queue: fc.nat(mode === 'legacy' ? 2 : 1),
          // Mostly what is understood: small numbers in every field.
          read: fc.array(fc.oneof({ weight: 4, arbitrary: fc.nat(8) }, { weight: 1, arbitrary: fc.nat(255) }), {
            maxLength: 11,
          }),
          write: fc.constantFrom(undefined, 1, 2, 8, 64),
        }),
      },
      { weight: 4, arbitrary: fc.record({ line: fc.nat(1), level: fc.constantFrom(0 as const, 1 as const) }) },
      { weight: 1, arbitrary: fc.constant('reset' as const) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 60 }), async (steps) => {
        const { driver, lines } = await makeGpio(mode, ['a', 'b']);
        for (const s of steps) {
          if (s === 'reset') driver.init();
          else if ('line' in s) {
            const line = lines[s.line] as FakeGpioLine;
            if (!line.isOutput) line.drives(s.level);
          } else {
            driver.add(s.queue, [
              ...(s.read.length === 0 ? [] : [{ read: s.read }]),
              ...(s.write === undefined ? [] : [{ write: s.write }]),
              ...(s.read.length === 0 && s.write === undefined ? [{ read: [0] }] : []),
            ]);
            driver.kick(s.queue);
          }
        }
        expect(driver.needsReset).toBe(false);
        driver.init();
        // Nothing of before is left: no interrupt is armed, and a line can be what it wants.
        expect(lines.map(({ edges, onEdge }) => [edges, onEdge])).toEqual([
          [0, undefined],
          [0, undefined],
        ]);
        const request = mode === 'legacy' ? [3, 1, 1, 0, 0, 0, 0, 0, 0, 0] : [3, 0, 1, 0, 1, 0, 0, 0];
        driver.request(0, [{ read: request }, { write: 2 }]);
        expect([driver.buffer(1)[0], lines[1]?.isOutput]).toEqual([0, true]);
      }),
      { numRuns: 60 },
    );
  },
);

describe('options', () => {
  const parse = (text: string) => checkOptions(GpioOptions, parseGpioText(text));

  test('chips, lines by number or name, aliases, transport', () => {
    expect(parse('@gpiochip0{1:6:reset=shutdown}@gpiochip1{0=reset}')).toEqual({
      transport: 'legacy',
      chips: [
        { chip: 'gpiochip0', lines: [{ line: '1' }, { line: '6' }, { line: 'reset', alias: 'shutdown' }] },
        { chip: 'gpiochip1', lines: [{ line: '0', alias: 'reset' }] },
      ],
    });
    // As C: empty lines do not count, an empty alias is none.
    expect(parse('@gpiochip0{::0=},transport=modern')).toEqual({
      transport: 'modern',
      chips: [{ chip: 'gpiochip0', lines: [{ line: '0' }] }],
    });
  });

  const many = (count: number) => Array.from({ length: count }, (_, i) => i).join(':');
  test.each([
    '',
    'gpiochip0',
    '@gpiochip0',
    '@{0}',
    '@gpiochip0{0',
    '@gpiochip0{0}x',
    '@gpiochip0{}',
    '@gpiochip0{=a}',
    `@gpiochip0{0=${'x'.repeat(32)}}`,
    `@gpiochip0{${many(65)}}`,
    '@g{0}'.repeat(9),
    '@gpiochip0{0},transport=transitional',
  ])('"%s" is refused', (text) => {
    expect(() => parse(text)).toThrow(ConfigError);
  });

  test.each(['../../etc', '..', '.', 'a/b', '/dev/gpiochip0', 'gpiochip0/../null'])('chip "%s" is no name', (chip) => {
    expect(() => parse(`@gpiochip0{0}@${chip}{0=a}`)).toThrow(`virtio-gpio: "${chip}" is not the name of a chip`);
  });

  test('64 lines are the most', () => {
    expect(parse(`@gpiochip0{${many(64)}}`).chips[0]?.lines).toHaveLength(64);
  });
});

describe('chips of the host', () => {
  const log = new Log([]);
  test('one that is not there is refused with one line', () => {
    expect(() => openGpioLines([{ chip: 'gpiochip987', lines: [{ line: '0' }] }], log)).toThrow(
      /^virtio-gpio: \/dev\/gpiochip987: open: ENOENT[^\n]*$/,
    );
  });

  test('what is no chip is refused with one line', () => {
    const open = () => openGpioLines([{ chip: 'null', lines: [{ line: '0' }] }], log);
    expect(open).toThrow(HostError);
    expect(open).toThrow(/^virtio-gpio: \/dev\/null: not a GPIO chip[^\n]*$/);
  });
});
