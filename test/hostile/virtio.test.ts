/** Requests of hostile virtio drivers that no device's own tests have: CVEs by name, zero and huge sizes (§4.3 1-3, 8, 9). */
import { spawnSync } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import { openTap } from '../../devicemodel/core/host/tap.ts';
import { checkOptions } from '../../devicemodel/core/options.ts';
import type { PciEnv } from '../../devicemodel/hw/pci/driver.ts';
import type { PciFunction } from '../../devicemodel/hw/pci/function.ts';
import { virtioBlk } from '../../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../../devicemodel/hw/pci/virtio/block/options.ts';
import { virtioConsole } from '../../devicemodel/hw/pci/virtio/console/console.ts';
import { ConsoleOptions, parseConsoleText } from '../../devicemodel/hw/pci/virtio/console/options.ts';
import { VirtioNet } from '../../devicemodel/hw/pci/virtio/net/net.ts';
import { NetOptions, parseNetText } from '../../devicemodel/hw/pci/virtio/net/options.ts';
import { virtioRnd } from '../../devicemodel/hw/pci/virtio/rng.ts';
import { VirtioPci } from '../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { MEMORY_DIR } from '../support/memory-dir.ts';
import { scratchDirectory } from '../support/pty.ts';
import { socketPair } from '../support/socket-pair.ts';
import { type DescriptorSpec, type DriverMode, VirtioDriver, VirtioMachine } from '../support/virtio-driver.ts';

const SECTOR = 512;
const Block = { in: 0, out: 1, flush: 4, getId: 8, discard: 11 } as const;
const BlockStatus = { ok: 0, ioError: 1, unsupported: 2 } as const;

const undo: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

async function powerOn(make: (env: PciEnv) => PciFunction, mode: DriverMode = 'legacy') {
  const machine = new VirtioMachine({ ram: [[0, 0x200000]] });
  undo.push(() => machine.dispose());
  const driver = new VirtioDriver(machine, make(machine.env()), mode);
  await driver.fn.start?.();
  undo.push(() => driver.fn.stop?.());
  return { machine, driver };
}

async function makeDisk(text = 'DISK,writeback,discard', content = Buffer.alloc(64 * SECTOR, 0x11)) {
  const directory = scratchDirectory(MEMORY_DIR);
  undo.push(() => directory.remove());
  const path = directory.file('disk');
  writeFileSync(path, content);
  const options = checkOptions(BlockOptions, parseBlockText(text.replace('DISK', path))) as BlockOptions;
  return { path, ...(await powerOn((env) => virtioBlk.create(options, env))) };
}

function header(type: number, sector = 0): Uint8Array {
  const view = new DataView(new ArrayBuffer(16));
  view.setUint32(0, type, true);
  view.setBigUint64(8, BigInt(sector), true);
  return new Uint8Array(view.buffer);
}

/** Reads sector 0: a device that survived can. */
function expectAlive(driver: VirtioDriver): void {
  driver.request(0, [{ read: header(Block.in) }, { write: SECTOR }, { write: 1 }]);
  expect(driver.buffer(2)[0]).toBe(BlockStatus.ok);
}

