/** What openUsbDevice and a device that is open keep when the host refuses a part of it: libusb and koffi are made up. */
import { mkdtempSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { openUsbDevice } from '../../../devicemodel/core/host/libusb.ts';
import { type Mapping, map } from '../../../devicemodel/core/host/mapping.ts';

const fake = vi.hoisted(() => ({
  /** Functions of libusb that were called, in order. */
  calls: [] as string[],
  /** What they do, other than answer 0. */
  does: new Map<string, (...args: never[]) => unknown>(),
  /** Callbacks that koffi has. */
  callbacks: 0,
  canRegister: true,
  /** Descriptors that are watched, and what is called when they are ready. */
  watches: new Map<number, () => void>(),
  watchRoom: 0,
}));

vi.mock(import('koffi'), async (original) => {
  const real = await original();
  const load = (path: string | null) => {
    if (path === null || !path.includes('libusb')) return real.default.load(path);
    const func = (prototype: string) => {
      const name = /(\w+)\(/.exec(prototype)?.[1] ?? '';
      const call = (...args: never[]) => {
        fake.calls.push(name);
        return fake.does.get(name)?.(...args) ?? 0;
      };
      const async = (...args: unknown[]) => {
        const done = args.pop() as (error: unknown, result?: unknown) => void;
        try {
          const result = call(...(args as never[]));
          setImmediate(() => done(null, result));
        } catch (error) {
          setImmediate(() => done(error));
        }
      };
      return Object.assign(call, { async });
    };
    return { func };
  };
  const register = (...args: Parameters<typeof real.default.register>) => {
    if (!fake.canRegister) throw new Error('no callback is left');
    fake.callbacks++;
    return real.default.register(...args);
  };
  const unregister = (callback: Parameters<typeof real.default.unregister>[0]) => {
    fake.callbacks--;
    real.default.unregister(callback);
  };
  const mine: Record<string | symbol, unknown> = { load, register, unregister };
  return { default: new Proxy(real.default, { get: (all, key) => mine[key] ?? Reflect.get(all, key) }) } as never;
});

vi.mock(import('../../../devicemodel/core/host/fd-watch.ts'), async (original) => ({
  ...(await original()),
  watchFdFor: (fd: number, _event, onReady: () => void) => {
    if (fake.watches.size >= fake.watchRoom) throw new Error('the event loop takes no more');
    fake.watches.set(fd, onReady);
    return () => void fake.watches.delete(fd);
  },
}));

const folder = mkdtempSync(join(tmpdir(), 'libusb-open-'));
const node = join(folder, 'node');
writeFileSync(node, '');
/** libusb_get_pollfds: two descriptors. */
const pollfds: Mapping = map(4096, 'descriptors of libusb');
const view = new DataView(pollfds.bytes.buffer, pollfds.bytes.byteOffset);
const STRUCTS = 2048;
for (const [i, fd] of [1000, 1001].entries()) {
  view.setBigUint64(8 * i, pollfds.address + BigInt(STRUCTS + 8 * i), true);
  view.setInt32(STRUCTS + 8 * i, fd, true);
}
afterAll(() => {
  rmSync(folder, { recursive: true });
  pollfds.dispose();
});

const [CONTEXT, HANDLE] = [0x10n, 0x20n];

beforeEach(() => {
  Object.assign(fake, { calls: [], callbacks: 0, canRegister: true, watchRoom: 2 });
  fake.watches.clear();
  fake.does.clear();
  fake.does.set('libusb_init', (context: BigUint64Array) => {
    context[0] = CONTEXT;
  });
  fake.does.set('libusb_wrap_sys_device', (_context: bigint, _fd: number, handle: BigUint64Array) => {
    handle[0] = HANDLE;
  });
  fake.does.set('libusb_get_pollfds', () => pollfds.address);
  fake.does.set('libusb_error_name', () => 'LIBUSB_ERROR_IO');
  return () => void vi.useRealTimers();
});

/** Of this process, of the device's node. */
function openFiles(): number {
  const link = (fd: string) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`);
    } catch {
      return '';
    }
  };
  return readdirSync('/proc/self/fd').filter((fd) => link(fd) === node).length;
}

const called = (name: string) => fake.calls.filter((call) => call === name).length;
function throws(message: string) {
  return () => {
    throw new Error(message);
  };
}

test('a device is open until it is closed', async () => {
  const handle = await openUsbDevice(node);
  expect([openFiles(), fake.callbacks, fake.watches.size]).toEqual([1, 1, 2]);
  await handle.close();
  expect([openFiles(), fake.callbacks, fake.watches.size]).toEqual([0, 0, 0]);
  expect([called('libusb_close'), called('libusb_exit')]).toEqual([1, 1]);
});

describe('of a device that is not opened nothing stays', () => {
  test.each<[string, () => unknown, { exits: number; closes: number; says: RegExp }]>([
    [
      'no context',
      () => fake.does.set('libusb_init', () => -11),
      { exits: 0, closes: 0, says: /init: LIBUSB_ERROR_IO/ },
    ],
    [
      'no device',
      () => fake.does.set('libusb_wrap_sys_device', () => -1),
      { exits: 1, closes: 0, says: /wrap_sys_device: LIBUSB_ERROR_IO/ },
    ],
    [
      'a call that cannot be made aside',
      () => fake.does.set('libusb_wrap_sys_device', throws('no thread')),
      { exits: 1, closes: 0, says: /no thread/ },
    ],
    ['no callback', () => (fake.canRegister = false), { exits: 1, closes: 1, says: /no callback is left/ }],
    ['no watch', () => (fake.watchRoom = 0), { exits: 1, closes: 1, says: /takes no more/ }],
    ['one watch of two', () => (fake.watchRoom = 1), { exits: 1, closes: 1, says: /takes no more/ }],
    [
      'no descriptors',
      () => fake.does.set('libusb_get_pollfds', () => 0),
      { exits: 1, closes: 1, says: /libusb_get_pollfds/ },
    ],
  ])('%s', async (_what, refuse, { exits, closes, says }) => {
    refuse();
    await expect(openUsbDevice(node)).rejects.toThrow(says);
    expect([called('libusb_close'), called('libusb_exit')]).toEqual([closes, exits]);
    expect([openFiles(), fake.callbacks, fake.watches.size]).toEqual([0, 0, 0]);
    // In this order: libusb looks at the file, and the device is of the context.
    if (closes > 0) expect(fake.calls.indexOf('libusb_close')).toBeLessThan(fake.calls.indexOf('libusb_exit'));
  });
});

describe('a device that cannot be watched behind a call', () => {
  test.each([1, 0])('has its call answered, and is watched when that can be (room for %i)', async (room) => {
    const handle = await openUsbDevice(node);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    fake.watchRoom = room;
    fake.does.set('libusb_clear_halt', () => -4);
    expect(await handle.clearHalt(2)).toBe(-4);
    vi.advanceTimersByTime(60_000);
    expect(fake.watches.size).toBe(0);
    fake.watchRoom = 2;
    vi.advanceTimersByTime(60_000);
    expect([...fake.watches.keys()]).toEqual([1000, 1001]);
    expect(vi.getTimerCount()).toBe(0);
    await handle.close();
  });

  test('is not watched during the next call, nor when it is closed', async () => {
    const handle = await openUsbDevice(node);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    fake.watchRoom = 0;
    await handle.clearHalt(2);
    fake.watchRoom = 2;
    const next = handle.clearHalt(2);
    vi.advanceTimersByTime(60_000);
    expect(fake.watches.size).toBe(0);
    await next;
    expect(fake.watches.size).toBe(2);
    fake.watchRoom = 0;
    await handle.clearHalt(2);
    fake.watchRoom = 2;
    await handle.close();
    vi.advanceTimersByTime(60_000);
    expect(fake.watches.size).toBe(0);
  });

  test('and one whose descriptors are others now does not end the event loop’s turn by an error', async () => {
    const handle = await openUsbDevice(node);
    vi.useFakeTimers({ toFake: ['setTimeout', 'clearTimeout'] });
    const onReady = fake.watches.get(1000) as () => void;
    view.setInt32(STRUCTS, 1002, true);
    try {
      fake.watchRoom = 1;
      onReady();
      fake.watchRoom = 2;
      vi.advanceTimersByTime(60_000);
      expect([...fake.watches.keys()]).toEqual([1002, 1001]);
    } finally {
      view.setInt32(STRUCTS, 1000, true);
    }
    await handle.close();
  });
});
