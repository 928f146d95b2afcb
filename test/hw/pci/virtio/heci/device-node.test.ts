/**
 * virtio-heci on a device node: connections, messages and resets by the calls of /dev/meiN, answered by a file system of
 * the test's own (test/support/fake-mei.py). Needs root, /dev/fuse and Python.
 */
import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, mkdirSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, onTestFinished, test, vi } from 'vitest';
import { MeiNode } from '../../../../../devicemodel/core/host/mei.ts';
import { virtioHeci } from '../../../../../devicemodel/hw/pci/virtio/heci/heci.ts';
import type { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { temporaryDirectory } from '../../../../support/images.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const UUID = '8e6a6715-9abc-4043-88ef-9e39c6f63e0f';
const OTHER_UUID = '00000000-0000-0000-0000-000000000001';
const SLOW_UUID = '00000000-0000-0000-0000-000000000002';
const fake = join(import.meta.dirname, '../../../../support/fake-mei.py');

const canMount = (() => {
  try {
    accessSync('/dev/fuse', constants.R_OK | constants.W_OK);
    // Root without the right to mount, as in many containers, and hosts without Python are left out.
    return process.getuid?.() === 0 && spawnSync('unshare', ['-m', 'python3', '-c', '']).status === 0;
  } catch {
    return false;
  }
})();

/** An engine with a client that knows how to answer, one that /dev/mei0 does not know, and one that takes its time. */
async function startEngine() {
  const root = temporaryDirectory();
  const heard: string[] = [];
  mkdirSync(join(root, 'dev'));
  for (const [number, uuid] of [UUID, OTHER_UUID, SLOW_UUID].entries()) {
    const client = join(root, `sys/class/mei/mei0/device/mei::${number}`);
    mkdirSync(client, { recursive: true });
    const attributes = { uuid, version: '3', vtag: '1', max_len: '1500', max_conn: '1', fixed: '0' };
    for (const [name, text] of Object.entries(attributes)) writeFileSync(join(client, name), `${text}\n`);
  }
  const state = (text: string) => writeFileSync(join(root, 'sys/class/mei/mei0/dev_state'), `${text}\n`);
  state('ENABLED');
  const engine = spawn('python3', [fake, join(root, 'dev')], { stdio: ['pipe', 'pipe', 'inherit'] });
  const ended = new Promise((resolve) => engine.once('exit', resolve));
  onTestFinished(async () => {
    engine.stdin.end();
    await ended;
  });
  createInterface(engine.stdout).on('line', (line) => heard.push(line));
  await vi.waitFor(() => expect(heard).toEqual(['ready']), 20_000);
  /** Who waits for the slow client is answered. */
  const answer = () => engine.stdin.write('\n');
  return { root, heard, state, answer };
}

const Config = { HwReady: 4, HostReset: 5 } as const;
const [RX, TX] = [0x20000, 0x10000];

async function startGuest(root: string) {
  const machine = new VirtioMachine();
  const env = machine.env();
  const fn = virtioHeci.create({}, { ...env, hostTree: { root, isPlan: false } }) as VirtioPci;
  await fn.start();
  onTestFinished(async () => {
    await fn.stop();
    machine.dispose();
  });
  const driver = new VirtioDriver(machine, fn, 'legacy');
  driver.init();
  for (let i = 0; i < 16; i++) driver.add(0, [{ write: 512, at: RX + 0x400 * i }]);
  driver.kick(0);
  const received: string[] = [];
  /** Header and payload of all that came, in hexadecimal. */
  const messages = () => {
    machine.clock.advance(1_000_000);
    for (const { length } of driver.takeUsed(0)) {
      const bytes = Buffer.from(machine.memory.read(RX + 0x400 * received.length, length));
      received.push(`${bytes.subarray(0, 4).toString('hex')} ${bytes.subarray(4).toString('hex')}`);
    }
    return received;
  };
  const send = (me: number, host: number, payload: Uint8Array) => {
    const header = Buffer.alloc(4);
    header.writeUInt32LE((me | (host << 8) | (payload.length << 16) | 0x8000_0000) >>> 0);
    machine.memory.write(TX, header);
    machine.memory.write(TX + 0x100, payload);
    driver.add(1, [
      { read: header, at: TX },
      { read: payload, at: TX + 0x100 },
    ]);
    driver.kick(1);
    driver.takeUsed(1);
  };
  const bus = (hex: string) => send(0, 0, Buffer.from(hex, 'hex'));
  const isReady = () => driver.readConfig(Config.HwReady, 1) === 1;
  return { machine, fn, patience: env.waits.patience, driver, messages, send, bus, isReady };
}

test.skipIf(!canMount)('messages go to a client by its device node, and come back from it', async () => {
  const { root, heard, state } = await startEngine();
  const { machine, driver, messages, send, bus, isReady } = await startGuest(root);
  driver.writeConfig(Config.HostReset, 1, 0);
  await vi.waitFor(() => expect(isReady()).toBe(true), 10_000);

  // Who is not the engine's is refused with "not found".
  bus('06210900');
  await vi.waitFor(() => expect(messages()).toEqual(['00000480 86210901']), 10_000);
  bus('06200700');
  const connected = ['00000480 86200700', '00000880 0820070000000000'];
  await vi.waitFor(() => expect(messages().slice(1)).toEqual(connected), 10_000);
  expect(heard).toContain('connect 15676a8ebc9a434088ef9e39c6f63e0f 1');

  // What the engine answers waits for the driver's credit.
  bus('0820070000000000');
  send(32, 7, Buffer.from('later'));
  await vi.waitFor(() => expect(messages().at(-1)).toBe(`20070580 ${Buffer.from('retal').toString('hex')}`), 10_000);

  // The next write is refused for a moment, and is not lost.
  send(32, 7, Buffer.from('busy'));
  bus('0820070000000000');
  send(32, 7, Buffer.from('again'));
  await vi.waitFor(() => {
    machine.clock.advance(20_000_000);
    expect(messages().at(-1)).toBe(`20070580 ${Buffer.from('niaga').toString('hex')}`);
  }, 10_000);
  expect(heard).toContain('write again');

  // The engine is reset: the guest is told, and finds it again once it is there.
  state('RESETTING');
  bus('0820070000000000');
  send(32, 7, Buffer.from('reset'));
  await vi.waitFor(() => expect(isReady()).toBe(false), 10_000);
  await vi.waitFor(() => expect(heard.at(-1)).toBe('release 0'), 10_000);
  machine.clock.advance(5_000_000_000);
  expect(isReady()).toBe(false);
  state('ENABLED');
  machine.clock.advance(1_500_000_000);
  expect(isReady()).toBe(true);
});

test.skipIf(!canMount)('a client that takes its time keeps neither the guest, nor its reset, nor the end', async () => {
  const { root, heard, answer } = await startEngine();
  const { fn, patience, driver, messages, bus } = await startGuest(root);
  const slow = () => heard.filter((line) => line === `connect ${'00'.repeat(15)}02 1`).length;
  driver.writeConfig(Config.HostReset, 1, 0);
  bus('06220700');
  await vi.waitFor(() => expect(slow()).toBe(1), 10_000);
  bus('01000002');
  expect(messages()).toEqual(['00000480 81010002']);
  answer();
  const connected = ['00000480 86220700', '00000880 0822070000000000'];
  await vi.waitFor(() => expect(messages().slice(1)).toEqual(connected), 10_000);

  // What is there after a reset is nobody's.
  bus('06220800');
  await vi.waitFor(() => expect(slow()).toBe(2), 10_000);
  driver.writeConfig(Config.HostReset, 1, 1);
  answer();
  await vi.waitFor(() => expect(heard.at(-1)).toBe('release 0'), 10_000);
  expect(messages()).toHaveLength(3);

  driver.writeConfig(Config.HostReset, 1, 0);
  bus('06220900');
  await vi.waitFor(() => expect(slow()).toBe(3), 10_000);
  patience.force();
  await fn.stop();
  answer();
  await vi.waitFor(() => expect(heard.at(-1)).toBe('release 0'), 10_000);
});

function openDescriptorsOf(path: string): number {
  return readdirSync('/proc/self/fd').filter((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === path;
    } catch {
      return false;
    }
  }).length;
}

test.skipIf(!canMount)('who waits for connections waits until one that nobody wants is closed', async () => {
  const { root, heard, answer } = await startEngine();
  const path = join(root, 'dev/mei0');
  const node = new MeiNode(path, 1);
  let isWanted = true;
  const uuid = Buffer.from(`${'00'.repeat(15)}02`, 'hex');
  const listener = { isWanted: () => isWanted, onMessage: () => {}, onLost: () => {} };
  const connected = node.connect(uuid, 512, listener);
  await vi.waitFor(() => expect(heard.at(-1)).toMatch(/^connect /), 10_000);
  isWanted = false;
  const idle = node.idle();
  answer();
  await idle;
  expect(openDescriptorsOf(path)).toBe(0);
  expect(await connected).toBeUndefined();
});
