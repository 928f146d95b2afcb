/** Devices of the host: which are the guest's, who has them when, and what is passed on. */
import { describe, expect, onTestFinished, test, vi } from 'vitest';
import { IoPatience } from '../../../devicemodel/core/io-patience.ts';
import { UsbSpeed, type UsbTransfer } from '../../../devicemodel/hw/usb/device.ts';
import { HostDevice, hideUas } from '../../../devicemodel/hw/usb/host-device.ts';
import { type HostUsbDevice, interfacesOf } from '../../../devicemodel/hw/usb/host-tree.ts';
import { PortMapper } from '../../../devicemodel/hw/usb/port-mapper.ts';
import { FakeHostUsb } from '../../support/fake-host-usb.ts';
import { memoryLog } from '../../support/memory-log.ts';

const at = (path: string, fields: Partial<HostUsbDevice> = {}): HostUsbDevice => ({
  path,
  deviceNumber: 2,
  node: `/dev/bus/usb/001/${path}`,
  speed: UsbSpeed.High,
  release: 0x200,
  id: '0781:5567',
  isHub: false,
  ...fields,
});
const turn = () => new Promise((resolve) => setImmediate(resolve));

/** Root ports that remember what happened to them. */
function makeMapper(assigned: readonly string[], devices: HostUsbDevice[]) {
  const host = new FakeHostUsb(devices);
  const events: string[] = [];
  const plugged: HostDevice[] = [];
  const { log, lines } = memoryLog();
  const hub = {
    connect: (device: HostDevice, preferred?: number) => {
      events.push(`+ ${device.where.path}${preferred === undefined ? '' : ` at ${preferred}`}`);
      plugged.push(device);
      return preferred ?? 10 + plugged.length;
    },
    disconnect: (device: HostDevice) => {
      events.push(`- ${device.where.path}`);
    },
  };
  const patience = new IoPatience(60_000);
  const mapper = new PortMapper(assigned, hub as never, host, log, patience);
  return { host, events, plugged, mapper, lines, patience };
}