describe('virtio-blk (§4.3 group 8)', () => {
  test.each<[string, DescriptorSpec[]]>([
    ['a header alone', [{ read: header(Block.in) }]],
    ['a header of 15 bytes', [{ read: header(Block.in).slice(0, 15) }, { write: 1 }]],
    ['a write without a status', [{ read: header(Block.out) }, { read: new Uint8Array(SECTOR) }]],
    ['a flush without a status', [{ read: header(Block.flush) }]],
    ['a status of no bytes', [{ read: header(Block.out) }, { read: new Uint8Array(SECTOR) }, { write: 0 }]],
    ['nothing but a status', [{ write: 1 }]],
    ['a descriptor of no bytes', [{ write: 0 }]],
  ])('%s: given back, nothing read or written (QEMU CVE-2011-1750)', async (_name, specs) => {
    const { driver, path, machine } = await makeDisk();
    driver.init();
    const before = readFileSync(path);
    const head = driver.add(0, specs);
    driver.kick(0);
    expect(driver.takeUsed(0).map((used) => used.head)).toEqual([head]);
    expect(readFileSync(path)).toEqual(before);
    expectAlive(driver);
    expect(machine.lines.length).toBeLessThan(3);
  });

  test('a sector times 512 that wraps, and a length that runs over the end of a range', async () => {
    const { driver } = await makeDisk('DISK,range=8/8');
    driver.init();
    for (const [sector, bytes] of [
      [8, SECTOR],
      [7, 2 * SECTOR],
      [2 ** 52, SECTOR],
    ] as const) {
      driver.request(0, [{ read: header(Block.in, sector) }, { write: bytes }, { write: 1 }]);
      expect([sector, driver.buffer(2)[0]]).toEqual([sector, BlockStatus.ioError]);
    }
    expectAlive(driver);
  });

  test('an image that looks like qcow2 is its bytes, its backing file is nobody’s (cloud-hypervisor CVE-2026-27211)', async () => {
    const secret = scratchDirectory();
    undo.push(() => secret.remove());
    writeFileSync(secret.file('secret'), 'what only the host may read'.padEnd(SECTOR));
    // QFI\xfb, version 2, a backing file name at 0x48, 64 sectors of size, no tables.
    const image = Buffer.alloc(64 * SECTOR);
    image.write('QFI\xfb', 0, 'latin1');
    image.writeUInt32BE(2, 4);
    image.writeBigUInt64BE(0x48n, 8);
    image.writeUInt32BE(secret.file('secret').length, 16);
    image.writeUInt32BE(16, 20);
    image.writeBigUInt64BE(BigInt(image.length), 24);
    image.write(secret.file('secret'), 0x48);
    const { driver } = await makeDisk('DISK', image);
    driver.init();
    driver.request(0, [{ read: header(Block.in) }, { write: image.length }, { write: 1 }]);
    expect(Buffer.from(driver.buffer(1))).toEqual(image);
    // Nor does a guest make its disk another one by writing such a header.
    driver.request(0, [{ read: header(Block.out) }, { read: image.subarray(0, SECTOR) }, { write: 1 }]);
    driver.request(0, [{ read: header(Block.in) }, { write: SECTOR }, { write: 1 }]);
    expect(Buffer.from(driver.buffer(1))).toEqual(image.subarray(0, SECTOR));
  });
});

describe('zero and huge sizes (bhyve SA-26:72, CVE-2026-101309 to -101311)', () => {
  test.each([Block.in, Block.out, Block.flush, Block.getId, Block.discard])(
    'disk request %i without data',
    async (type) => {
      const { driver, path } = await makeDisk();
      driver.init();
      const before = readFileSync(path);
      driver.request(0, [{ read: header(type) }, { write: 1 }]);
      expect(driver.buffer(1)[0]).toBeLessThanOrEqual(BlockStatus.unsupported);
      expect(readFileSync(path)).toEqual(before);
      expectAlive(driver);
    },
  );

  test('a chain of empty descriptors, as long as the queue', async () => {
    const { driver } = await makeDisk();
    driver.init();
    const size = driver.queues[0]?.size ?? 0;
    const empty = Array.from({ length: size - 2 }, () => ({ write: 0 }));
    driver.request(0, [{ read: header(Block.in) }, ...empty, { write: 1 }]);
    expect(driver.buffer(size - 1)[0]).toBe(BlockStatus.ok);
  });

  test('a disk of one sector, a request of 4 GiB', async () => {
    const { driver } = await makeDisk('DISK', Buffer.alloc(SECTOR));
    driver.init();
    expectAlive(driver);
    // A buffer that long is no RAM: the queue stops, and a reset brings it back.
    driver.setDescriptor(driver.queues[0]?.desc ?? 0, 9, 0, 0xffff_ffff, 2, 0);
    driver.makeAvailable(0, 9);
    driver.kick(0);
    expect(driver.needsReset).toBe(true);
    driver.init();
    expectAlive(driver);
  });

  test('frames, console output and random bytes of no length', async () => {
    const [fd, peer] = socketPair();
    undo.push(() => peer.close());
    const net = await makeNet('legacy', () => fd);
    net.driver.init();
    for (const size of [0, 1, 9, 10, 11, 12]) net.driver.request(1, [{ read: new Uint8Array(size) }]);
    const console = await makeConsole();
    console.driver.init();
    console.driver.request(1, [{ read: [] }]);
    console.driver.request(3, [{ read: [] }]);
    const random = await powerOn((env) => virtioRnd.create({ transport: 'legacy' }, env));
    random.driver.init();
    expect(random.driver.request(0, [{ write: 0 }]).length).toBe(0);
    for (const { driver } of [net, console, random]) expect(driver.needsReset).toBe(false);
  });
});

