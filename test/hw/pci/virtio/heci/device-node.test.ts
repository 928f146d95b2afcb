/**
 * virtio-heci on a device node: connections, messages and resets by the calls of /dev/meiN, answered by a file system of
 * the test's own (test/support/fake-mei.py). Needs root, /dev/fuse and Python.
 */
import { spawn, spawnSync } from 'node:child_process';
import { accessSync, constants, mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { expect, onTestFinished, test, vi } from 'vitest';
import { virtioHeci } from '../../../../../devicemodel/hw/pci/virtio/heci/heci.ts';
import type { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { temporaryDirectory } from '../../../../support/images.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const UUID = '8e6a6715-9abc-4043-88ef-9e39c6f63e0f';
const OTHER_UUID = '00000000-0000-0000-0000-000000000001';
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

/** An engine with a client that knows how to answer and one that /dev/mei0 does not know. */
async function startEngine() {
  const root = temporaryDirectory();
  const heard: string[] = [];
  mkdirSync(join(root, 'dev'));
  for (const [number, uuid] of [UUID, OTHER_UUID].entries()) {
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
  return { root, heard, state };
}

const Config = { HwReady: 4, HostReset: 5 } as const;
const [RX, TX] = [0x20000, 0x10000];

async function startGuest(root: string) {
  const machine = new VirtioMachine();
  const fn = virtioHeci.create({}, { ...machine.env(), hostTree: { root, isPlan: false } }) as VirtioPci;
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
  return { machine, driver, messages, send, bus, isReady };
}

test.skipIf(!canMount)('messages go to a client by its device node, and come back from it', async () => {
  const { root, heard, state } = await startEngine();
  const { machine, driver, messages, send, bus, isReady } = await startGuest(root);
  driver.writeConfig(Config.HostReset, 1, 0);
  await vi.waitFor(() => expect(isReady()).toBe(true), 10_000);

  // Who is not the engine's is refused with "not found".
  bus('06210900');
  expect(messages()).toEqual(['00000480 86210901']);
  bus('06200700');
  expect(messages().slice(1)).toEqual(['00000480 86200700', '00000880 0820070000000000']);
  await vi.waitFor(() => expect(heard).toContain('connect 15676a8ebc9a434088ef9e39c6f63e0f 1'), 10_000);

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
