/** virtio-heci as its driver in the guest sees it: a management engine made up here, connections that are sockets of nobody. */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { HostError } from '../../../../../devicemodel/core/errors.ts';
import { Errno } from '../../../../../devicemodel/core/host/errno.ts';
import type { MeiListener } from '../../../../../devicemodel/core/host/mei.ts';
import { type HeciHost, VirtioHeci, virtioHeci } from '../../../../../devicemodel/hw/pci/virtio/heci/heci.ts';
import { type EngineClient, EngineInterface, uuidBytes } from '../../../../../devicemodel/hw/pci/virtio/heci/host.ts';
import { parseHeciText } from '../../../../../devicemodel/hw/pci/virtio/heci/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const UUID = '8e6a6715-9abc-4043-88ef-9e39c6f63e0f';
const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

class FakeHost implements HeciHost {
  isEnabled = true;
  list: EngineClient[] = [
    { uuid: uuidBytes(UUID) as Uint8Array, version: 3, maxConnections: 2, isFixed: false, maxMessageBytes: 1500 },
    { uuid: new Uint8Array(16), version: 1, maxConnections: 1, isFixed: true, maxMessageBytes: 512 },
  ];
  readonly open: Array<{ listener: MeiListener; sent: Uint8Array[]; isListening: boolean }> = [];
  /** What a send answers, and how a connection is refused. */
  answer = 0;
  refusal = 0;
  scans = 0;

  clients() {
    this.scans++;
    return this.list;
  }
  firmwareStatus() {
    return [0x90000255, 2, 3, 4, 5, 6];
  }
  /** Until it resolves no connection is made. */
  gate: Promise<unknown> = Promise.resolve();
  /** What connections were asked for, wanted or not. */
  asked = 0;

  idle() {
    return this.gate;
  }
  async connect(_client: EngineClient, listener: MeiListener) {
    this.asked++;
    await this.gate;
    if (!listener.isWanted()) return undefined;
    if (this.refusal !== 0) throw new HostError('/dev/mei0: refused', this.refusal);
    const connection = { listener, sent: [] as Uint8Array[], isListening: false };
    this.open.push(connection);
    return {
      send: (message: Uint8Array) => {
        if (this.answer === 0) connection.sent.push(message);
        return this.answer;
      },
      listen: (isListening: boolean) => {
        connection.isListening = isListening;
      },
      close: () => {
        const at = this.open.indexOf(connection);
        if (at >= 0) this.open.splice(at, 1);
      },
    };
  }
}

/** What the host has answered was heard. */
const turn = () => new Promise((resolve) => setImmediate(resolve));
const HwReady = 4;
const HostReset = 5;

/** Messages come at RX + 0x400 * n. */
const RX = 0x20000;
const TX = 0x10000;

async function makeHeci(buffers = 16) {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const host = new FakeHost();
  const env = machine.env();
  const device = new VirtioHeci(host, machine.clock, env.log, env.waits.patience);
  const fn = new VirtioPci(device, env, {
    mode: 'legacy',
    identity: { vendorId: 0x8086, legacyDeviceId: 0x8602, type: 0xfffe, classCode: 0x078000 },
  });
  const driver = new VirtioDriver(machine, fn, 'legacy');
  await fn.start();
  undo.push(() => fn.stop());
  driver.init();
  let taken = 0;
  const given: number[] = [];
  const give = () => {
    const at = RX + 0x400 * (given.length % 32);
    given.push(at);
    driver.add(0, [{ write: 512, at }]);
    driver.kick(0);
  };
  for (let i = 0; i < buffers; i++) give();
  /** What came since, as header and payload in hexadecimal. */
  const receive = async () => {
    await turn();
    machine.clock.advance(1_000_000);
    return driver.takeUsed(0).map(({ length }) => {
      const bytes = Buffer.from(machine.memory.read(given[taken++] as number, length));
      return `${bytes.subarray(0, 4).toString('hex')} ${bytes.subarray(4).toString('hex')}`;
    });
  };
  const send = (me: number, hostAddress: number, payload: Uint8Array, isComplete = true) => {
    const header = Buffer.alloc(4);
    header.writeUInt32LE((me | (hostAddress << 8) | (payload.length << 16) | (isComplete ? 0x80000000 : 0)) >>> 0);
    machine.memory.write(TX, header);
    machine.memory.write(TX + 0x100, payload);
    driver.add(1, [
      { read: [...header], at: TX },
      { read: [...payload], at: TX + 0x100 },
    ]);
    driver.kick(1);
    driver.takeUsed(1);
  };
  const bus = (hex: string) => send(0, 0, Buffer.from(hex, 'hex'));
  const config = (offset: number) => device.readConfig(offset, 1);
  const start = async () => {
    device.writeConfig(HostReset, 1, 0);
    await receive();
  };
  return { machine, host, driver, device, fn, receive, send, bus, config, give, start };
}

