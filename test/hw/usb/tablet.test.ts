import { describe, expect, test } from 'vitest';
import { InputHub, PointerButton, type PointerEvent } from '../../../devicemodel/hw/input/input-hub.ts';
import type { SetupPacket, UsbTransfer } from '../../../devicemodel/hw/usb/device.ts';
import { UsbTablet } from '../../../devicemodel/hw/usb/tablet.ts';

const at = (x: number, y: number, buttons = 0, wheel = 0): PointerEvent => ({
  x,
  y,
  xPixels: 0,
  yPixels: 0,
  buttons,
  wheel,
});

function transferOf(fields: Partial<UsbTransfer>): UsbTransfer & { isDone: boolean } {
  const transfer = {
    type: 'interrupt' as const,
    endpoint: 0x81,
    isIn: true,
    streamId: 0,
    setup: undefined,
    buffer: new Uint8Array(8),
    packets: [],
    status: 'cancelled' as const,
    actualBytes: 0,
    isDone: false,
    done: () => {
      transfer.isDone = true;
    },
    ...fields,
  };
  return transfer;
}

function control(tablet: UsbTablet, requestType: number, request: number, value: number, length = 0) {
  const setup: SetupPacket = { requestType, request, value, index: 0, length };
  const isIn = requestType >= 0x80;
  const transfer = transferOf({ type: 'control', endpoint: 0, isIn, setup, buffer: new Uint8Array(length) });
  tablet.submit(transfer);
  expect(transfer.isDone).toBe(true);
  return { status: transfer.status, bytes: transfer.buffer.subarray(0, transfer.actualBytes) };
}

function configuredTablet() {
  const hub = new InputHub();
  const tablet = new UsbTablet(hub);
  tablet.plugIn();
  expect(control(tablet, 0x00, 9, 1).status).toBe('completed');
  const ask = () => {
    const transfer = transferOf({});
    tablet.submit(transfer);
    return transfer;
  };
  return { hub, tablet, ask };
}

describe('descriptors (USB 2.0 §9.6, HID 1.11)', () => {
  test('ids of the C device model, on a USB 2.0 device', () => {
    const { bytes } = control(new UsbTablet(undefined), 0x80, 6, 0x0100, 18);
    expect([...bytes]).toEqual([18, 1, 0x00, 0x02, 0, 0, 0, 64, 0x5d, 0xfb, 0x01, 0x00, 0, 0, 1, 2, 3, 1]);
  });

  test('a configuration is as long as it says, and so are its parts', () => {
    const { bytes } = control(new UsbTablet(undefined), 0x80, 6, 0x0200, 255);
    expect(bytes[2]! | (bytes[3]! << 8)).toBe(bytes.length);
    const types: number[] = [];
    for (let i = 0; i < bytes.length; i += bytes[i]!) types.push(bytes[i + 1]!);
    expect(types).toEqual([2, 4, 0x21, 5]);
    const hidLength = bytes[9 + 9 + 7]!;
    expect(control(new UsbTablet(undefined), 0x81, 6, 0x2200, 255).bytes).toHaveLength(hidLength);
  });

  test('strings', () => {
    const { bytes } = control(new UsbTablet(undefined), 0x80, 6, 0x0302, 255);
    expect(Buffer.from(bytes.subarray(2)).toString('utf16le')).toBe('HID Tablet');
    expect(control(new UsbTablet(undefined), 0x80, 6, 0x0305, 255).status).toBe('stall');
  });

  test('an answer is as long as was asked for', () => {
    expect(control(new UsbTablet(undefined), 0x80, 6, 0x0100, 8).bytes).toHaveLength(8);
  });

  test('what it does not know is a stall', () => {
    expect(control(new UsbTablet(undefined), 0xc0, 1, 0, 8).status).toBe('stall');
    expect(control(new UsbTablet(undefined), 0x00, 9, 2).status).toBe('stall');
    expect(control(new UsbTablet(undefined), 0x02, 3, 0).status).toBe('stall');
  });
});

describe('reports', () => {
  test('where the pointer is, buttons and wheel', () => {
    const { hub, ask } = configuredTablet();
    const transfer = ask();
    expect(transfer.isDone).toBe(false);
    hub.pointer(at(0x1234, 0x7fff, PointerButton.Left | PointerButton.Right, -1));
    expect(transfer).toMatchObject({ isDone: true, status: 'completed', actualBytes: 6 });
    expect([...transfer.buffer.subarray(0, 6)]).toEqual([0b011, 0x34, 0x12, 0xff, 0x7f, 0xff]);
  });

  test('clicks are kept for a guest that is slow, movements between them are merged', () => {
    const { hub, ask } = configuredTablet();
    ask();
    hub.pointer(at(1, 1));
    hub.pointer(at(2, 2, PointerButton.Left));
    hub.pointer(at(3, 3, PointerButton.Left, 1));
    hub.pointer(at(4, 4, PointerButton.Left, 1));
    hub.pointer(at(5, 5));
    const reports = [ask(), ask(), ask()].map(({ buffer, isDone }) => [isDone, buffer[0], buffer[1], buffer[5]]);
    expect(reports).toEqual([
      [true, 1, 4, 2],
      [true, 0, 5, 0],
      [false, 0, 0, 0],
    ]);
  });

  test('a display that goes on while nobody asks fills no memory', () => {
    const { hub, tablet, ask } = configuredTablet();
    ask();
    for (let i = 0; i < 1000; i++) hub.pointer(at(i, i, i & 1));
    let reports = 0;
    while (ask().isDone) reports++;
    expect(reports).toBeLessThanOrEqual(16);
    expect(tablet.isReady).toBe(true);
  });

  test('is told of the pointer only while a driver asks for it', () => {
    const { tablet, ask } = configuredTablet();
    expect(tablet.isReady).toBe(false);
    const transfer = ask();
    expect(tablet.isReady).toBe(true);
    tablet.cancel(transfer);
    expect(transfer).toMatchObject({ isDone: true, status: 'cancelled' });
    expect(tablet.isReady).toBe(false);
  });

  test('wakes its host if it was allowed to', () => {
    const { hub, tablet } = configuredTablet();
    let wakes = 0;
    tablet.onRemoteWake = () => wakes++;
    hub.pointer(at(1, 1));
    expect(wakes).toBe(0);
    control(tablet, 0x00, 3, 1);
    hub.pointer(at(2, 2));
    expect(wakes).toBe(1);
  });

  test('a reset gives back what was asked for, and closing unplugs it from the display', () => {
    const { hub, tablet, ask } = configuredTablet();
    const transfer = ask();
    tablet.reset();
    expect(transfer).toMatchObject({ isDone: true, status: 'error' });
    control(tablet, 0x00, 9, 1);
    const other = ask();
    tablet.close();
    hub.pointer(at(1, 1));
    expect(other.status).toBe('error');
  });
});
