/** virtio-console as its driver sees it. Hostile control messages: anchors §4.3 group 9. */
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../../devicemodel/core/errors.ts';
import { checkOptions } from '../../../../../devicemodel/core/options.ts';
import { VirtioConsole, virtioConsole } from '../../../../../devicemodel/hw/pci/virtio/console/console.ts';
import { ConsoleOptions, parseConsoleText } from '../../../../../devicemodel/hw/pci/virtio/console/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { PciMachine } from '../../../../support/pci-machine.ts';
import { type DriverMode, FakeCharBackend, VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const Control = { receive: 2, transmit: 3 } as const;
const Event = {
  DeviceReady: 0,
  DeviceAdd: 1,
  PortReady: 3,
  ConsolePort: 4,
  Resize: 5,
  PortOpen: 6,
  PortName: 7,
} as const;

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

const optionsOf = (text: string) => checkOptions(ConsoleOptions, parseConsoleText(text));

async function makeConsole(text: string, mode: DriverMode = 'legacy') {
  // 34 queues, set up more than once.
  const machine = new VirtioMachine({ ram: [[0, 0x200000]] });
  undo.push(() => machine.dispose());
  const driver = new VirtioDriver(machine, virtioConsole.create(optionsOf(text), machine.env()), mode);
  await driver.fn.start?.();
  undo.push(() => driver.fn.stop?.());
  const port = (index: number) => machine.backends[index] as FakeCharBackend;
  return { machine, driver, port };
}

function message(id: number, event: number, value: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(8));
  view.setUint32(0, id, true);
  view.setUint16(4, event, true);
  view.setUint16(6, value, true);
  return new Uint8Array(view.buffer);
}

/** Buffers for the device's control messages; `take` reads what came: [id, event, value, text]. */
function controlBuffers(driver: VirtioDriver, count: number) {
  const buffers = Array.from({ length: count }, () => {
    driver.add(Control.receive, [{ write: 64 }]);
    return (driver.lastBuffers[0] as { at: number }).at;
  });
  driver.kick(Control.receive);
  let next = 0;
  return () =>
    driver.takeUsed(Control.receive).map(({ length }) => {
      const bytes = driver.read(buffers[next++] as number, length);
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      return [
        view.getUint32(0, true),
        view.getUint16(4, true),
        view.getUint16(6, true),
        Buffer.from(bytes.subarray(8)).toString(),
      ];
    });
}