async function makeNet(transport: 'legacy' | 'modern', open: () => number) {
  const options = checkOptions(NetOptions, parseNetText(`tap=t0,transport=${transport}`)) as NetOptions;
  return powerOn((env) => {
    const wires = { clock: env.clock, log: env.log, mac: [2, 0, 0, 0, 0, 1], openTap: open };
    const identity = { legacyDeviceId: 0x1000, type: 1, classCode: 0x020000 };
    return new VirtioPci(new VirtioNet(options, wires), env, { mode: transport, identity });
  }, transport);
}

/** struct virtio_net_hdr with NEEDS_CSUM and TCPv4 segmentation. */
function offloadHeader(csumStart: number, csumOffset: number, headerLength = 54, segment = 1448): Uint8Array {
  const view = new DataView(new ArrayBuffer(12));
  view.setUint8(0, 1);
  view.setUint8(1, 1);
  view.setUint16(2, headerLength, true);
  view.setUint16(4, segment, true);
  view.setUint16(6, csumStart, true);
  view.setUint16(8, csumOffset, true);
  return new Uint8Array(view.buffer);
}

const badOffsets: ReadonlyArray<[string, Uint8Array]> = [
  ['the checksum begins behind the frame', offloadHeader(60_000, 16)],
  ['the checksum field is behind the frame', offloadHeader(34, 60_000)],
  ['both at the last byte that fits', offloadHeader(0xffff, 0xffff)],
  ['a header longer than the frame', offloadHeader(34, 16, 0xffff)],
  ['segments of no bytes', offloadHeader(34, 16, 54, 0)],
];

describe('offload offsets beyond the frame (DPDK CVE-2024-11614)', () => {
  test.each(badOffsets)('%s: passed on as it is, no byte of the host with it', async (_name, bytes) => {
    const [fd, peer] = socketPair();
    undo.push(() => peer.close());
    const { driver } = await makeNet('modern', () => fd);
    driver.init();
    const frame = new Uint8Array(100).fill(0x5a);
    driver.request(1, [{ read: bytes }, { read: frame }]);
    const sent = peer.receive() as Uint8Array;
    expect(Buffer.from(sent)).toEqual(Buffer.concat([bytes, frame]));
  });

  const isRoot = process.getuid?.() === 0 && spawnSync('ip', ['-V']).status === 0;
  const name = `dmt${process.pid}`;
  const tap = isRoot ? tryTap(name) : undefined;
  test.skipIf(tap === undefined)('on a real tap the kernel refuses them, and good frames go on', async () => {
    spawnSync('ip', ['link', 'set', name, 'up']);
    const { driver, machine } = await makeNet('modern', () => tap as number);
    driver.init();
    const received = () => Number(readFileSync(`/sys/class/net/${name}/statistics/rx_packets`, 'latin1'));
    const frame = new Uint8Array(100).fill(0xff, 0, 6);
    const before = received();
    for (const [, bytes] of badOffsets.slice(0, 3)) driver.request(1, [{ read: bytes }, { read: frame }]);
    expect(received()).toBe(before);
    driver.request(1, [{ read: new Uint8Array(12) }, { read: frame }]);
    expect(received()).toBe(before + 1);
    expect(driver.needsReset).toBe(false);
    expect(machine.lines.filter((line) => line.includes('send')).length).toBeGreaterThan(0);
  });
});

