/** virtio-blk as its driver sees it, on real files. Hostile requests: anchors §4.3 group 8. */
import { createHash } from 'node:crypto';
import {
  closeSync,
  fstatSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterEach, describe, expect, test } from 'vitest';
import { ConfigError, HostError } from '../../../../../devicemodel/core/errors.ts';
import { checkOptions } from '../../../../../devicemodel/core/options.ts';
import {
  rescanBlock,
  resizeBlock,
  type VirtioBlock,
  virtioBlk,
} from '../../../../../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../../../../../devicemodel/hw/pci/virtio/block/options.ts';
import type { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { MEMORY_DIR } from '../../../../support/memory-dir.ts';
import {
  type DriverMode,
  type MachineChoices,
  VirtioDriver,
  VirtioMachine,
} from '../../../../support/virtio-driver.ts';

const Type = { In: 0, Out: 1, Flush: 4, GetId: 8, Discard: 11 } as const;
const Ok = 0;
const IoError = 1;
const Unsupported = 2;
const Feature = {
  SegMax: 2,
  ReadOnly: 5,
  BlockSize: 6,
  Flush: 9,
  Topology: 10,
  ConfigWce: 11,
  Mq: 12,
  Discard: 13,
  Indirect: 28,
};
const SECTORS = 64;

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

function scratchDir(): string {
  const dir = mkdtempSync(join(MEMORY_DIR, 'virtio-blk-'));
  undo.push(() => rmSync(dir, { recursive: true }));
  return dir;
}

/** Every sector tells its number in each byte. */
function makeImage(sectors = SECTORS): string {
  const path = join(scratchDir(), 'disk');
  writeFileSync(
    path,
    Buffer.alloc(sectors * 512).map((_, i) => Math.floor(i / 512)),
  );
  return path;
}

function optionsOf(text: string): BlockOptions {
  return checkOptions(BlockOptions, parseBlockText(text)) as BlockOptions;
}

async function makeDisk(text: string, mode: DriverMode = 'legacy', choices: MachineChoices = {}) {
  const machine = new VirtioMachine(choices);
  undo.push(() => machine.dispose());
  const driver = new VirtioDriver(machine, virtioBlk.create(optionsOf(text), machine.env()), mode);
  undo.push(() => driver.fn.stop?.());
  await driver.fn.start?.();
  return { machine, driver };
}

function header(type: number, sector: number | bigint = 0): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(16));
  bytes.setUint32(0, type, true);
  bytes.setBigUint64(8, BigInt.asUintN(64, BigInt(sector)), true);
  return new Uint8Array(bytes.buffer);
}

/** One request; returns the status byte. */
function read(driver: VirtioDriver, sector: number | bigint, ...sizes: number[]): number {
  driver.request(0, [{ read: header(Type.In, sector) }, ...sizes.map((write) => ({ write })), { write: 1 }]);
  return driver.buffer(sizes.length + 1)[0] as number;
}
function write(driver: VirtioDriver, sector: number | bigint, ...data: Uint8Array[]): number {
  driver.request(0, [{ read: header(Type.Out, sector) }, ...data.map((d) => ({ read: d })), { write: 1 }]);
  return driver.buffer(data.length + 1)[0] as number;
}
const filled = (value: number, size = 512) => new Uint8Array(size).fill(value);