describe('data', () => {
  test.each(['legacy', 'modern', 'packed'] as const)(
    '%s: what the guest writes reaches the back end, flushed once',
    async (mode) => {
      const { driver, port } = await makeConsole(`@stdio:a${mode === 'legacy' ? '' : ',transport=modern'}`, mode);
      driver.init();
      driver.add(1, [{ read: 'hello, ' }, { read: 'world' }]);
      driver.add(1, [{ read: '!' }]);
      driver.kick(1);
      expect(port(0).written).toBe('hello, world!');
      expect(port(0).flushes).toBe(1);
      expect(driver.takeUsed(1).map((u) => u.length)).toEqual([0, 0]);
    },
  );

  test('what is typed goes into the buffers there are, the rest stays with the back end', async () => {
    const { driver, port } = await makeConsole('@pty:a');
    driver.init(() => 0n);
    driver.add(0, [{ write: 4 }]);
    const first = driver.lastBuffers[0] as { at: number };
    driver.kick(0);
    port(0).type('abcdefg');
    expect(driver.takeUsed(0).map((u) => u.length)).toEqual([4]);
    expect(Buffer.from(driver.read(first.at, 4)).toString()).toBe('abcd');
    // Nothing is lost, nothing is read ahead but the byte that found no room.
    expect(port(0).unread).toBe(2);
    driver.add(0, [{ write: 2 }, { write: 64 }]);
    driver.kick(0);
    expect(driver.takeUsed(0).map((u) => u.length)).toEqual([3]);
    expect(Buffer.from(driver.buffer(0)).toString() + Buffer.from(driver.buffer(1, 1)).toString()).toBe('efg');
  });

  test('input before the driver is up waits for it', async () => {
    const { driver, port } = await makeConsole('stdio:a');
    port(0).type('early');
    driver.init();
    driver.add(0, [{ write: 64 }]);
    driver.kick(0);
    expect(driver.takeUsed(0).map((u) => u.length)).toEqual([5]);
  });

  test('ports beyond the first have their own queues', async () => {
    const { driver, port } = await makeConsole('stdio:a,pty:b');
    driver.init();
    driver.request(5, [{ read: 'second' }]);
    expect(port(1).written).toBe('second');
    driver.add(4, [{ write: 8 }]);
    driver.kick(4);
    port(1).type('x');
    expect(driver.takeUsed(4)).toHaveLength(1);
    // Queues of ports that do not exist take output and lose it.
    driver.request(7, [{ read: 'nobody' }]);
  });

  test('a port the guest closed gets no input until it opens it', async () => {
    const { driver, port } = await makeConsole('stdio:a,pty:b');
    driver.init();
    driver.add(4, [{ write: 8 }]);
    driver.kick(4);
    driver.request(Control.transmit, [{ read: message(1, Event.PortOpen, 0) }]);
    port(1).type('x');
    expect(driver.takeUsed(4)).toHaveLength(0);
    driver.request(Control.transmit, [{ read: message(1, Event.PortOpen, 1) }]);
    expect(driver.takeUsed(4)).toHaveLength(1);
  });

  test('input waits for a driver that announced itself to open the port: Linux drops what comes before', async () => {
    const { driver, port } = await makeConsole('stdio:a,pty:b');
    driver.init();
    driver.add(4, [{ write: 8 }]);
    driver.kick(4);
    driver.request(Control.transmit, [{ read: message(0, Event.DeviceReady, 1) }]);
    port(1).type('early');
    expect(driver.takeUsed(4)).toHaveLength(0);
    driver.request(Control.transmit, [{ read: message(1, Event.PortOpen, 1) }]);
    expect(driver.takeUsed(4)).toHaveLength(1);
  });

  test('a buffer without room is given back and the input goes into the next', async () => {
    const { driver, port } = await makeConsole('stdio:a');
    driver.init();
    driver.add(0, [{ read: 'no room here' }]);
    driver.add(0, [{ write: 8 }]);
    driver.kick(0);
    port(0).type('hi');
    expect(driver.takeUsed(0).map((u) => u.length)).toEqual([0, 2]);
  });
});