test('a driver starts the engine, finds its clients, and connects to one', async () => {
  const { host, device, receive, bus, send, config } = await makeHeci();
  expect(config(HwReady)).toBe(0);
  device.writeConfig(HostReset, 1, 1);
  device.writeConfig(HostReset, 1, 0);
  expect(config(HwReady)).toBe(1);
  expect(device.readConfig(0, 4)).toBe(128);
  expect(device.readConfig(8, 4)).toBe(0x90000255);
  await turn();
  // The fixed client is connected already, and listened to.
  expect(host.open.map((c) => c.isListening)).toEqual([true]);
  bus('01000002');
  expect(await receive()).toEqual(['00000480 81010002']);
  bus('04000000');
  expect(await receive()).toEqual([`00002480 84000000${'02000000'}${'01'}${'00'.repeat(27)}`]);
  bus('05200000');
  expect(await receive()).toEqual(['00001c80 85200000' + '15676a8ebc9a434088ef9e39c6f63e0f' + '03020000' + 'dc050000']);
  bus('05210000');
  expect(await receive()).toEqual([`00001c80 85210100${'00'.repeat(24)}`]);
  bus('06200700');
  expect(await receive()).toEqual(['00000480 86200700', '00000880 0820070000000000']);
  const connection = host.open[1] as FakeHost['open'][number];
  expect(connection.isListening).toBe(false);

  // To the engine, in two pieces; a credit comes back for the next.
  send(32, 7, Buffer.alloc(500, 0xaa), false);
  expect(connection.sent).toEqual([]);
  send(32, 7, Buffer.alloc(10, 0xbb), true);
  expect(connection.sent).toEqual([Buffer.concat([Buffer.alloc(500, 0xaa), Buffer.alloc(10, 0xbb)])]);
  expect(await receive()).toEqual(['00000880 0820070000000000']);

  // From the engine: only when the driver has given a credit, in buffers of 512 bytes.
  bus('0820070000000000');
  expect(connection.isListening).toBe(true);
  connection.listener.onMessage(Buffer.alloc(600, 0xcc));
  expect(connection.isListening).toBe(false);
  expect(await receive()).toEqual([`2007fc01 ${'cc'.repeat(508)}`, `20075c80 ${'cc'.repeat(92)}`]);

  bus('07200700');
  expect(await receive()).toEqual(['00000480 87200700']);
  expect(host.open).toHaveLength(1);
});

test.each([
  ['a client that is not there', '06630100', 0, '86630101'],
  ['a client that has one of that address', '06010000', 0, '86010002'],
  ['one that the engine does not know', '06200100', Errno.ENOTTY, '86200101'],
  ['one that is taken', '06200100', Errno.EBUSY, '86200102'],
  ['a device that cannot be opened', '06200100', Errno.EACCES, '86200104'],
])('a connection to %s is refused', async (_, request, refusal, answer) => {
  const { host, receive, bus, start } = await makeHeci();
  await start();
  host.refusal = refusal;
  bus(request);
  expect(await receive()).toEqual([`00000480 ${answer}`]);
});

test('what else is answered', async () => {
  const { receive, bus, start } = await makeHeci();
  await start();
  bus('01000900');
  bus('07200100');
  bus('0a000000');
  bus('1020010100');
  expect(await receive()).toEqual([
    '00000480 81000002',
    '00000480 87200101',
    '00000480 8a000000',
    '00000580 9020010401',
  ]);
});

test('a busy engine is asked again; one that was reset is waited for', async () => {
  const { host, machine, receive, bus, send, start, config } = await makeHeci();
  await start();
  bus('06200700');
  await receive();
  const connection = host.open[1] as FakeHost['open'][number];
  host.answer = -Errno.EAGAIN;
  send(32, 7, Buffer.from('hello'));
  expect(connection.sent).toEqual([]);
  host.answer = 0;
  machine.clock.advance(100_000_000);
  expect(connection.sent.map(String)).toEqual(['hello']);
  host.answer = -Errno.ENODEV;
  host.isEnabled = false;
  const { scans } = host;
  send(32, 7, Buffer.from('hello'));
  expect(config(HwReady)).toBe(0);
  expect(host.open).toEqual([]);
  machine.clock.advance(5_000_000_000);
  expect(config(HwReady)).toBe(0);
  host.answer = 0;
  host.isEnabled = true;
  machine.clock.advance(1_500_000_000);
  expect([config(HwReady), host.scans]).toEqual([1, scans + 1]);
  expect(machine.lines.filter((line) => /was reset/.test(line))).toHaveLength(1);
});