describe('a disk that grows', () => {
  const sizeOf = (driver: VirtioDriver) => driver.readConfig(0, 4);

  test('the guest hears of its new size, and reaches what is new', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(path);
    driver.init();
    expect(read(driver, SECTORS, 512)).toBe(IoError);
    expect(driver.isr & 2).toBe(0);
    expect(await resizeBlock(driver.fn, 2 * SECTORS * 512)).toBe(2 * SECTORS * 512);
    expect(sizeOf(driver)).toBe(2 * SECTORS);
    expect(driver.isr & 2).toBe(2);
    expect(read(driver, 2 * SECTORS - 1, 512)).toBe(Ok);
    expect(statSync(path).size).toBe(2 * SECTORS * 512);
  });

  test('so it does when the host made the file longer', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(path);
    truncateSync(path, 3 * SECTORS * 512);
    expect(await resizeBlock(driver.fn, undefined)).toBe(3 * SECTORS * 512);
    expect(sizeOf(driver)).toBe(3 * SECTORS);
  });

  test.each([
    ['', 512, 'lose data'],
    ['', SECTORS * 512 + 100, 'a multiple of 512'],
    [',sectorsize=4096', SECTORS * 512 + 512, 'a multiple of 4096'],
    [',ro', SECTORS * 1024, 'read-only'],
    [`,range=0/${SECTORS}`, SECTORS * 1024, 'a range of it'],
  ])('%s to %i is refused: %s', async (options, sizeBytes, why) => {
    const path = makeImage();
    const { driver } = await makeDisk(path + options);
    await expect(resizeBlock(driver.fn, sizeBytes)).rejects.toThrow(why);
    expect(statSync(path).size).toBe(SECTORS * 512);
  });

  test('a slot without a disk, and a device that is none', async () => {
    const { driver } = await makeDisk('nodisk');
    await expect(resizeBlock(driver.fn, 4096)).rejects.toThrow('no disk in it');
    await expect(resizeBlock(undefined, 4096)).rejects.toThrow('only a virtio-blk');
  });
});