describe('control', () => {
  test('DEVICE_READY announces every port by name and opens it; PORT_READY tells consoles', async () => {
    const { driver } = await makeConsole('@stdio:first,pty:second');
    driver.init();
    const take = controlBuffers(driver, 16);
    driver.request(Control.transmit, [{ read: message(0, Event.DeviceReady, 1) }]);
    expect(take()).toEqual([
      [0, Event.DeviceAdd, 1, ''],
      [0, Event.PortName, 1, 'first'],
      [0, Event.PortOpen, 1, ''],
      [1, Event.DeviceAdd, 1, ''],
      [1, Event.PortName, 1, 'second'],
      [1, Event.PortOpen, 1, ''],
    ]);
    driver.request(Control.transmit, [{ read: message(0, Event.PortReady, 1) }]);
    driver.request(Control.transmit, [{ read: message(1, Event.PortReady, 1) }]);
    expect(take()).toEqual([[0, Event.ConsolePort, 1, '']]);
  });

  test.each(['modern', 'packed'] as const)(
    '%s: a driver that uses the event index is heard every time',
    async (mode) => {
      const { driver, port } = await makeConsole('@stdio:first,transport=modern', mode);
      driver.init();
      const take = controlBuffers(driver, 16);
      for (let i = 0; i < 5; i++) {
        driver.request(Control.transmit, [{ read: message(0, Event.PortOpen, 1) }]);
        driver.request(1, [{ read: 'x' }]);
      }
      driver.request(Control.transmit, [{ read: message(0, Event.DeviceReady, 1) }]);
      driver.request(Control.transmit, [{ read: message(0, Event.PortReady, 1) }]);
      expect(take().map((m) => m[1])).toEqual([Event.DeviceAdd, Event.PortName, Event.PortOpen, Event.ConsolePort]);
      expect(port(0).written).toBe('xxxxx');
    },
  );

  test('messages wait for buffers', async () => {
    const { driver } = await makeConsole('@stdio:first');
    driver.init();
    driver.request(Control.transmit, [{ read: message(0, Event.DeviceReady, 1) }]);
    expect(driver.takeUsed(Control.receive)).toEqual([]);
    const take = controlBuffers(driver, 8);
    expect(take().map((m) => m[1])).toEqual([Event.DeviceAdd, Event.PortName, Event.PortOpen]);
  });

  test.each([
    ['port 16', message(16, Event.PortReady, 1)],
    ['port 2^32 - 1', message(0xffffffff, Event.PortOpen, 1)],
    ['an unknown event', message(0, 0xffff, 1)],
    ['three bytes', new Uint8Array(3)],
    ['nothing', new Uint8Array(0)],
  ])('%s: given back and forgotten', async (_name, bytes) => {
    const { driver } = await makeConsole('@stdio:first');
    driver.init();
    const take = controlBuffers(driver, 4);
    driver.request(Control.transmit, [{ read: bytes }]);
    expect(take()).toEqual([]);
    expect(driver.needsReset).toBe(false);
  });

  test('a driver that asks again and again and gives no buffers fills no memory', async () => {
    const { driver } = await makeConsole('@stdio:first');
    driver.init();
    for (let i = 0; i < 500; i++) driver.request(Control.transmit, [{ read: message(0, Event.DeviceReady, 1) }]);
    let count = 0;
    for (let i = 0; i < 10; i++) count += controlBuffers(driver, 32)().length;
    expect(count).toBe(128);
  });
});

describe('size', () => {
  function makeSized(multiPort: boolean) {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const terminal = { size: { cols: 100, rows: 40 }, changed: () => {} };
    const { ports } = optionsOf('@stdio:a');
    const backend = new FakeCharBackend('stdio');
    const sizes = {
      get size() {
        return terminal.size;
      },
      onResize: (changed: () => void) => {
        terminal.changed = changed;
        return () => {};
      },
    };
    const env = machine.env();
    const device = new VirtioConsole(ports, 'legacy', () => backend, env.log, sizes);
    const fn = new VirtioPci(device, env, {
      mode: 'legacy',
      identity: { legacyDeviceId: 0x1003, type: 3, classCode: 0x078000 },
    });
    undo.push(() => fn.stop());
    const driver = new VirtioDriver(machine, fn);
    const accept = (offered: bigint) => (multiPort ? offered : offered & 1n);
    return { machine, driver, terminal, accept };
  }

  test('without multiport a resize is a configuration change', async () => {
    const { driver, terminal, accept } = makeSized(false);
    await driver.fn.start?.();
    driver.init(accept);
    expect(driver.readConfig(0, 4)).toBe(100 | (40 << 16));
    terminal.size = { cols: 120, rows: 50 };
    terminal.changed();
    expect(driver.isr).toBe(2);
    expect(driver.readConfig(0, 4)).toBe(120 | (50 << 16));
  });

  test('with multiport a resize is a message: rows, then columns, as Linux reads it', async () => {
    const { driver, terminal, accept } = makeSized(true);
    await driver.fn.start?.();
    driver.init(accept);
    driver.request(Control.transmit, [{ read: message(0, Event.DeviceReady, 1) }]);
    const take = controlBuffers(driver, 8);
    take();
    terminal.size = { cols: 120, rows: 50 };
    terminal.changed();
    expect(take()).toEqual([[0, Event.Resize, 0, '\x32\0\x78\0']]);
  });

  test('no terminal: 80 by 25, as the C device model always says', async () => {
    const { driver } = await makeConsole('@pty:a');
    driver.init();
    expect([driver.readConfig(0, 2), driver.readConfig(2, 2), driver.readConfig(4, 4)]).toEqual([80, 25, 16]);
  });
});