/** @returns undefined where this process may not make one. */
function tryTap(name: string): number | undefined {
  try {
    return openTap(name, true);
  } catch (error) {
    console.warn(`no tap for this test: ${(error as Error).message}`);
    return undefined;
  }
}

async function makeConsole(text = '@stdio:a,pty:b') {
  const options = checkOptions(ConsoleOptions, parseConsoleText(text));
  return powerOn((env) => virtioConsole.create(options, env));
}

function controlMessage(id: number, event: number, value: number): Uint8Array {
  const view = new DataView(new ArrayBuffer(8));
  view.setUint32(0, id, true);
  view.setUint16(4, event, true);
  view.setUint16(6, value, true);
  return new Uint8Array(view.buffer);
}

describe('virtio-console (§4.3 group 9)', () => {
  test.each([2, 15, 16, 17, 0x7fff_ffff, 0xffff_ffff])('messages about port %i, which is not there', async (id) => {
    const { driver } = await makeConsole();
    driver.init();
    for (let event = 0; event < 9; event++) driver.request(3, [{ read: controlMessage(id, event, 1) }]);
    driver.request(1, [{ read: 'still here' }]);
    expect(driver.machine.backends[0]?.written).toBe('still here');
    expect(driver.needsReset).toBe(false);
  });

  test('a message cut short at every byte', async () => {
    const { driver } = await makeConsole();
    driver.init();
    driver.add(2, [{ write: 64 }]);
    driver.kick(2);
    const ready = controlMessage(0, 0, 1);
    for (let length = 0; length < ready.length; length++) driver.request(3, [{ read: ready.slice(0, length) }]);
    expect(driver.takeUsed(2)).toEqual([]);
    driver.request(3, [{ read: ready }]);
    expect(driver.takeUsed(2).length).toBe(1);
  });

  test('output to queues of ports that are not there is lost, input is not asked for', async () => {
    const { driver } = await makeConsole();
    driver.init();
    for (const queue of [7, 21, 33]) {
      driver.add(queue, [{ read: 'nobody' }]);
      driver.kick(queue);
      expect(driver.takeUsed(queue).length).toBe(1);
      driver.add(queue - 1, [{ write: 16 }]);
      driver.kick(queue - 1);
      expect(driver.takeUsed(queue - 1)).toEqual([]);
    }
  });
});

test('a hypervisor that refuses every ioeventfd: served by the request page, and said a few times at most', async () => {
  const options = checkOptions(BlockOptions, parseBlockText('nodisk')) as BlockOptions;
  const { driver, machine } = await powerOn((env) => {
    const ioeventfd = () => {
      throw new Error('IOEVENTFD: made to fail');
    };
    const refusing = { ...env, hsm: { ...env.hsm, ioeventfd } as unknown as PciEnv['hsm'] };
    return virtioBlk.create({ ...options, iothread: { count: 1, cpus: [] } }, refusing);
  });
  for (let i = 0; i < 100; i++) {
    driver.status = 0;
    driver.status = 7;
  }
  expect(machine.lines.length).toBeGreaterThan(0);
  expect(machine.lines.length).toBeLessThan(10);
  driver.init();
  driver.request(0, [{ read: header(Block.in) }, { write: SECTOR }, { write: 1 }]);
  expect(driver.buffer(2)[0]).toBe(BlockStatus.ioError);
});
