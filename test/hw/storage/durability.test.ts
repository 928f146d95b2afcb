/**
 * What a disk may call written. After one failed fdatasync the kernel has dropped pages and says so once (fsync(2)): a
 * later success means nothing, on whatever thread and by whatever way it is asked for.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import type * as Files from '../../../devicemodel/core/host/files.ts';
import { Log } from '../../../devicemodel/core/log.ts';
import { checkOptions } from '../../../devicemodel/core/options.ts';
import { virtioBlk } from '../../../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockRing, type RingSlot } from '../../../devicemodel/hw/pci/virtio/block/io-ring.ts';
import { BlockOptions, parseBlockText } from '../../../devicemodel/hw/pci/virtio/block/options.ts';
import { BlockRequests } from '../../../devicemodel/hw/pci/virtio/block/requests.ts';
import type { Virtqueue } from '../../../devicemodel/hw/pci/virtio/ring/virtqueue.ts';
import type { VirtioDevice, VirtioTransport } from '../../../devicemodel/hw/pci/virtio/transport/device.ts';
import { VirtioPci } from '../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { type DiskImage, openDiskImage } from '../../../devicemodel/hw/storage/disk-image.ts';
import { ImageIo } from '../../../devicemodel/hw/storage/image-io.ts';
import { MEMORY_DIR } from '../../support/memory-dir.ts';
import { VirtioDriver, VirtioMachine } from '../../support/virtio-driver.ts';

/** Results of the next calls of each kind; undefined: the call is made. */
const faults = vi.hoisted(() => ({ syncData: [] as number[], write: [] as number[], punchHole: [] as number[] }));
vi.mock('../../../devicemodel/core/host/files.ts', async (original) => {
  const real = await original<typeof Files>();
  return {
    ...real,
    syncData: (fd: number) => faults.syncData.shift() ?? real.syncData(fd),
    syncDataAside: async (fd: number) => faults.syncData.shift() ?? real.syncDataAside(fd),
    writeVectorAt: (...args: Parameters<typeof real.writeVectorAt>) =>
      faults.write.shift() ?? real.writeVectorAt(...args),
    punchHole: (...args: Parameters<typeof real.punchHole>) => faults.punchHole.shift() ?? real.punchHole(...args),
  };
});

const Type = { In: 0, Out: 1, Flush: 4, Discard: 11 } as const;
const Ok = 0;
const IoError = 1;
const undo: Array<() => void | Promise<void>> = [];
beforeEach(() => {
  for (const list of Object.values(faults)) list.length = 0;
});
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** @param parent in memory, where the device thread need not leave anything to another; io_uring answers differently there. */
function makeImage(parent = MEMORY_DIR): string {
  const dir = mkdtempSync(join(parent, 'durability-'));
  undo.push(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'disk');
  writeFileSync(path, Buffer.alloc(64 * 512, 0x42));
  return path;
}

const optionsOf = (text: string) => checkOptions(BlockOptions, parseBlockText(text)) as BlockOptions;

async function makeDisk(text: string) {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const driver = new VirtioDriver(machine, virtioBlk.create(optionsOf(text), machine.env()));
  await driver.fn.start?.();
  undo.push(() => driver.fn.stop?.());
  driver.init();
  return { machine, driver };
}

const header = (type: number, sector = 0) => Uint8Array.of(type, 0, 0, 0, 0, 0, 0, 0, sector, 0, 0, 0, 0, 0, 0, 0);
function status(driver: VirtioDriver, type: number): number {
  const data = type === Type.In ? [{ write: 512 }] : type === Type.Out ? [{ read: new Uint8Array(512) }] : [];
  driver.request(0, [{ read: header(type) }, ...data, { write: 1 }]);
  return driver.buffer(data.length + 1)[0] as number;
}