test('ports of one kind are different users of back ends: a pty each, the same again after a full reset', () => {
  const usersOf = () => {
    const machine = new PciMachine();
    machine.plug('0:4.0', virtioConsole, optionsOf('@pty:a,pty:b'));
    machine.host.configure();
    return machine.backendUsers;
  };
  expect(new Set(usersOf()).size).toBe(2);
  expect(usersOf()).toEqual(usersOf());
});

describe('options', () => {
  test.each([
    ['@stdio:stdio_port', { isConsole: true, name: 'stdio_port', backend: { kind: 'stdio', translateOutput: true } }],
    // As C: what the guest cannot name it opens by number.
    ['pty:', { isConsole: false, name: '', backend: { kind: 'pty', linkPath: undefined } }],
    ['pty:p', { isConsole: false, name: 'p', backend: { kind: 'pty', linkPath: undefined } }],
    [
      'tty:t=/dev/ttyS1',
      { isConsole: false, name: 't', backend: { kind: 'tty', path: '/dev/ttyS1', translateOutput: true } },
    ],
    ['FILE:f=/tmp/a=b', { isConsole: false, name: 'f', backend: { kind: 'file', path: '/tmp/a=b' } }],
    ['socket:s=/run/x', { isConsole: false, name: 's', backend: { kind: 'unix', path: '/run/x', role: 'server' } }],
    [
      '@socket:s=/run/x:client',
      { isConsole: true, name: 's', backend: { kind: 'unix', path: '/run/x', role: 'client' } },
    ],
  ])('%s', (text, expected) => {
    expect(optionsOf(text).ports).toEqual([expected]);
  });

  test.each([
    '',
    '@bogus:x=y',
    'stdio',
    'tty:t',
    'file:f',
    'file:f=',
    'socket:s',
    'socket:s=/x:peer',
    '@',
    Array(17).fill('pty:a').join(','),
  ])('"%s" is refused with one line', (text) => {
    expect(() => optionsOf(text)).toThrow(ConfigError);
  });

  test('any text is either options or a ConfigError', () => {
    fc.assert(
      fc.property(fc.stringMatching(/^[@a-z:=,/]{0,40}$/), (text) => {
        try {
          expect(optionsOf(text).ports.length).toBeGreaterThan(0);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
        }
      }),
    );
  });
});

test('PORT_READY is answered without DEVICE_READY, too, as from the C device model', async () => {
  const { driver } = await makeConsole('@stdio:a,file:b=/x');
  driver.init();
  const take = controlBuffers(driver, 8);
  driver.request(Control.transmit, [{ read: message(0, Event.PortReady, 1) }]);
  driver.request(Control.transmit, [{ read: message(1, Event.PortReady, 1) }]);
  expect(take()).toEqual([[0, Event.ConsolePort, 1, '']]);
});

test('after a reset a new driver starts from nothing, and input waits for it', async () => {
  const { driver, port } = await makeConsole('@stdio:a');
  driver.init();
  driver.add(0, [{ write: 8 }]);
  driver.kick(0);
  driver.status = 0;
  port(0).type('late');
  expect(driver.takeUsed(0)).toEqual([]);
  driver.init();
  const take = controlBuffers(driver, 8);
  expect(take()).toEqual([]);
  driver.add(0, [{ write: 8 }]);
  driver.kick(0);
  expect(driver.takeUsed(0).map((u) => u.length)).toEqual([4]);
});