describe('reading and writing', () => {
  test.each([
    ['legacy', '', {}],
    ['legacy', ',writeback', {}],
    ['legacy', '', { viewsOnly: true }],
    ['modern', ',transport=modern', {}],
    ['packed', ',transport=modern', {}],
    ['packed', ',transport=modern,writeback', { viewsOnly: true }],
    ['modern', ',transport=transitional', {}],
  ] as const)('%s%s %j: scattered buffers, in place', async (mode, options, choices) => {
    const path = makeImage();
    const { driver } = await makeDisk(path + options, mode, choices);
    driver.init();
    expect(read(driver, 2, 512, 300, 724)).toBe(Ok);
    expect([driver.buffer(1)[0], driver.buffer(2)[0], driver.buffer(3)[723]]).toEqual([2, 3, 4]);
    expect(write(driver, 5, filled(0xaa, 100), filled(0xbb, 924))).toBe(Ok);
    const image = readFileSync(path);
    expect([image[5 * 512], image[5 * 512 + 100], image[7 * 512 - 1], image[7 * 512]]).toEqual([0xaa, 0xbb, 0xbb, 7]);
  });

  test('what was read, written, flushed and refused is counted', async () => {
    const { driver, machine } = await makeDisk(`${makeImage()},writeback`);
    driver.init();
    read(driver, 2, 512, 300, 724);
    write(driver, 5, filled(1, 100), filled(2, 924));
    write(driver, 6, filled(1));
    driver.request(0, [{ read: header(Type.Flush) }, { write: 1 }]);
    driver.request(0, [{ read: header(Type.GetId) }, { write: 20 }, { write: 1 }]);
    expect(read(driver, SECTORS, 512)).toBe(IoError);
    expect(machine.counters.of('disk', 'device').values()).toEqual({
      reads: 1,
      readBytes: 1536,
      writes: 2,
      writeBytes: 1536,
      flushes: 1,
      discards: 0,
      errors: 1,
    });
  });

  test('header, data and status may share descriptors (any layout)', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(`${path},transport=modern`, 'modern');
    driver.init();
    driver.request(0, [{ read: [...header(Type.Out, 3), ...filled(9)] }, { write: 1 }]);
    expect(driver.buffer(1)[0]).toBe(Ok);
    expect(readFileSync(path)[3 * 512]).toBe(9);
    const used = driver.request(0, [
      { read: header(Type.In, 3).subarray(0, 5) },
      { read: header(Type.In, 3).subarray(5) },
      { write: 513 },
    ]);
    expect([...driver.buffer(2).subarray(510)]).toEqual([9, 9, Ok]);
    expect(used.length).toBe(513);
  });

  describe.each(['legacy', 'modern', 'packed'] as const)('%s', (mode) => {
    const isLegacy = mode === 'legacy';
    test(`the used length is ${isLegacy ? '1, as from C' : 'what was written (2.7.8)'}`, async () => {
      const { driver } = await makeDisk(`${makeImage()}${isLegacy ? '' : ',transport=modern'}`, mode);
      driver.init();
      const expectLength = (written: number, ...pieces: Parameters<typeof driver.request>[1]) =>
        expect(driver.request(0, pieces).length).toBe(isLegacy ? 1 : written);
      const status = { write: 1 };
      expectLength(513, { read: header(Type.In) }, { write: 512 }, status);
      expectLength(1537, { read: header(Type.In) }, { write: 512 }, { write: 1024 }, status);
      expectLength(21, { read: header(Type.GetId) }, { write: 20 }, status);
      expectLength(1, { read: header(Type.Out) }, { read: filled(1) }, status);
      expectLength(1, { read: header(Type.Flush) }, status);
      // Refused: nothing but the status.
      expectLength(1, { read: header(Type.In, 1e9) }, { write: 512 }, status);
      expectLength(1, { read: header(99) }, { write: 64 }, status);
      expectLength(0, { read: header(Type.In).subarray(0, 4) }, status);
    });
  });

  test.each([
    ['legacy', ''],
    ['packed', ',transport=modern'],
  ] as const)('%s: 256 segments by indirect descriptors, more than the queue has entries', async (mode, options) => {
    const { driver } = await makeDisk(makeImage(256) + options, mode);
    driver.init();
    const segments = Array.from({ length: 256 }, () => ({ write: 512 }));
    driver.request(0, [{ read: header(Type.In) }, ...segments, { write: 1 }], { indirect: true });
    expect(driver.buffer(257)[0]).toBe(Ok);
    expect(driver.buffer(200)[0]).toBe(199);
  });

  test('many requests at one kick: all served, one interrupt', async () => {
    const { driver, machine } = await makeDisk(makeImage());
    driver.enableMsix();
    driver.init();
    driver.out(0x0e, 2, 0);
    driver.out(0x16, 2, 1);
    for (let i = 0; i < 20; i++) driver.add(0, [{ read: header(Type.In, i) }, { write: 512 }, { write: 1 }]);
    driver.kick(0);
    expect(driver.takeUsed(0)).toHaveLength(20);
    expect(machine.msis).toEqual([{ address: 0xfee00000, data: 0x41 }]);
  });

  test('what was written is on disk when writethru reports it, and when a flush is answered', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(`${path},writeback`);
    driver.init();
    expect(write(driver, 0, filled(1))).toBe(Ok);
    driver.request(0, [{ read: header(Type.Flush) }, { write: 1 }]);
    expect(driver.buffer(1)[0]).toBe(Ok);
    // Without a power failure to hand, at least the request is served by fdatasync and not refused.
    expect(readFileSync(path)[0]).toBe(1);
  });

  test('nocache: unaligned pieces go through a buffer and change nothing around them', async () => {
    const path = makeImage();
    let made: Awaited<ReturnType<typeof makeDisk>>;
    try {
      made = await makeDisk(`${path},nocache`);
    } catch (error) {
      // tmpfs has no O_DIRECT.
      expect(error).toBeInstanceOf(HostError);
      return;
    }
    const { driver } = made;
    driver.init();
    const at = driver.allocate(4096, 4096) + 3;
    driver.write(at, filled(0x77, 1024));
    driver.request(0, [{ read: header(Type.Out, 10) }, { read: filled(0x77, 1024), at }, { write: 1 }]);
    expect(driver.buffer(2)[0]).toBe(Ok);
    const image = readFileSync(path);
    expect([image[10 * 512 - 1], image[10 * 512], image[12 * 512 - 1], image[12 * 512]]).toEqual([9, 0x77, 0x77, 12]);
    driver.request(0, [{ read: header(Type.In, 9) }, { write: 1536, at: at + 0x100 }, { write: 1 }]);
    expect([driver.buffer(1)[511], driver.buffer(1)[512]]).toEqual([9, 0x77]);
  });
});