test('an engine that is reset while two connections wait for it says nothing about either', async () => {
  const { host, machine, receive, bus, send, start } = await makeHeci();
  await start();
  for (const address of ['07', '08']) bus(`0620${address}00`);
  await receive();
  host.answer = -Errno.EAGAIN;
  for (const address of [7, 8]) send(32, address, Buffer.from('hello'));
  host.answer = -Errno.ENODEV;
  host.isEnabled = false;
  machine.clock.advance(100_000_000);
  expect(host.open).toEqual([]);
  // Neither of them is there any more: the driver would have credits for what it has to connect anew.
  expect(await receive()).toEqual([]);
});

test.each([
  ['longer than its client takes', 3, 0],
  ['that the engine does not take, eight of them', 9, -Errno.EAGAIN],
])('messages %s end the connection', async (_, count, answer) => {
  const { host, receive, bus, send, start } = await makeHeci();
  await start();
  bus('06200700');
  await receive();
  host.answer = answer;
  for (let i = 0; i < count + 1; i++) send(32, 7, Buffer.alloc(400), answer !== 0);
  expect(host.open).toHaveLength(1);
  expect(await receive()).toContain('00000480 07200700');
});

test('the engine ends a connection: the driver is told', async () => {
  const { host, receive, bus, start } = await makeHeci();
  await start();
  bus('06200700');
  await receive();
  host.open[1]?.listener.onLost(Errno.EIO);
  expect(await receive()).toEqual(['00000480 07200700']);
});

test('a driver without buffers is not heard beyond what waits for it', async () => {
  const { bus, receive, give, start, machine } = await makeHeci(0);
  await start();
  for (let i = 0; i < 60; i++) bus('01000002');
  for (let i = 0; i < 60; i++) bus('0a000000');
  // What waits is 64 messages at most; the rest stays in the ring, and none is lost.
  const received: string[] = [];
  for (let round = 0; round < 8; round++) {
    for (let n = 0; n < 16; n++) give();
    machine.clock.advance(10_000_000);
    received.push(...(await receive()));
  }
  expect(received).toEqual([...Array(60).fill('00000480 81010002'), ...Array(60).fill('00000480 8a000000')]);
});

test('resets of every kind leave no connection', async () => {
  for (const how of ['driver', 'device', 'stop'] as const) {
    const { host, device, fn, bus, receive, start } = await makeHeci();
    await start();
    bus('06200700');
    await receive();
    expect(host.open).toHaveLength(2);
    if (how === 'driver') device.writeConfig(HostReset, 1, 1);
    else if (how === 'device') fn.reset();
    else await fn.stop();
    expect(host.open).toEqual([]);
  }
});

describe('an engine that takes its time to connect', () => {
  /** A driver whose connections are not answered until `open`. */
  async function makeSlow() {
    const world = await makeHeci();
    await world.start();
    let open = () => {};
    world.host.gate = new Promise<void>((resolve) => (open = resolve));
    return { ...world, open };
  }

  test('the driver is answered then, goes on meanwhile, and has no second connection of that name', async () => {
    const { host, bus, send, receive, open } = await makeSlow();
    bus('06200700');
    bus('06200700');
    bus('01000002');
    send(32, 7, Buffer.from('early'));
    expect(await receive()).toEqual(['00000480 86200702', '00000480 81010002']);
    open();
    expect(await receive()).toEqual(['00000480 86200700', '00000880 0820070000000000']);
    expect(host.open[1]?.sent).toEqual([]);
    send(32, 7, Buffer.from('now'));
    expect(host.open[1]?.sent.map(String)).toEqual(['now']);
  });

  test('a driver that takes it back, resets or leaves hears nothing of it', async () => {
    for (const how of ['disconnect', 'driver', 'device', 'stop'] as const) {
      const { host, device, fn, machine, bus, receive, open } = await makeSlow();
      bus('06200700');
      if (how === 'disconnect') bus('07200700');
      else if (how === 'driver') device.writeConfig(HostReset, 1, 1);
      else if (how === 'device') fn.reset();
      let stopped: Promise<void> | undefined;
      if (how === 'stop') {
        machine.env().waits.patience.force();
        stopped = fn.stop();
      }
      open();
      await stopped;
      if (how === 'disconnect' || how === 'driver') {
        expect(await receive()).toEqual(how === 'disconnect' ? ['00000480 87200700'] : []);
      } else await turn();
      expect(host.open).toHaveLength(how === 'disconnect' ? 1 : 0);
    }
  });

  test('what is sent to a fixed client waits for it', async () => {
    const { host, device, send, open } = await makeSlow();
    device.writeConfig(HostReset, 1, 1);
    device.writeConfig(HostReset, 1, 0);
    send(1, 0, Buffer.from('hello'));
    open();
    await turn();
    expect(host.open.map(({ sent }) => sent.map(String))).toEqual([['hello']]);
  });

  test('however often it is asked for, there is an end to what is remembered', async () => {
    const { host, device, bus, open } = await makeSlow();
    const before = host.asked;
    for (let i = 0; i < 200; i++) {
      bus('06200700');
      bus('07200700');
      device.writeConfig(HostReset, 1, 1);
      device.writeConfig(HostReset, 1, 0);
    }
    expect(host.asked - before).toBe(64);
    open();
    await turn();
    device.writeConfig(HostReset, 1, 1);
    device.writeConfig(HostReset, 1, 0);
    bus('06200900');
    await turn();
    expect(host.open).toHaveLength(2);
  });
});