describe('after a failed sync', () => {
  // Mutation: let `ImageIo.sync` forget the failure.
  test.each([
    ['write-back: every flush fails, writes to the cache do not', ',writeback', Type.Flush, Ok],
    ['write-through: every write fails', '', Type.Out, IoError],
  ])('%s', async (_name, text, type, written) => {
    const path = makeImage();
    const { driver, machine } = await makeDisk(path + text);
    expect(status(driver, type)).toBe(Ok);
    faults.syncData.push(-Errno.EIO);
    expect(status(driver, type)).toBe(IoError);
    for (let i = 0; i < 5; i++) expect(status(driver, type)).toBe(IoError);
    expect(status(driver, Type.Out)).toBe(written);
    expect(status(driver, Type.In)).toBe(Ok);
    // A reset of the device opens nothing.
    driver.init();
    expect(status(driver, Type.Flush)).toBe(IoError);
    const said = machine.lines.filter((line) => line.includes(path));
    expect(said.length).toBeGreaterThan(0);
    expect(said.length).toBeLessThan(12);
    expect(said[0]).toMatch(/flush failed: EIO/);
  });

  test('the image opened anew is as good as any', async () => {
    const path = makeImage();
    const { driver } = await makeDisk(`${path},writeback`);
    faults.syncData.push(-Errno.EIO);
    expect(status(driver, Type.Flush)).toBe(IoError);
    await driver.fn.stop?.();
    const next = await makeDisk(`${path},writeback`);
    expect(status(next.driver, Type.Flush)).toBe(Ok);
  });

  test('what a switch to write-through or S3 found out counts as well', async () => {
    for (const find of [
      (driver: VirtioDriver) => driver.writeConfig(32, 1, 0),
      (driver: VirtioDriver) => driver.fn.settle?.(true),
    ]) {
      const { driver } = await makeDisk(`${makeImage()},writeback`);
      faults.syncData.push(-Errno.EIO);
      await find(driver);
      expect(faults.syncData).toEqual([]);
      expect(status(driver, Type.Flush)).toBe(IoError);
    }
  });

  // Mutation: make `syncFailure` of DiskImage a word of each ImageIo.
  test('other threads on the image hear of it, both ways', async () => {
    const image = await openDiskImage(makeImage(), optionsOf('x,writeback'), new Log([]));
    const mine = new ImageIo(image);
    const theirs = new ImageIo(structuredClone(image) as DiskImage);
    expect([mine.sync(), theirs.sync()]).toEqual([0, 0]);
    faults.syncData.push(-Errno.ENOSPC);
    expect(theirs.sync()).toBe(Errno.ENOSPC);
    expect(mine.sync()).toBe(Errno.ENOSPC);
  });
});

/** Requests with io_uring, on this thread, whose completions say what a test wants. */
class FaultyRing extends BlockRing {
  /** For the next completions of syncs, or of writes that are to be on the medium. */
  readonly results: number[] = [];
  begun = 0;
  override next(): RingSlot | undefined {
    const slot = super.next();
    if (slot !== undefined && (slot.isSync || slot.isDurable)) {
      this.begun++;
      this.result = this.results.shift() ?? this.result;
    }
    return slot;
  }
}

class RingDisk implements VirtioDevice {
  readonly name = 'disk';
  readonly features = 1n << 9n;
  readonly queueSizes = [64];
  readonly configSizeBytes = 0;
  readonly ring = new FaultyRing();
  readonly #requests: BlockRequests;
  constructor(image: DiskImage, isWriteback: boolean) {
    const state = {
      backend: new ImageIo(image),
      isWriteback,
      reportsLength: false,
      serial: new Uint8Array(20),
      runsBesideDriver: true,
    };
    this.#requests = new BlockRequests(state, new Log([]), { nowNs: () => 0 }, this.ring);
    undo.push(() => this.ring.dispose());
  }
  attach(_transport: VirtioTransport): void {}
  notify(queue: Virtqueue): void {
    this.#requests.serve(queue);
    this.#requests.settle([queue]);
  }
  reset(): void {}
}

