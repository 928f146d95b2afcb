/** One call of a device of the host at a time, and transfers between them. */
import { expect, test } from 'vitest';
import type { UsbOutcome, UsbRequest } from '../../../devicemodel/core/host/libusb.ts';
import { SerialHandle } from '../../../devicemodel/hw/usb/serial-handle.ts';
import { FakeHandle } from '../../support/fake-host-usb.ts';

const turn = () => new Promise((resolve) => setImmediate(resolve));

function make() {
  const raw = new FakeHandle();
  const handle = new SerialHandle(raw);
  const over: Array<[number, UsbOutcome]> = [];
  const request = (endpoint: number): UsbRequest => ({
    type: 'bulk',
    endpoint,
    isIn: true,
    buffer: new Uint8Array(8),
    packets: [],
    done: (outcome) => over.push([endpoint, outcome]),
  });
  return { raw, handle, over, request };
}

test('a transfer is submitted when no call is under way, in order', async () => {
  const { raw, handle, request } = make();
  handle.submit(request(1));
  raw.hanging = 'clear';
  const call = handle.clearHalt(2);
  await turn();
  handle.submit(request(2));
  handle.submit(request(3));
  expect(raw.calls).toEqual(['submit bulk 1', 'clear 2']);
  raw.goOn();
  expect(await call).toBe(0);
  await turn();
  expect(raw.calls.slice(2)).toEqual(['submit bulk 2', 'submit bulk 3']);
});

test('calls are made one after the other, however many are asked for', async () => {
  const { raw, handle } = make();
  raw.hanging = 'alternate';
  const calls = [1, 2, 3].map((number) => handle.setAlternate(number, 0));
  await turn();
  expect(raw.calls).toEqual(['alternate 1 0']);
  raw.goOn();
  expect(await Promise.all(calls)).toEqual([0, 0, 0]);
  expect(raw.calls).toHaveLength(3);
});

test('cancelling may take as long as it likes: nobody waits, and what is not submitted comes back at once', async () => {
  const { raw, handle, over, request } = make();
  raw.hanging = 'cancel';
  const first = handle.submit(request(1)) as number;
  handle.cancel(first);
  handle.cancel(first);
  await turn();
  const second = handle.submit(request(2)) as number;
  const third = handle.submit(request(3)) as number;
  handle.cancel(second);
  expect(over).toEqual([[2, 'cancelled']]);
  expect(raw.calls).toEqual(['submit bulk 1', 'cancel']);
  raw.give('cancelled');
  raw.goOn();
  await turn();
  expect(raw.calls.slice(2)).toEqual(['submit bulk 3']);
  raw.give('completed');
  handle.cancel(third);
  await turn();
  expect(over).toEqual([
    [2, 'cancelled'],
    [1, 'cancelled'],
    [3, 'completed'],
  ]);
  expect(raw.calls).toHaveLength(3);
});

test('what came back before its turn is not asked for', async () => {
  const { raw, handle, request } = make();
  const ids = [1, 2].map((endpoint) => handle.submit(request(endpoint)) as number);
  raw.hanging = 'cancel';
  for (const id of ids) handle.cancel(id);
  await turn();
  raw.give('cancelled');
  raw.give('completed');
  raw.goOn();
  await turn();
  expect(raw.calls.filter((call) => call === 'cancel')).toHaveLength(1);
});

test('one that waited and is refused fails; one that is refused at once has never been', async () => {
  const { raw, handle, over, request } = make();
  raw.hanging = 'reset';
  const call = handle.reset();
  handle.submit(request(1));
  raw.refuses = true;
  raw.goOn();
  await call;
  await turn();
  expect(over).toEqual([[1, 'error']]);
  expect(handle.submit(request(2))).toBeUndefined();
  expect(over).toHaveLength(1);
});

// Mutation: those that are asked for meanwhile are submitted in the same loop.
test('a driver that asks anew for each that fails has one more a turn, not the thread', async () => {
  const { raw, handle, request } = make();
  let failed = 0;
  const again = (): UsbRequest => ({
    ...request(1),
    done: () => {
      if (++failed < 10_000) handle.submit(again());
    },
  });
  raw.hanging = 'reset';
  const call = handle.reset();
  handle.submit(again());
  handle.submit(again());
  raw.refuses = true;
  raw.goOn();
  await call;
  expect(failed).toBe(2);
  await turn();
  expect(failed).toBeGreaterThan(2);
  expect(failed).toBeLessThan(10);
});

test('a call that fails is told to who made it, and keeps nobody from the next', async () => {
  const { raw, handle, over, request } = make();
  raw.reset = () => Promise.reject(new Error('no thread'));
  const reset = handle.reset();
  handle.submit(request(1));
  await expect(reset).rejects.toThrow('no thread');
  expect(await handle.clearHalt(1)).toBe(0);
  await turn();
  raw.give('completed');
  expect(over).toEqual([[1, 'completed']]);
});