describe('options', () => {
  test('capacity, sector sizes, segments and queues are in the configuration', async () => {
    const { driver } = await makeDisk(`mq=3,${makeImage()},sectorsize=1024/4096`);
    driver.init();
    expect(driver.readConfig(0, 4)).toBe(SECTORS);
    expect(driver.readConfig(4, 4)).toBe(0);
    expect(driver.readConfig(12, 4)).toBe(256);
    expect(driver.readConfig(20, 4)).toBe(1024);
    expect(driver.readConfig(24, 1)).toBe(2);
    expect(driver.readConfig(34, 2)).toBe(3);
    expect(driver.queues).toHaveLength(3);
    expect(driver.hostFeatures & (1n << BigInt(Feature.Mq))).not.toBe(0n);
  });

  test('no more queues than vCPUs', async () => {
    const { driver } = await makeDisk(`mq=8,${makeImage()}`, 'legacy', { vcpuCount: 2 });
    driver.init();
    expect(driver.queues).toHaveLength(2);
  });

  test.each([
    ['', [Feature.SegMax, Feature.BlockSize, Feature.Topology, Feature.Indirect]],
    [
      ',writeback',
      [Feature.SegMax, Feature.BlockSize, Feature.Flush, Feature.Topology, Feature.ConfigWce, Feature.Indirect],
    ],
    [',ro', [Feature.SegMax, Feature.ReadOnly, Feature.BlockSize, Feature.Topology, Feature.Indirect]],
    [',discard', [Feature.SegMax, Feature.BlockSize, Feature.Topology, Feature.Discard, Feature.Indirect]],
  ])('features of "%s"', async (options, bits) => {
    const { driver } = await makeDisk(makeImage() + options);
    expect(driver.hostFeatures).toBe(bits.reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n));
  });

  test('ro refuses writes and leaves the file alone, flush is harmless', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(`${path},ro`);
    driver.init();
    expect(write(driver, 0, filled(0xee))).toBe(IoError);
    driver.request(0, [{ read: header(Type.Flush) }, { write: 1 }]);
    expect(driver.buffer(1)[0]).toBe(Ok);
    expect(readFileSync(path)[0]).toBe(0);
  });

  test('range: the disk is a part of the file, and nothing outside of it is reached', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(`${path},range=10/4`);
    driver.init();
    expect(driver.readConfig(0, 4)).toBe(4);
    expect(read(driver, 0, 512)).toBe(Ok);
    expect(driver.buffer(1)[0]).toBe(10);
    expect(write(driver, 3, filled(0x33))).toBe(Ok);
    expect(write(driver, 4, filled(0x33))).toBe(IoError);
    expect(readFileSync(path)[14 * 512]).toBe(14);
  });

  test('the cache mode can be switched by a driver that can flush, and reset brings it back', async () => {
    const { driver } = await makeDisk(`${makeImage()},writeback`);
    driver.init();
    expect(driver.readConfig(32, 1)).toBe(1);
    driver.writeConfig(32, 1, 0);
    expect(driver.readConfig(32, 1)).toBe(0);
    expect(driver.hostFeatures & (1n << BigInt(Feature.Flush))).toBe(0n);
    driver.init();
    expect(driver.readConfig(32, 1)).toBe(1);
  });

  test('the serial number is a digest of the option text', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(path);
    driver.init();
    driver.request(0, [{ read: header(Type.GetId) }, { write: 20 }, { write: 1 }]);
    const digest = createHash('md5').update(path).digest('hex').toUpperCase();
    const expected = `ACRN--${digest.slice(0, 4)}-${digest.slice(4, 8)}-${digest.slice(8, 12)}`;
    expect(Buffer.from(driver.buffer(1)).toString()).toBe(expected);
  });

  test.each([
    ['', /which image/],
    ['mq=0,disk', /"mq=0"/],
    ['iothread=x,disk', /"iothread=x"/],
    ['iothread=2@0:1/y,disk', /"y"/],
  ])('"%s" is refused before anything is touched', (text, message) => {
    expect(() => optionsOf(text)).toThrow(ConfigError);
    expect(() => optionsOf(text)).toThrow(message);
  });

  test.each([
    'bogus',
    'sectorsize=999',
    'sectorsize=4096/512',
    'sectorsize',
    'range=1',
    'range=1/2/3',
    'range=/4',
    'range=4/',
    'range=0/0',
    'range=-1/4',
    'range=0x1/4',
    'range=0/1099511627777',
    'range=0/8,',
    'range=a/b',
    'discard=1:2',
    'aio=windows',
  ])('option "%s" is refused', (option) => {
    expect(() => optionsOf(`${makeImage()},${option}`)).toThrow(ConfigError);
  });

  test.each([
    ['range=2/4,DISK', { range: { startLba: 2, sectors: 4 } }],
    ['mq=2,range=2/4,iothread,DISK,ro', { range: { startLba: 2, sectors: 4 }, queues: 2, ro: true }],
    ['DISK,range=2/4,mq=2', { range: { startLba: 2, sectors: 4 }, queues: 2 }],
    ['aio=threads,sectorsize=4096,DISK', { aio: 'threads', sectorSize: { logical: 4096, physical: 4096 } }],
    ['transport=modern,discard=8:1:1,DISK,mq=2', { transport: 'modern', queues: 2 }],
  ])('options with a value may stand before the path: %s', (text, expected) => {
    const path = makeImage();
    expect(optionsOf(text.replace('DISK', path))).toMatchObject({ path, ...expected });
  });

  test('a disk larger than 1 TiB has its parts too', () => {
    expect(optionsOf('/dev/sda,range=4294967296/4294967296').range).toEqual({ startLba: 2 ** 32, sectors: 2 ** 32 });
  });

  test('a file of the name of an option is taken with its folder', () => {
    expect(optionsOf('./mq=2,mq=2')).toMatchObject({ path: './mq=2', queues: 2 });
    expect(optionsOf('ro,ro')).toMatchObject({ path: 'ro', ro: true });
  });

  test('sectorsize=0 is the default, as with C', () => {
    expect(optionsOf('disk,sectorsize=0').sectorSize).toBeUndefined();
  });

  test('iothread=2@0:1/* tells threads and their CPUs', () => {
    const path = makeImage();
    expect(optionsOf(`iothread=2@0:1/*,${path}`).iothread).toEqual({ count: 2, cpus: [[0, 1], []] });
    expect(optionsOf(`iothread,mq=2,${path}`)).toMatchObject({ iothread: { count: 1 }, queues: 2, path });
  });

  test('an image that is no whole number of sectors is refused', async () => {
    const path = makeImage();
    truncateSync(path, 1000);
    await expect(makeDisk(path)).rejects.toThrow(/multiple of 512/);
  });
});