describe('port mapper', () => {
  test('what is at an assigned port, or behind a hub there, is the guest’s; hubs are not', () => {
    const made = makeMapper(
      ['1-2', '2-1'],
      [at('1-1'), at('1-2', { isHub: true }), at('1-2.1'), at('1-2.3.4'), at('1-20'), at('2-1')],
    );
    made.mapper.start();
    expect(made.events).toEqual(['+ 1-2.1', '+ 1-2.3.4', '+ 2-1']);
  });

  test('a device that the host takes for another one after each reset is given away without, from its second time on', async () => {
    const made = makeMapper(['1-2'], [at('1-2')]);
    made.mapper.start();
    const open = made.host.open.bind(made.host);
    made.host.open = async () => {
      const handle = await open();
      handle.results.set('reset', -5).set('claim 0', -4);
      return handle;
    };
    expect(await made.plugged[0]?.open()).toBe(false);
    made.host.change([at('1-2', { deviceNumber: 3 })]);
    made.host.open = open;
    const again = made.plugged[1];
    expect(await again?.open()).toBe(true);
    expect(await again?.reset()).toBe(true);
    expect(made.host.handles[1]?.calls).toEqual(['claim 0', 'claim 1']);
    expect(made.lines.filter((line) => line.includes('does not survive a reset'))).toHaveLength(1);
    // Another one there is reset as any.
    made.host.change([at('1-2', { deviceNumber: 4, id: '1234:5678' })]);
    expect(await made.plugged[2]?.open()).toBe(true);
    expect(made.host.handles[2]?.calls).toEqual(['claim 0', 'claim 1', 'reset']);
    await made.mapper.stop();
  });

  test('a device that is plugged in later, pulled out, and plugged in again gets its port again', async () => {
    const made = makeMapper(['1-2'], []);
    made.mapper.start();
    made.host.change([at('1-2')]);
    made.host.change([]);
    made.host.change([at('1-2', { deviceNumber: 3 })]);
    expect(made.events).toEqual(['+ 1-2', '- 1-2', '+ 1-2 at 11']);
    expect(made.lines.filter((line) => line.includes('1-2'))).toHaveLength(3);
    await made.mapper.stop();
    expect(made.events.at(-1)).toBe('- 1-2');
    expect(made.host.isWatched).toBe(false);
  });

  test('the same path with another number is another device', () => {
    const made = makeMapper(['1-2'], [at('1-2')]);
    made.mapper.start();
    made.host.change([at('1-2', { deviceNumber: 9 })]);
    expect(made.events).toEqual(['+ 1-2', '- 1-2', '+ 1-2 at 11']);
  });

  test('a device without a number is being reset, and the same one afterwards', async () => {
    const made = makeMapper(['1-2'], [at('1-2')]);
    made.mapper.start();
    expect(await made.plugged[0]?.open()).toBe(true);
    made.host.change([at('1-2', { deviceNumber: 0 })]);
    made.host.change([at('1-2')]);
    expect(made.events).toEqual(['+ 1-2']);
    made.host.change([at('1-2', { deviceNumber: 0 })]);
    made.host.change([]);
    expect(made.events).toEqual(['+ 1-2', '- 1-2']);
    await made.mapper.stop();
  });

  test('one that the host resets when it is looked for is found afterwards, though nobody tells', async () => {
    vi.useFakeTimers();
    onTestFinished(() => void vi.useRealTimers());
    const made = makeMapper(['1-2'], [at('1-2', { deviceNumber: 0 }), at('1-3', { deviceNumber: 0 })]);
    made.mapper.start();
    vi.advanceTimersByTime(1000);
    expect(made.events).toEqual([]);
    made.host.devices = [at('1-2'), at('1-3', { deviceNumber: 0 })];
    vi.advanceTimersByTime(1000);
    expect(made.events).toEqual(['+ 1-2']);
    expect(vi.getTimerCount()).toBe(0);
    // Another one took its place, and is reset when that is told.
    made.host.change([at('1-2', { deviceNumber: 0 })]);
    made.host.devices = [at('1-2', { deviceNumber: 3 })];
    vi.advanceTimersByTime(1000);
    expect(made.events).toEqual(['+ 1-2', '- 1-2', '+ 1-2 at 11']);
    made.host.change([at('1-2', { deviceNumber: 0 })]);
    expect(vi.getTimerCount()).toBe(1);
    await made.mapper.stop();
    expect(vi.getTimerCount()).toBe(0);
  });

  test('where the kernel tells nothing there is one line, and what is there is mapped', () => {
    const made = makeMapper(['1-2'], [at('1-2')]);
    made.host.watchFails = true;
    made.mapper.start();
    expect(made.events).toEqual(['+ 1-2']);
    expect(made.lines.filter((line) => line.startsWith('warn'))).toHaveLength(1);
  });

  test('stop does not wait for ever for a device that hangs in the host, and gives back the others', async () => {
    const made = makeMapper(['1-2', '1-3'], [at('1-2'), at('1-3')]);
    made.mapper.start();
    for (const device of made.plugged) expect(await device.open()).toBe(true);
    const [hanging, other] = made.host.handles;
    made.plugged[0]?.submit(bulk());
    made.patience.force();
    const { isGivenBack, closed } = await made.mapper.stop();
    expect(isGivenBack).toBe(false);
    expect([hanging?.calls.includes('close'), other?.calls.includes('close')]).toEqual([false, true]);
    expect(made.lines.at(-1)).toMatch(/^warn: USB device 1-2 \(0781:5567\) is not given back/);
    hanging?.give('gone');
    await closed;
    expect(hanging?.calls.includes('close')).toBe(true);
  });

  test('stop waits for devices that were pulled out and still have something in flight', async () => {
    const made = makeMapper(['1-2'], [at('1-2')]);
    made.mapper.start();
    const device = made.plugged[0] as HostDevice;
    await device.open();
    const transfer = bulk();
    device.submit(transfer);
    made.host.change([]);
    let isStopped = false;
    const stopped = made.mapper.stop().then(() => (isStopped = true));
    await turn();
    expect(isStopped).toBe(false);
    made.host.handles[0]?.give('gone');
    await stopped;
    expect(transfer.status).toBe('gone');
    // There is no driver to come back for it.
    expect(made.host.handles[0]?.calls.filter((call) => call.startsWith('attach'))).toEqual([]);
    expect(made.host.handles[0]?.calls.at(-1)).toBe('close');
  });
});

function bulk(fields: Partial<UsbTransfer> = {}): UsbTransfer & { isDone: boolean } {
  const transfer = {
    type: 'bulk' as const,
    endpoint: 0x81,
    isIn: true,
    streamId: 0,
    setup: undefined,
    buffer: new Uint8Array(8),
    packets: [],
    status: 'cancelled' as UsbTransfer['status'],
    actualBytes: 0,
    isDone: false,
    done: () => {
      transfer.isDone = true;
    },
    ...fields,
  };
  return transfer;
}

function control(requestType: number, request: number, value: number, index = 0, length = 0) {
  const isIn = requestType >= 0x80;
  const setup = { requestType, request, value, index, length };
  return bulk({ type: 'control', endpoint: 0, isIn, setup, buffer: new Uint8Array(length) });
}

