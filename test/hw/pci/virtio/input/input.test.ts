/** virtio-input as its driver sees it, on a made-up input device. */
import { afterEach, describe, expect, test } from 'vitest';
import type { InputEvent, InputSource } from '../../../../../devicemodel/core/host/evdev.ts';
import { VirtioInput } from '../../../../../devicemodel/hw/pci/virtio/input/input.ts';
import { parseInputText } from '../../../../../devicemodel/hw/pci/virtio/input/options.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** A mouse with one axis. */
class FakeInput implements InputSource {
  readonly events: Array<[number, number, number]> = [];
  readonly written: Array<[number, number, number]> = [];
  onReadable: () => void = () => {};
  isGone = false;
  name = () => Buffer.from('test mouse');
  ids = () => [3, 0x46d, 0xc077, 0x111] as const;
  properties = (size: number) => new Uint8Array(size);
  codes = (type: number, size: number) => (type === 3 ? Uint8Array.of(0b10, ...new Uint8Array(size - 1)) : undefined);
  axis = (code: number) => (code === 1 ? [0, 1023, 4, 2, 10] : undefined);
  read(into: InputEvent): boolean {
    if (this.isGone) throw new Error('input device is gone');
    const next = this.events.shift();
    if (next === undefined) return false;
    [into.type, into.code, into.value] = next;
    return true;
  }
  write(type: number, code: number, value: number): void {
    this.written.push([type, code, value]);
  }
  watch(onReadable: () => void): () => void {
    this.onReadable = onReadable;
    return () => {
      this.onReadable = () => {};
    };
  }
  close(): void {}
  /** The host's device reports. */
  report(...events: Array<[number, number, number]>): void {
    this.events.push(...events);
    this.onReadable();
  }
}

const SYN: [number, number, number] = [0, 0, 0];

async function makeInput(serial?: string) {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const env = machine.env();
  const source = new FakeInput();
  const fn = new VirtioPci(new VirtioInput(() => source, serial, env.log), env, {
    mode: 'modern',
    identity: { legacyDeviceId: 0, type: 18, classCode: 0x098000, subsystemId: 0x1100 },
  });
  const driver = new VirtioDriver(machine, fn, 'modern');
  await fn.start();
  undo.push(() => fn.stop());
  const config = (select: number, subsel = 0) => {
    driver.writeConfig(0, 1, select);
    driver.writeConfig(1, 1, subsel);
    const length = driver.readConfig(2, 1);
    return Array.from({ length }, (_, i) => driver.readConfig(8 + i, 1));
  };
  const event = (buffer: Uint8Array) => {
    const view = new DataView(buffer.buffer, buffer.byteOffset);
    return [view.getUint16(0, true), view.getUint16(2, true), view.getUint32(4, true)];
  };
  return { machine, driver, source, config, event };
}

describe('configuration', () => {
  test('name, serial, ids, codes and axis', async () => {
    const { config } = await makeInput('serial-1');
    expect(Buffer.from(config(1)).toString()).toBe('test mouse');
    expect(Buffer.from(config(2)).toString()).toBe('serial-1');
    expect(config(3)).toEqual([3, 0, 0x6d, 0x04, 0x77, 0xc0, 0x11, 0x01]);
    expect(config(0x11, 3)).toEqual([0b10]);
    expect(config(0x12, 1)).toEqual([0, 0, 0, 0, 0xff, 3, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0, 10, 0, 0, 0]);
  });

  test('what is not there has length 0', async () => {
    const { config } = await makeInput();
    for (const [select, subsel] of [
      [0, 0],
      [2, 0],
      [0x10, 0],
      [0x11, 1],
      [0x11, 0xff],
      [0x12, 2],
      [0x12, 0xff],
      [0xff, 0xff],
    ] as const) {
      expect(config(select, subsel)).toEqual([]);
    }
  });
});

describe('events', () => {
  test('a packet arrives at SYN_REPORT, in order, an event a buffer', async () => {
    const { driver, source, event } = await makeInput();
    driver.init();
    const at = [0, 1, 2].map(() => {
      driver.add(0, [{ write: 8 }]);
      return (driver.lastBuffers[0] as { at: number }).at;
    });
    source.report([3, 1, 0xffffffff]);
    source.report([1, 0x110, 1]);
    expect(driver.takeUsed(0)).toEqual([]);
    source.report(SYN);
    expect(driver.takeUsed(0).map((u) => u.length)).toEqual([8, 8, 8]);
    expect(at.map((a) => event(driver.read(a, 8)))).toEqual([
      [3, 1, 0xffffffff],
      [1, 0x110, 1],
      [0, 0, 0],
    ]);
  });

  test('too few buffers: the whole packet is lost, the buffers are used for the next', async () => {
    const { driver, source, event, machine } = await makeInput();
    driver.init();
    driver.add(0, [{ write: 8 }]);
    const at = (driver.lastBuffers[0] as { at: number }).at;
    driver.add(0, [{ write: 8 }]);
    source.report([3, 1, 5], [3, 1, 6], SYN);
    expect(driver.takeUsed(0)).toEqual([]);
    source.report([3, 1, 7], SYN);
    expect(driver.takeUsed(0)).toHaveLength(2);
    expect(event(driver.read(at, 8))).toEqual([3, 1, 7]);
    expect(machine.lines.join()).toMatch(/lost/);
  });

  test('a host device without end of packet fills no memory', async () => {
    const { driver, source } = await makeInput();
    driver.init();
    for (let i = 0; i < 5000; i++) source.report([3, 1, i]);
    source.report(SYN);
    expect(driver.takeUsed(0)).toEqual([]);
  });

  test('events before the driver is up are lost', async () => {
    const { driver, source } = await makeInput();
    source.report([3, 1, 1]);
    driver.init();
    driver.add(0, [{ write: 8 }]);
    source.report(SYN);
    expect(driver.takeUsed(0)).toHaveLength(1);
  });

  test('an unplugged device is silent, the guest goes on', async () => {
    const { driver, source, machine } = await makeInput();
    driver.init();
    source.isGone = true;
    source.onReadable();
    source.onReadable();
    expect(machine.lines.filter((l) => l.includes('gone'))).toHaveLength(1);
  });
});

describe('status', () => {
  test('LEDs go to the host, EV_MSC does not, oversized and short ones are given back', async () => {
    const { driver, source } = await makeInput();
    driver.init();
    driver.request(1, [{ read: [0x11, 0, 1, 0, 1, 0, 0, 0] }]);
    driver.request(1, [{ read: [4, 0, 4, 0, 9, 0, 0, 0] }]);
    driver.request(1, [{ read: [1, 2, 3] }]);
    driver.request(1, [{ read: [0x11, 0, 0, 0, 0, 0, 0, 0, ...new Uint8Array(100)] }]);
    expect(source.written).toEqual([
      [0x11, 1, 1],
      [0x11, 0, 0],
    ]);
  });
});

test('a device that is not there is refused with one line', () => {
  expect(() => parseInputText('')).toThrow(/which device/);
  expect(parseInputText('/dev/null,a,b')).toEqual({ path: '/dev/null', serial: 'a,b' });
});