describe('locks', () => {
  test('a second writer is refused with one clear line, until the first is gone', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(path);
    await expect(makeDisk(path)).rejects.toThrow(/in use by another disk or User VM/);
    await driver.fn.stop?.();
    await expect(makeDisk(path)).resolves.toBeDefined();
  });

  test('readers share; ranges that do not overlap share', async () => {
    const path = makeImage();
    await makeDisk(`${path},ro`);
    await makeDisk(`${path},ro`);
    await expect(makeDisk(path)).rejects.toThrow(HostError);
    const other = makeImage();
    await makeDisk(`${other},range=0/8`);
    await makeDisk(`${other},range=8/8`);
    await expect(makeDisk(`${other},range=7/2`)).rejects.toThrow(HostError);
  });
});

describe('discard', () => {
  const segment = (sector: number | bigint, sectors: number, flags = 0) => {
    const bytes = new DataView(new ArrayBuffer(16));
    bytes.setBigUint64(0, BigInt(sector), true);
    bytes.setUint32(8, sectors, true);
    bytes.setUint32(12, flags, true);
    return new Uint8Array(bytes.buffer);
  };
  const discard = (driver: VirtioDriver, ...segments: Uint8Array[]) => {
    driver.request(0, [{ read: header(Type.Discard) }, { read: Buffer.concat(segments) }, { write: 1 }]);
    return driver.buffer(2)[0];
  };

  test('a range becomes a hole that reads as zeros', async () => {
    const path = makeImage(256);
    const { driver } = await makeDisk(`${path},discard=100:2:8`);
    driver.init();
    expect([driver.readConfig(36, 4), driver.readConfig(40, 4), driver.readConfig(44, 4)]).toEqual([100, 2, 8]);
    expect(discard(driver, segment(8, 8), segment(64, 8))).toBe(Ok);
    const image = readFileSync(path);
    expect([image[8 * 512 - 1], image[8 * 512], image[16 * 512 - 1], image[16 * 512], image[64 * 512]]).toEqual([
      7, 0, 0, 16, 0,
    ]);
    expect(image.length).toBe(256 * 512);
  });

  test.each([
    ['too many segments', [segment(8, 1), segment(8, 1), segment(8, 1)], IoError],
    ['beyond the end', [segment(248, 16)], IoError],
    ['far beyond the end', [segment(0xffff_ffff_ffff_fff8n, 8)], IoError],
    ['empty', [segment(8, 0)], IoError],
    ['too long', [segment(8, 101)], IoError],
    ['not aligned', [segment(9, 1)], IoError],
    ['with unmap', [segment(8, 8, 1)], Unsupported],
    ['half a segment', [segment(8, 8).subarray(0, 8)], IoError],
    ['nothing to discard', [], IoError],
  ] as const)('%s is refused and discards nothing', async (_name, segments, status) => {
    const path = makeImage(256);
    const before = readFileSync(path);
    const { driver } = await makeDisk(`${path},discard=100:2:8`);
    driver.init();
    expect(discard(driver, ...segments)).toBe(status);
    expect(readFileSync(path).equals(before)).toBe(true);
  });

  test('what is behind the last whole segment is nothing', async () => {
    const path = makeImage(256);
    const { driver } = await makeDisk(`${path},discard=100:2:8`);
    driver.init();
    expect(discard(driver, segment(8, 8), segment(64, 8).subarray(0, 8))).toBe(Ok);
    const image = readFileSync(path);
    expect([image[8 * 512], image[16 * 512], image[64 * 512]]).toEqual([0, 16, 64]);
  });

  test('not offered: unsupported', async () => {
    const { driver } = await makeDisk(makeImage());
    driver.init();
    expect(discard(driver, segment(0, 8))).toBe(Unsupported);
  });
});