describe('through io_uring', () => {
  async function make(isWriteback: boolean, text = '') {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const device = new RingDisk(
      await openDiskImage(makeImage('/var/tmp'), optionsOf(`x${text}`), new Log([])),
      isWriteback,
    );
    const fn = new VirtioPci(device, machine.env(), {
      mode: 'legacy',
      identity: { legacyDeviceId: 0x1001, type: 2, classCode: 0x010000 },
    });
    const driver = new VirtioDriver(machine, fn);
    await fn.start();
    undo.push(() => fn.stop());
    driver.init();
    /** Several at once: a lone request is not worth the ring. @returns the status of each. */
    const writes = (count: number) => {
      const at: number[] = [];
      for (let i = 0; i < count; i++) {
        const data = driver.allocate(512, 512);
        driver.add(0, [{ read: header(Type.Out, i) }, { read: new Uint8Array(512), at: data }, { write: 1 }]);
        at.push((driver.lastBuffers[2] as { at: number }).at);
        driver.write(at[i] as number, Uint8Array.of(0xee));
      }
      driver.kick(0);
      expect(driver.takeUsed(0)).toHaveLength(count);
      return at.map((status) => driver.read(status, 1)[0]);
    };
    return { driver, device, writes };
  }

  // Mutation: leave `syncFailed` out of `#syncResult`.
  test.each([
    ['a sync of its own', ''],
    ['the write and its sync at once', ',nocache'],
  ])('%s that fails fails all that follow', async (_name, text) => {
    const { device, writes } = await make(false, text);
    expect(writes(4)).toEqual([Ok, Ok, Ok, Ok]);
    expect(device.ring.begun).toBeGreaterThan(0);
    device.ring.results.push(-Errno.EIO);
    expect(writes(4)).toContain(IoError);
    expect(writes(4)).toEqual([IoError, IoError, IoError, IoError]);
  });

  // Mutation: let `isTransient` know no EINTR.
  test.each([Errno.EINTR, Errno.EAGAIN])('errno %i of it is no error: it is made again', async (errno) => {
    const { device, writes } = await make(false);
    device.ring.results.push(-errno, -errno);
    expect(writes(4)).toEqual([Ok, Ok, Ok, Ok]);
    expect(writes(4)).toEqual([Ok, Ok, Ok, Ok]);
  });
});

describe('errors of the host', () => {
  test.each(['ENOSPC', 'EIO', 'EFBIG', 'EDQUOT', 'EROFS'] as const)(
    '%s of a write: an I/O error, a line with the file, and the next one works',
    async (name) => {
      const path = makeImage();
      const { driver, machine } = await makeDisk(path);
      faults.write.push(-Errno[name]);
      expect(status(driver, Type.Out)).toBe(IoError);
      expect(machine.lines.filter((line) => line.includes(path) && line.includes(name))).toHaveLength(1);
      // What could not be written was never taken: no sync has failed.
      expect(status(driver, Type.Out)).toBe(Ok);
      // However often it happens, the log does not fill up.
      for (let i = 0; i < 100; i++) faults.write.push(-Errno[name]);
      for (let i = 0; i < 100; i++) status(driver, Type.Out);
      expect(machine.lines.length).toBeLessThan(40);
    },
  );

  test.each(['ENOSPC', 'EIO', 'EOPNOTSUPP'] as const)('%s of a discard is an I/O error', async (name) => {
    const { driver } = await makeDisk(`${makeImage()},discard`);
    faults.punchHole.push(-Errno[name]);
    driver.request(0, [
      { read: header(Type.Discard) },
      { read: [8, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0] },
      { write: 1 },
    ]);
    expect(driver.buffer(2)[0]).toBe(IoError);
  });
});

test('the last flush of a VM that ends is made, and said when it fails', async () => {
  const path = makeImage();
  const { driver, machine } = await makeDisk(`${path},writeback`);
  faults.syncData.push(-Errno.EIO);
  await driver.fn.stop?.();
  expect(machine.lines.join('\n')).toMatch(new RegExp(`error ${path}: the last flush failed: EIO`));
});