test('anything a driver may send: no more connections than there may be, and nothing thrown', async () => {
  const { host, bus, send, receive, give, start } = await makeHeci();
  await start();
  await fc.assert(
    fc.asyncProperty(
      fc.array(
        fc.record({
          me: fc.constantFrom(0, 1, 32, 33, 255),
          hostAddress: fc.nat(255),
          bytes: fc.uint8Array({ minLength: 1, maxLength: 40 }),
          isComplete: fc.boolean(),
          command: fc.option(fc.constantFrom(1, 4, 5, 6, 7, 8, 10, 16, 0x87), { nil: undefined }),
        }),
        { maxLength: 20 },
      ),
      async (messages) => {
        for (const { me, hostAddress, bytes, isComplete, command } of messages) {
          if (command === undefined) send(me, hostAddress, bytes, isComplete);
          else bus(Buffer.from([command, me, hostAddress, ...bytes.subarray(0, 6)]).toString('hex'));
          await receive();
          give();
        }
        expect(host.open.length).toBeLessThanOrEqual(64);
      },
    ),
    { numRuns: 60 },
  );
});

describe('the interfaces of a host', () => {
  function tree(files: Record<string, string>): string {
    const root = mkdtempSync(join(tmpdir(), 'mei-'));
    undo.push(() => rmSync(root, { recursive: true, force: true }));
    for (const [path, text] of Object.entries(files)) {
      mkdirSync(join(root, path, '..'), { recursive: true });
      writeFileSync(join(root, path), `${text}\n`);
    }
    return root;
  }
  const client = `sys/class/mei/mei1/device/mei::${UUID}:01`;
  const files = {
    [`${client}/uuid`]: UUID,
    [`${client}/version`]: '2',
    [`${client}/vtag`]: '1',
    [`${client}/max_len`]: '2048',
    [`sys/class/mei/mei1/device/mei::other/uuid`]: UUID,
    [`sys/class/mei/mei1/device/mei::other/version`]: '1',
    [`sys/class/mei/mei1/device/mei::other/vtag`]: '0',
    'sys/class/mei/mei1/fw_status': '90000255\n0000000a\nffffffff',
    'sys/class/mei/mei1/dev_state': 'ENABLED',
    'sys/bus/pci/drivers/mei_me/0000:00:16.0/mei/mei1/dev': '1',
  };

  test('are found by the address of their function, with the clients that guests may use', () => {
    const engine = new EngineInterface(tree(files), '0/16/0');
    expect(engine.path).toMatch(/\/dev\/mei1$/);
    expect(engine.clients()).toEqual([
      { uuid: uuidBytes(UUID), version: 2, isFixed: false, maxMessageBytes: 2048, maxConnections: 1 },
    ]);
    expect(engine.firmwareStatus()).toEqual([0x90000255, 10, 0xffffffff, 0, 0, 0]);
    expect(engine.isEnabled).toBe(true);
  });

  test('a host without one: one line that says what is missing', async () => {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const env = { ...machine.env(), hostTree: { root: tree({ 'sys/x': '' }), isPlan: false } };
    const fn = virtioHeci.create({}, env) as VirtioPci;
    await expect(fn.start()).rejects.toThrow(
      /sys\/class\/mei\/mei0\/device: ENOENT: this host has no management engine/,
    );
  });
});

test.each([
  ['', {}],
  ['0/16/0', { address: '0/16/0' }],
  ['0/16/0,d1', { address: '0/16/0' }],
  ['d8', {}],
])('options "%s"', (text, options) => expect(parseHeciText(text)).toEqual(options));
test.each(['mei7', 'd9', '0/16/0,x'])('options "%s" are refused', (text) => {
  expect(() => parseHeciText(text)).toThrow('unknown option');
});