describe('nodisk and rescan', () => {
  test('a disk can be plugged once, while the guest runs', async () => {
    const { driver, machine } = await makeDisk('nodisk');
    driver.init();
    expect(driver.readConfig(0, 4)).toBe(0);
    expect(read(driver, 0, 512)).toBe(IoError);
    expect(driver.isr & 2).toBe(0);
    const path = makeImage();
    await rescanBlock(driver.fn, `${path},ro`);
    expect(machine.intx).toBe(true);
    expect(driver.isr).toBe(2);
    expect(driver.readConfig(0, 4)).toBe(SECTORS);
    expect(read(driver, 6, 512)).toBe(Ok);
    expect(driver.buffer(1)[0]).toBe(6);
    await expect(rescanBlock(driver.fn, path)).rejects.toThrow(/plugged in/);
  });

  test('the cache mode register works before there is a disk, as with C', async () => {
    const { driver } = await makeDisk('nodisk');
    driver.init();
    driver.writeConfig(32, 1, 1);
    expect(driver.hostFeatures).toBe(1n << BigInt(Feature.Flush));
    await rescanBlock(driver.fn, makeImage());
    expect(driver.readConfig(32, 1)).toBe(0);
    expect(driver.hostFeatures & (1n << BigInt(Feature.Flush))).toBe(0n);
  });

  test('the modern form tells a new generation', async () => {
    const { driver } = await makeDisk('nodisk,transport=modern', 'modern');
    driver.init();
    const before = driver.in(21, 1);
    await rescanBlock(driver.fn, makeImage());
    expect(driver.in(21, 1)).not.toBe(before);
  });

  test('a file that is not there leaves the slot empty and usable', async () => {
    const { driver } = await makeDisk('nodisk');
    driver.init();
    await expect(rescanBlock(driver.fn, '/nonexistent')).rejects.toThrow(/nonexistent: open: ENOENT/);
    await rescanBlock(driver.fn, makeImage());
    expect(read(driver, 0, 512)).toBe(Ok);
  });

  test('a device that had its disk from the start refuses', async () => {
    const { driver } = await makeDisk(makeImage());
    await expect(rescanBlock(driver.fn, makeImage())).rejects.toThrow(ConfigError);
  });
});