async function openDevice() {
  const host = new FakeHostUsb([]);
  const { log, lines } = memoryLog();
  const device = new HostDevice(at('1-2'), host, log);
  expect(await device.open()).toBe(true);
  const handle = host.handles[0]!;
  const opened = handle.calls.splice(0);
  return { host, device, handle, opened, lines };
}

describe('host device', () => {
  // Mutation: what is cancelled is looked for in the list that its driver adds to, or before the reset refuses.
  test('a driver that asks anew for each that is cancelled does not keep a reset', async () => {
    const { device, handle } = await openDevice();
    // While a call of the device is out, transfers wait, and come back at once.
    handle.hanging = 'alternate';
    device.submit(control(0x01, 11, 1));
    await turn();
    let cancelled = 0;
    const submit = () => {
      const transfer: UsbTransfer = bulk({
        type: 'isochronous',
        done: () => {
          if (transfer.status === 'cancelled' && ++cancelled < 1000) submit();
        },
      });
      device.submit(transfer);
    };
    submit();
    const reset = device.reset();
    expect(cancelled).toBe(1);
    handle.goOn();
    expect(await reset).toBe(true);
  });

  test('the host’s drivers go, interfaces are claimed, the device is reset; once', async () => {
    const { device, opened, host } = await openDevice();
    expect(opened).toEqual(['claim 0', 'claim 1', 'reset']);
    expect(device.open()).toBe(true);
    expect(host.handles).toHaveLength(1);
  });

  test('one that cannot be opened is said, and is not there', async () => {
    const host = new FakeHostUsb([]);
    host.openFails = true;
    const { log, lines } = memoryLog();
    const device = new HostDevice(at('1-2'), host, log);
    expect(await device.open()).toBe(false);
    expect(lines).toEqual([expect.stringMatching(/^warn: USB device 1-2 \(0781:5567\): /)]);
    const transfer = bulk();
    device.submit(transfer);
    expect(transfer.status).toBe('gone');
  });

  test('close gives everything back, after what is in flight came back', async () => {
    const { device, handle } = await openDevice();
    const transfer = bulk();
    device.submit(transfer);
    const closed = device.close();
    await turn();
    expect(handle.calls).toEqual(['submit bulk 129', 'cancel']);
    handle.give('cancelled');
    await closed;
    expect(handle.calls.slice(2)).toEqual(['release 0', 'attach 0', 'release 1', 'attach 1', 'close']);
    await device.close();
    expect(handle.calls.filter((call) => call === 'close')).toHaveLength(1);
  });

  test('a bus reset asks for what is in flight first', async () => {
    const { device, handle } = await openDevice();
    const transfer = bulk();
    device.submit(transfer);
    const reset = device.reset() as Promise<boolean>;
    await turn();
    expect(handle.calls).not.toContain('reset');
    handle.give('cancelled');
    expect(await reset).toBe(true);
    expect(handle.calls.at(-1)).toBe('reset');
  });

  test('resets without end are one, and the end of the VM does not wait for more', async () => {
    const { device, handle } = await openDevice();
    const transfer = bulk();
    device.submit(transfer);
    const resets = Array.from({ length: 1000 }, () => device.reset() as Promise<boolean>);
    const closed = device.close();
    handle.give('cancelled');
    expect(new Set(await Promise.all(resets))).toEqual(new Set([true]));
    await closed;
    expect(handle.calls.filter((call) => call === 'reset')).toHaveLength(1);
  });

  test('a device that is being reset hears nothing: a guest that goes on does not hold it up', async () => {
    const { device, handle } = await openDevice();
    const before = bulk();
    device.submit(before);
    const reset = device.reset() as Promise<boolean>;
    const meanwhile = [bulk({ endpoint: 0x82 }), control(0x80, 6, 0x100, 0, 18)];
    for (const transfer of meanwhile) device.submit(transfer);
    expect(meanwhile.map(({ isDone, status }) => [isDone, status])).toEqual([
      [true, 'error'],
      [true, 'error'],
    ]);
    handle.give('cancelled');
    expect(await reset).toBe(true);
    const after = bulk();
    device.submit(after);
    expect(after.isDone).toBe(false);
  });

  test('one that is asked for again while it is opened is opened once', async () => {
    const host = new FakeHostUsb([]);
    const { log } = memoryLog();
    const device = new HostDevice(at('1-2'), host, log);
    const open = host.open.bind(host);
    let tries = 0;
    host.open = () => {
      tries++;
      return open();
    };
    host.openFails = true;
    const answers = Array.from({ length: 100 }, () => device.open());
    expect(new Set(await Promise.all(answers))).toEqual(new Set([false]));
    expect(tries).toBe(1);
    host.openFails = false;
    expect(await device.open()).toBe(true);
  });

  test('a driver of the host that came in during a reset is sent away again', async () => {
    const { device, handle, lines } = await openDevice();
    handle.results.set('reset', -5);
    expect(await device.reset()).toBe(true);
    expect(handle.calls).toEqual(['reset', 'claim 0', 'claim 1']);
    expect(lines).toEqual([]);
    // Nobody is there to be claimed: it is another device now.
    handle.results.set('claim 0', -4);
    expect(await device.reset()).toBe(false);
    expect(lines).toEqual([
      expect.stringMatching(/interface 0 cannot be claimed \(error -4\)/),
      expect.stringMatching(/does not come back from a reset \(error -5\)/),
    ]);
  });

  test('one that does not come back from its first reset is left to the host', async () => {
    const host = new FakeHostUsb([]);
    const { log, lines } = memoryLog();
    const device = new HostDevice(at('1-2'), host, log);
    const open = host.open.bind(host);
    host.open = async () => {
      const handle = await open();
      handle.results.set('reset', -99);
      return handle;
    };
    expect(await device.open()).toBe(false);
    expect(host.handles[0]?.calls.at(-1)).toBe('close');
    expect(lines).toEqual([expect.stringMatching(/does not come back from a reset \(error -99\)/)]);
  });

  test('configurations, alternate settings, halts and addresses are the host’s business', async () => {
    const { device, handle } = await openDevice();
    for (const [request, calls] of [
      [control(0x00, 5, 7), []],
      [control(0x00, 9, 2), ['release 0', 'release 1', 'configure 2', 'claim 0', 'claim 1']],
      [control(0x00, 9, 0), ['release 0', 'release 1', 'configure -1', 'claim 0', 'claim 1']],
      [control(0x01, 11, 3, 1), ['alternate 1 3']],
      [control(0x02, 1, 0, 0x81), ['clear 129']],
    ] as const) {
      device.submit(request);
      await turn();
      await turn();
      expect(handle.calls.splice(0)).toEqual(calls);
      expect(request).toMatchObject({ isDone: true, status: 'completed' });
    }
  });

  test('all else is passed on with its setup packet', async () => {
    const { device, handle } = await openDevice();
    const request = control(0xa1, 0xfe, 0x1234, 1, 4);
    device.submit(request);
    expect([...handle.requests[0]!.buffer.subarray(0, 8)]).toEqual([0xa1, 0xfe, 0x34, 0x12, 1, 0, 4, 0]);
    handle.requests[0]!.buffer.set([1, 2, 3], 8);
    handle.give('completed', 3);
    expect(request).toMatchObject({ status: 'completed', actualBytes: 3 });
    expect([...request.buffer]).toEqual([1, 2, 3, 0]);
  });

  test('a transfer that libusb refuses fails at once', async () => {
    const { device, handle } = await openDevice();
    handle.refuses = true;
    const transfer = bulk();
    device.submit(transfer);
    expect(transfer).toMatchObject({ isDone: true, status: 'error' });
  });

  test('UAS is hidden, and nothing else', () => {
    const uas = [9, 4, 0, 1, 4, 8, 6, 0x62, 0];
    const bulkOnly = [9, 4, 0, 0, 2, 8, 6, 0x50, 0];
    const bytes = Uint8Array.from([9, 2, 27, 0, 1, 1, 0, 0x80, 50, ...bulkOnly, ...uas]);
    hideUas(bytes);
    expect([bytes[16], bytes[25]]).toEqual([0x50, 0]);
    const broken = Uint8Array.from([9, 2, 0]);
    hideUas(broken);
    expect([...broken]).toEqual([9, 2, 0]);
  });
});

test('interfaces are those of the configuration the device has', () => {
  const configuration = (value: number, ...interfaces: number[]) => [
    ...[9, 2, 0, 0, interfaces.length, value, 0, 0x80, 50],
    ...interfaces.flatMap((number) => [9, 4, number, 0, 0, 8, 6, 0x50, 0]),
  ];
  const device = new Array(18).fill(0);
  const bytes = Uint8Array.from([...device, ...configuration(1, 0), ...configuration(2, 0, 1, 1, 4)]);
  expect(interfacesOf(bytes, 1)).toEqual([0]);
  expect(interfacesOf(bytes, 2)).toEqual([0, 1, 4]);
  expect(interfacesOf(bytes, 3)).toEqual([]);
  expect(interfacesOf(Uint8Array.from([...device, 0, 2, 3]), 1)).toEqual([]);
});