describe('hostile and broken requests', () => {
  test.each([
    ['beyond the end', SECTORS, [512]],
    ['over the end', SECTORS - 1, [1024]],
    ['sector 2^64 - 1', 0xffff_ffff_ffff_ffffn, [512]],
    ['sector times 512 wraps', 2n ** 55n, [512]],
    ['not whole sectors (QEMU CVE-2011-1750)', 0, [511]],
  ])('a read %s is an I/O error', async (_name, sector, sizes) => {
    const { driver } = await makeDisk(makeImage());
    driver.init();
    expect(read(driver, sector, ...sizes)).toBe(IoError);
    expect(driver.needsReset).toBe(false);
  });

  test('a write of part of a sector is an I/O error and writes nothing', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(path);
    driver.init();
    expect(write(driver, 0, filled(0xee, 100))).toBe(IoError);
    expect(readFileSync(path)[0]).toBe(0);
  });

  test('an unknown type is unsupported', async () => {
    const { driver } = await makeDisk(makeImage());
    driver.init();
    driver.request(0, [{ read: header(0x7777) }, { write: 512 }, { write: 1 }]);
    expect(driver.buffer(2)[0]).toBe(Unsupported);
  });

  test('the legacy barrier bit changes nothing', async () => {
    const { driver } = await makeDisk(makeImage());
    driver.init();
    driver.request(0, [{ read: header(0x80000000 + Type.In, 1) }, { write: 512 }, { write: 1 }]);
    expect(driver.buffer(2)[0]).toBe(Ok);
  });

  test('data in the wrong direction is an I/O error', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(path);
    driver.init();
    driver.request(0, [{ read: header(Type.In) }, { read: filled(1) }, { write: 1 }]);
    expect(driver.buffer(2)[0]).toBe(IoError);
    driver.request(0, [{ read: header(Type.Out) }, { read: filled(1) }, { write: 513 }]);
    expect(driver.buffer(2)[512]).toBe(IoError);
    expect(readFileSync(path)[0]).toBe(0);
  });

  test.each([
    ['no status descriptor', [{ read: header(Type.In) }]],
    ['a short header', [{ read: [0, 0, 0] }, { write: 1 }]],
    ['nothing to read at all', [{ write: 512 }]],
  ])('%s: given back, nothing done', async (_name, specs) => {
    const { driver } = await makeDisk(makeImage());
    driver.init();
    expect(driver.request(0, specs).length).toBe(1);
    expect(driver.needsReset).toBe(false);
  });

  test('a read without data is answered', async () => {
    const { driver } = await makeDisk(makeImage());
    driver.init();
    expect(read(driver, 0)).toBe(Ok);
  });

  test('the file shrinks under a running guest: an I/O error and a line, and it recovers', async () => {
    const path = makeImage();
    const { driver, machine } = await makeDisk(path);
    driver.init();
    const whole = readFileSync(path);
    truncateSync(path, 512);
    expect(read(driver, 8, 512)).toBe(IoError);
    expect(machine.lines.join('\n')).toMatch(/read failed/);
    writeFileSync(path, whole);
    expect(read(driver, 8, 512)).toBe(Ok);
  });

  test.each([
    ['legacy', ''],
    ['packed', ',transport=modern'],
  ] as const)('%s: reset with requests waiting: the queue is empty afterwards and works', async (mode, options) => {
    const { driver } = await makeDisk(makeImage() + options, mode);
    driver.init();
    driver.add(0, [{ read: header(Type.In) }, { write: 512 }, { write: 1 }]);
    driver.status = 0;
    driver.kick(0);
    expect(driver.takeUsed(0)).toEqual([]);
    driver.init();
    expect(read(driver, 1, 512)).toBe(Ok);
  });

  test.each([
    ['legacy', ''],
    ['packed', ',transport=modern'],
  ] as const)('%s: any request leaves the device able to serve the next good one', async (mode, options) => {
    const path = makeImage();
    const { driver } = await makeDisk(`${path},discard${options}`, mode);
    driver.init();
    const size = fc.constantFrom(0, 1, 15, 16, 511, 512, 513, 1024);
    fc.assert(
      fc.property(
        fc.oneof(fc.nat(13), fc.nat(0xffffffff)),
        fc.oneof(fc.nat(SECTORS + 2), fc.bigInt({ min: 0n, max: 2n ** 64n - 1n })),
        fc.array(size, { maxLength: 4 }),
        fc.array(size, { maxLength: 4 }),
        (type, sector, outs, ins) => {
          driver.request(0, [
            { read: header(type, sector) },
            ...outs.map((n) => ({ read: new Uint8Array(n) })),
            ...ins.map((n) => ({ write: n, at: 0x20000 })),
            { write: 1, at: 0x30000 },
          ]);
          expect(read(driver, 0, 512)).toBe(Ok);
        },
      ),
      { numRuns: 150 },
    );
    expect(statSync(path).size).toBe(SECTORS * 512);
  });
});

describe('life cycle', () => {
  test('stop closes the file, and may come twice or without start', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(path);
    const { backend } = (driver.fn as VirtioPci).device as VirtioBlock;
    const fd = backend?.image.fd as number;
    fstatSync(fd);
    await driver.fn.stop?.();
    // The lowest free descriptor is handed out next: the one that was closed, or a lower one.
    const next = openSync(path, 'r');
    closeSync(next);
    expect(next).toBeLessThanOrEqual(fd);
    await driver.fn.stop?.();
  });

  test('poll mode looks at the queue by itself, until reset (ACRN CVE-2021-36144)', async () => {
    const { driver, machine } = await makeDisk(makeImage(), 'legacy', { virtioPollNs: 1_000_000 });
    driver.init();
    machine.clock.advance(5e9);
    driver.add(0, [{ read: header(Type.In, 1) }, { write: 512 }, { write: 1 }]);
    machine.clock.advance(1_000_000);
    expect(driver.takeUsed(0)).toHaveLength(1);
    // The driver is kept from kicking for as long as polling lasts.
    expect(machine.memory.readU16((driver.queues[0] as { used: number }).used)).toBe(1);
    driver.status = 0;
    expect(machine.clock.armed).toBe(0);
    driver.add(0, [{ read: header(Type.In, 1) }, { write: 512 }, { write: 1 }]);
    machine.clock.advance(10e9);
    expect(driver.takeUsed(0)).toEqual([]);
  });

  test('an idle disk wakes nobody', async () => {
    const { driver, machine } = await makeDisk(makeImage());
    driver.init();
    read(driver, 0, 512);
    expect(machine.clock.armed).toBe(0);
  });
});
