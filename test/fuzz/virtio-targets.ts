/** Every virtio device in every form, each in a machine of its own, with the host behind it made up. */
import { readFileSync, rmSync, statSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import type { InputEvent, InputSource } from '../../devicemodel/core/host/evdev.ts';
import { closeFd } from '../../devicemodel/core/host/files.ts';
import type { I2cBus } from '../../devicemodel/core/host/i2c-dev.ts';
import { native } from '../../devicemodel/core/host/libc.ts';
import type { MeiListener } from '../../devicemodel/core/host/mei.ts';
import type { VhostOrder } from '../../devicemodel/core/host/vhost.ts';
import { checkOptions } from '../../devicemodel/core/options.ts';
import { Display } from '../../devicemodel/hw/display/display.ts';
import type { PciEnv } from '../../devicemodel/hw/pci/driver.ts';
import { VirtioBlock } from '../../devicemodel/hw/pci/virtio/block/block.ts';
import { BlockOptions, parseBlockText } from '../../devicemodel/hw/pci/virtio/block/options.ts';
import { VirtioConsole } from '../../devicemodel/hw/pci/virtio/console/console.ts';
import { ConsoleOptions, type PortOptions, parseConsoleText } from '../../devicemodel/hw/pci/virtio/console/options.ts';
import { AcrnGpio } from '../../devicemodel/hw/pci/virtio/gpio/gpio.ts';
import { ModernGpio } from '../../devicemodel/hw/pci/virtio/gpio/modern.ts';
import { VirtioGpu } from '../../devicemodel/hw/pci/virtio/gpu/gpu.ts';
import { type HeciHost, VirtioHeci } from '../../devicemodel/hw/pci/virtio/heci/heci.ts';
import { VirtioI2c } from '../../devicemodel/hw/pci/virtio/i2c/i2c.ts';
import { VirtioInput } from '../../devicemodel/hw/pci/virtio/input/input.ts';
import { VirtioNet } from '../../devicemodel/hw/pci/virtio/net/net.ts';
import { NetOptions, parseNetText } from '../../devicemodel/hw/pci/virtio/net/options.ts';
import { VhostDevice } from '../../devicemodel/hw/pci/virtio/net/vhost.ts';
import { virtioRnd } from '../../devicemodel/hw/pci/virtio/rng.ts';
import { VirtioRpmb } from '../../devicemodel/hw/pci/virtio/rpmb/rpmb.ts';
import type { RpmbStore } from '../../devicemodel/hw/pci/virtio/rpmb/store.ts';
import type { VirtioDevice } from '../../devicemodel/hw/pci/virtio/transport/device.ts';
import type { VirtioPciIdentity } from '../../devicemodel/hw/pci/virtio/transport/identity.ts';
import { type TransportMode, transportModes } from '../../devicemodel/hw/pci/virtio/transport/options.ts';
import { VirtioPci } from '../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { VhostVsock } from '../../devicemodel/hw/pci/virtio/vsock/vsock.ts';
import { makeScratch } from '../../tools/scratch.mjs';
import { bundledDataThread } from '../support/bundle-data-thread.ts';
import { FakeGpioLine } from '../support/fake-gpio.ts';
import { type FramePeer, socketPair } from '../support/socket-pair.ts';
import { FakeCharBackend } from '../support/virtio-driver.ts';
import { checkLeak } from './guarded-ram.ts';
import { Random } from './random.ts';
import { HostileGuest, type Piece, type RequestShape } from './virtio-guest.ts';
import { FuzzMachine, type MachineChoices, type MakeFunction } from './virtio-machine.ts';

export interface Target {
  readonly name: string;
  readonly machine: FuzzMachine;
  readonly guest: HostileGuest;
  readonly random: Random;
  /** Something happens on the host: input, an end of file, a back end that fails or comes back. */
  hostEvent(): void;
  /** @throws Error if the guest reached what is not its own. */
  check(): void;
  dispose(): void;
}

/** What a target is made of. */
interface Recipe {
  readonly name: string;
  readonly make: MakeFunction;
  readonly shape: RequestShape;
  readonly choices?: MachineChoices;
  readonly hostEvent?: (random: Random) => void;
  readonly check?: () => void;
  readonly dispose?: () => void;
}

const SECTOR = 512;
const IMAGE_SECTORS = 192;
/** What the guest may not see or change: the sectors around a `range=`. */
const FOREIGN = Buffer.alloc(64 * SECTOR, 'not in the range');

const words = (...values: number[]) => new Uint8Array(Uint32Array.from(values).buffer);
const piece = (write: boolean, length: number, bytes?: Uint8Array): Piece =>
  bytes === undefined ? { write, length } : { write, length, bytes };
const someLength = (random: Random) =>
  random.oneIn(8) ? random.below(70_000) : random.pick([0, 1, 8, 12, 16, 64, 512, 512, 513, 1024, 4096]);

/** Pieces of any length: readable ones, then writable ones. */
const anything: RequestShape = (random) => {
  const count = 1 + random.below(5);
  const readable = random.below(count + 1);
  return Array.from({ length: count }, (_, i) => piece(i >= readable, someLength(random)));
};

// Disks.

const blockRequest: RequestShape = (random) => {
  if (random.oneIn(16)) return anything(random, 0);
  const type = random.pick([0, 0, 0, 1, 1, 1, 4, 8, 11, 11, 5, 13, 0x8000_0001, random.value()]);
  const isWrite = type !== 0 && type !== 8;
  const sector = random.oneIn(16) ? random.value() : random.below(IMAGE_SECTORS + 4);
  const pieces = [piece(false, 16, words(type, 0, sector, random.oneIn(64) ? random.value() : 0))];
  if (type === 11) {
    const segments = Array.from({ length: random.below(6) }, () => [
      random.below(IMAGE_SECTORS),
      0,
      random.below(9),
      0,
    ]);
    if (random.oneIn(8)) for (const segment of segments) segment[random.below(4)] = random.value();
    pieces.push(piece(false, segments.length * 16 + (random.oneIn(8) ? 3 : 0), words(...segments.flat())));
  } else {
    const count = random.oneIn(16) ? random.below(40) : random.below(4);
    for (let i = 0; i < count; i++) {
      pieces.push(piece(!isWrite, random.oneIn(16) ? someLength(random) : SECTOR * (1 + random.below(4))));
    }
  }
  if (!random.oneIn(32)) pieces.push(piece(true, 1));
  return pieces;
};

interface Scratch {
  /** A file of its own for a target; with foreign sectors around the middle third if it is a range. */
  image(name: string, isRange?: boolean): string;
  dispose(): void;
}

function makeImages(): Scratch {
  const base = statSync('/dev/shm', { throwIfNoEntry: false }) === undefined ? tmpdir() : '/dev/shm';
  const directory = makeScratch('fuzz', base);
  let count = 0;
  return {
    image: (name, isRange = false) => {
      const path = join(directory, `${name}-${count++}`);
      const bytes = Buffer.alloc(IMAGE_SECTORS * SECTOR);
      if (isRange) for (const at of [0, 128 * SECTOR]) FOREIGN.copy(bytes, at);
      writeFileSync(path, bytes);
      return path;
    },
    dispose: () => rmSync(directory, { recursive: true }),
  };
}

const blockIdentity: VirtioPciIdentity = { legacyDeviceId: 0x1001, type: 2, classCode: 0x010000 };

/** Code of a data thread that is not there: kicks come by ioeventfd, requests are served on this thread. */
const noWorker = new URL('file:///nowhere.js');

/** @param text as after `virtio-blk,`; IMAGE stands for the file. */
function disk(
  name: string,
  text: string,
  mode: TransportMode,
  scratch: Scratch,
  choices?: MachineChoices,
  workerUrl = noWorker,
): Recipe {
  const isRange = text.includes('range=');
  const path = scratch.image(name, isRange);
  const options = checkOptions(
    BlockOptions,
    parseBlockText(`${text.replace('IMAGE', path)},transport=${mode}`),
  ) as BlockOptions;
  let device: VirtioBlock;
  return {
    name: `${name}-${mode}`,
    shape: blockRequest,
    ...(choices === undefined ? {} : { choices }),
    make: (env) => {
      device = new VirtioBlock(options, options.queues, env.log, workerUrl);
      return new VirtioPci(device, env, { mode, identity: blockIdentity });
    },
    hostEvent: (random) => {
      if (text.startsWith('nodisk')) {
        if (device.backend === undefined) void device.rescan(`${path},writeback`).catch(() => {});
      } else if (!isRange) {
        // The file shrinks and grows under the guest.
        truncateSync(path, random.pick([0, 1, 64, IMAGE_SECTORS, IMAGE_SECTORS]) * SECTOR);
      }
    },
    check: () => {
      const bytes = readFileSync(path);
      if (bytes.length > IMAGE_SECTORS * SECTOR) throw new Error(`${path} grew`);
      const isForeignWhole = [0, 128 * SECTOR].every((at) => FOREIGN.equals(bytes.subarray(at, at + FOREIGN.length)));
      if (isRange && !isForeignWhole) throw new Error('the disk reached outside of its range');
      checkLeak(bytes, path);
    },
  };
}

// Networks.

const netRequest: RequestShape = (random, queue) => {
  if (random.oneIn(16)) return anything(random, 0);
  if (queue === 0) {
    const count = random.oneIn(8) ? 1 + random.below(20) : 1;
    return Array.from({ length: count }, () => piece(true, random.pick([1526, 1526, 12, 10, 100, 65_562])));
  }
  const header = new Uint8Array(12).map(() => (random.oneIn(3) ? random.u32() : 0));
  const frame = random.oneIn(8) ? random.below(70_000) : random.below(1515);
  return random.oneIn(2)
    ? [piece(false, 12, header), piece(false, frame)]
    : [piece(false, 12 + frame, header), ...(random.oneIn(4) ? [piece(false, random.below(64))] : [])];
};

function network(mode: TransportMode, choices?: MachineChoices, workerUrl = noWorker): Recipe {
  const options = checkOptions(NetOptions, parseNetText(`tap=fuzz,transport=${mode}`)) as NetOptions;
  let peer: FramePeer;
  let tapFd = -1;
  let isMissing = false;
  const deadTap = makeDeadTap();
  const openTap = () => {
    if (isMissing) throw new HostError('tap fuzz: made to fail', 19);
    peer?.close();
    [tapFd, peer] = socketPair();
    return tapFd;
  };
  const frame = new Uint8Array(0x1_0000);
  return {
    name: `virtio-net-${mode}`,
    shape: netRequest,
    ...(choices === undefined ? {} : { choices }),
    make: (env) =>
      new VirtioPci(
        new VirtioNet(options, { clock: env.clock, log: env.log, mac: [2, 0, 0, 0, 0, 1], openTap, workerUrl }),
        env,
        {
          mode,
          identity: { legacyDeviceId: 0x1000, type: 1, classCode: 0x020000 },
        },
      ),
    hostEvent: (random) => {
      if (random.oneIn(32)) {
        // The interface is deleted: its descriptor answers EBADF to a write. It comes back, or not yet.
        if (statOf(tapFd)?.isSocket() === true) native('int dup2(int, int)')(deadTap.fd, tapFd);
        isMissing = random.oneIn(2);
        return;
      }
      isMissing = false;
      for (let burst = random.below(20); burst > 0; burst--) {
        frame[0] = random.u32();
        try {
          peer.send(frame.subarray(0, random.oneIn(8) ? 1 + random.below(frame.length) : 1 + random.below(1600)));
        } catch {
          // The queue of the socket is full, as a tap's may be.
          break;
        }
      }
    },
    check: () => {
      for (let got = peer.receive(); got !== undefined; got = peer.receive()) checkLeak(got, 'tap');
    },
    dispose: () => {
      peer.close();
      deadTap.dispose();
    },
  };
}

/** The reading end of a pipe: can be polled, refuses writes, never has anything. */
function makeDeadTap(): { readonly fd: number; dispose(): void } {
  const O_NONBLOCK = 0o4000;
  const ends = new Int32Array(2);
  native('int pipe2(void *, int)')(ends, O_NONBLOCK);
  return {
    fd: ends[0] as number,
    dispose: () => {
      for (const fd of ends) closeFd(fd);
    },
  };
}

function statOf(fd: number): { isSocket(): boolean } | undefined {
  return statSync(`/proc/self/fd/${fd}`, { throwIfNoEntry: false });
}

// Consoles.

/** Someone types bursts; what the guest writes is looked at and dropped. */
class BurstBackend extends FakeCharBackend {
  pending = 0;
  onWrite: (() => void) | undefined;
  override read(): number {
    return this.pending-- > 0 ? 0x78 : -1;
  }
  override write(): void {
    this.onWrite?.();
  }
}

const consoleRequest: RequestShape = (random, queue) => {
  if ((queue & 1) === 0) return [piece(true, someLength(random)), ...(random.oneIn(4) ? [piece(true, 64)] : [])];
  if (queue !== 3 || random.oneIn(16)) return anything(random, 0);
  const event = random.oneIn(16) ? random.value() : random.below(9);
  const id = random.oneIn(8) ? random.value() : random.below(4);
  const bytes = words(id, ((random.below(3) << 16) | (event & 0xffff)) >>> 0);
  return [piece(false, random.oneIn(16) ? random.below(8) : 8, bytes)];
};

function consoles(mode: TransportMode, choices?: MachineChoices): Recipe {
  const { ports } = checkOptions(
    ConsoleOptions,
    parseConsoleText(`@stdio:a,pty:b,@pty:${'c'.repeat(60)},transport=${mode}`),
  ) as { readonly ports: readonly PortOptions[] };
  const backends: BurstBackend[] = [];
  const size = { cols: 80, rows: 25 };
  let onResize = () => {};
  return {
    name: `virtio-console-${mode}`,
    shape: consoleRequest,
    choices: {
      ...choices,
      charBackend: () => {
        const backend = new BurstBackend('fuzz');
        backends.push(backend);
        return backend;
      },
    },
    make: (env) => {
      const sizes = {
        size,
        onResize: (changed: () => void) => {
          onResize = changed;
          return () => {};
        },
      };
      const device = new VirtioConsole(ports, mode, (spec) => env.charBackend(spec), env.log, sizes);
      return new VirtioPci(device, env, { mode, identity: { legacyDeviceId: 0x1003, type: 3, classCode: 0x078000 } });
    },
    hostEvent: (random) => {
      if (random.oneIn(4)) {
        size.cols = random.below(0x10000);
        onResize();
        return;
      }
      const backend = random.pick(backends);
      backend.pending = random.oneIn(16) ? random.below(100_000) : random.below(300);
      backend.onReadable?.();
    },
  };
}

// Input, I2C, entropy, vsock.

class BurstInput implements InputSource {
  pending = 0;
  onReadable: () => void = () => {};
  random: Random | undefined;
  name = () => Buffer.from('fuzz');
  ids = () => [1, 2, 3, 4] as const;
  properties = (size: number) => new Uint8Array(size).fill(1);
  codes = (_type: number, size: number) => new Uint8Array(size).fill(1);
  axis = () => [0, 1, 2, 3, 4];
  read(into: InputEvent): boolean {
    if (this.pending-- <= 0) return false;
    into.type = this.random?.below(4) ?? 0;
    into.code = this.random?.below(3) ?? 0;
    into.value = this.pending;
    return true;
  }
  write(): void {}
  watch(onReadable: () => void): () => void {
    this.onReadable = onReadable;
    return () => {};
  }
  close(): void {}
}

/** Answers every other message. */
class FickleBus implements I2cBus {
  readonly data = new Uint8Array(8192);
  #count = 0;
  transfer(_address: number, length: number): boolean {
    if (length > this.data.length) throw new Error(`a message of ${length} bytes`);
    return (this.#count++ & 1) === 0;
  }
  close(): void {}
}

/** A kernel that takes most orders. */
class FickleVhost extends VhostDevice {
  failIn = 0;
  constructor() {
    super('/dev/null');
  }
  override get features(): bigint {
    return (1n << 32n) | (1n << 29n) | (1n << 28n);
  }
  override open(): void {}
  override close(): void {}
  protected override order(name: VhostOrder, argument: ArrayBufferView | undefined): void {
    if (this.failIn > 0 && --this.failIn === 0) throw new HostError(`${name}: made to fail`, 22);
    if (argument instanceof Uint32Array && name === 'VHOST_GET_VRING_BASE') argument[1] = 0x10007;
  }
}

function modern(
  name: string,
  type: number,
  makeDevice: (env: PciEnv) => VirtioDevice,
  rest: Pick<Recipe, 'shape' | 'hostEvent'>,
): Recipe {
  const identity = { legacyDeviceId: 0, type, classCode: 0x098000 };
  return { name, ...rest, make: (env) => new VirtioPci(makeDevice(env), env, { mode: 'modern', identity }) };
}

function input(): Recipe {
  const source = new BurstInput();
  return modern('virtio-input', 18, (env) => new VirtioInput(() => source, 'serial', env.log), {
    shape: (random, queue) => [piece(queue === 0, random.oneIn(8) ? someLength(random) : 8)],
    hostEvent: (random) => {
      source.random = random;
      source.pending = random.oneIn(16) ? 5000 : random.below(12);
      source.onReadable();
    },
  });
}

function i2c(): Recipe {
  return modern('virtio-i2c', 34, () => new VirtioI2c(() => [{ bus: new FickleBus(), addresses: [1, 2, 3, 4, 5] }]), {
    shape: (random) => {
      const header = words(random.oneIn(8) ? random.value() : 2 * random.below(7), random.below(4));
      const length = random.oneIn(8) ? someLength(random) : random.below(40);
      const pieces = [piece(false, random.oneIn(32) ? 7 : 8, header)];
      if (!random.oneIn(4)) pieces.push(piece(random.oneIn(2), length));
      if (!random.oneIn(32)) pieces.push(piece(true, 1));
      return pieces;
    },
  });
}

function gpio(mode: 'legacy' | 'modern'): Recipe {
  const lines = ['a', '', 'b', 'c'].map((name) => new FakeGpioLine(name));
  const line = (random: Random) => (random.oneIn(16) ? random.value() & 0xffff : random.below(5));
  const acrnRequest: RequestShape = (random, queue) => {
    if (queue === 2) return [piece(true, random.oneIn(16) ? someLength(random) : 8)];
    if (queue === 1) return [piece(false, 3, Uint8Array.of(random.below(6), line(random), random.below(16)))];
    if (random.oneIn(16)) return [piece(true, lines.length * 32)];
    return [piece(false, 10, Uint8Array.of(random.below(7), line(random), random.below(10))), piece(true, 2)];
  };
  const modernRequest: RequestShape = (random, queue) => {
    if (queue === 1) return [piece(false, 2, Uint8Array.of(line(random), 0)), piece(true, 1)];
    const request = words((line(random) << 16) | random.below(8), random.oneIn(8) ? random.value() : random.below(10));
    return [piece(false, 8, request), piece(true, random.oneIn(4) ? 64 : 2)];
  };
  const identity = { legacyDeviceId: 0x8609, type: 41, classCode: 0x080000 };
  return {
    name: `virtio-gpio-${mode}`,
    shape: (random, queue) => {
      if (random.oneIn(16)) return anything(random, 0);
      return mode === 'legacy' ? acrnRequest(random, queue) : modernRequest(random, queue);
    },
    make: (env) => {
      const device = mode === 'legacy' ? new AcrnGpio(() => lines, env.log) : new ModernGpio(() => lines, env.log);
      return new VirtioPci(device, env, { mode, identity });
    },
    hostEvent: (random) => {
      const one = random.pick(lines);
      if (random.oneIn(16)) one.isGone = !one.isGone;
      for (let edges = random.below(6); edges > 0; edges--) one.drives(one.level === 1 ? 0 : 1);
    },
  };
}

/** Requests of every kind, a few resources and scanouts, with a viewer that looks now and then. */
const gpuRequest: RequestShape = (random, queue) => {
  if (random.oneIn(16)) return anything(random, 0);
  const id = () => (random.oneIn(16) ? random.value() : random.below(6));
  const side = () => (random.oneIn(24) ? random.value() : random.pick([0, 1, 16, 64, 64, 64, 100, 640, 2000]));
  const rect = () => [random.oneIn(4) ? side() : 0, random.oneIn(4) ? side() : 0, side(), side()];
  const entry = () => [
    random.oneIn(8) ? random.value() : random.below(0x8000),
    0,
    random.pick([0, 1, 4096, 70_000]),
    0,
  ];
  const entries = Array.from({ length: random.below(8) }, entry).flat();
  const count = random.oneIn(8) ? random.value() : entries.length / 4;
  const bodies: Array<readonly [number, number[]]> = [
    [0x100, []],
    [0x101, [id(), random.pick([1, 2, 3, 4, 67, 68, 121, 134, 5]), side(), side()]],
    [0x102, [id(), 0]],
    [0x103, [...rect(), random.below(4), id()]],
    [0x104, [...rect(), id(), 0]],
    [0x105, [...rect(), random.oneIn(4) ? random.value() : 0, random.oneIn(16) ? 1 : 0, id(), 0]],
    [0x106, [id(), count, ...entries]],
    [0x107, [id(), 0]],
    [0x10a, [random.below(4), 0]],
    [0x10c, [id(), 1, 2, count, 0, 0, side() * 256, 0, ...entries]],
    [0x10d, [...rect(), random.below(3), id(), side(), side(), 2, 0, side() * 4, 0, 0, 0, side(), 0, 0, 0]],
    [random.value(), [random.value()]],
  ];
  const [type, body] =
    queue === 1 ? ([0x300 + random.below(2), [0, 1, 2, 0, id(), side(), side(), 0]] as const) : random.pick(bodies);
  const bytes = words(type, random.below(2), random.value(), 0, 0, 0, ...body);
  return [
    piece(false, bytes.length, bytes),
    ...(queue === 1 ? [] : [piece(true, random.pick([24, 24, 408, 1056, 3]))]),
  ];
};

function gpu(): Recipe {
  const display = new Display();
  display.watch({ resized: () => {}, damaged: () => {}, cursorChanged: () => {} });
  const sizes = [
    { width: 800, height: 600 },
    { width: 640, height: 480 },
  ];
  const into = new Uint8Array(4 * 64 * 64);
  return modern('virtio-gpu', 16, () => new VirtioGpu({ sizes, display, offersBlobs: () => true, onOwner: () => {} }), {
    shape: gpuRequest,
    hostEvent: (random) => {
      const { width, height } = display.size;
      const at = { x: random.below(width), y: random.below(height) };
      display.read({ ...at, width: 1 + random.below(64), height: 1 + random.below(64) }, into, 0, 256);
      if (random.oneIn(8)) display.requestSize(random.below(3), { width: random.value(), height: random.below(5000) });
    },
  });
}

function vsock(): Recipe {
  const kernel = new FickleVhost();
  return modern('vhost-vsock', 19, (env) => new VhostVsock(5, env.log, kernel), {
    shape: anything,
    hostEvent: (random) => {
      kernel.failIn = random.below(12);
    },
  });
}

function entropy(mode: TransportMode): Recipe {
  const shape: RequestShape = (random) => [piece(!random.oneIn(16), someLength(random))];
  const make: MakeFunction = (env) => virtioRnd.create({ transport: mode }, env) as VirtioPci;
  return { name: `virtio-rnd-${mode}`, shape, make };
}

/** Orders near those of ACRN's driver, on a memory of a few blocks. */
function rpmb(): Recipe {
  const bytes = Buffer.alloc(160 * 256);
  const store: RpmbStore = {
    open: async () => ({ blockCount: 160, counter: 0 }),
    read: async (address, count) => bytes.subarray(address * 256, (address + count) * 256),
    write: async () => 0,
    close: async () => {},
  };
  return {
    name: 'virtio-rpmb-legacy',
    shape: (random) => {
      if (random.oneIn(16)) return anything(random, 0);
      const kinds = random.pick([
        [1, 0],
        [3, 1, 0],
        [random.below(5), random.below(5)],
      ]);
      const command = random.oneIn(16) ? random.value() : 0xc008b552;
      const sequence = kinds.flatMap((flags) => [flags, random.oneIn(16) ? random.value() : 1, 0, 0]);
      const frames = kinds.map(() => {
        const frame = Buffer.alloc(512);
        frame.writeUInt16BE(random.below(170), 504);
        frame.writeUInt16BE(random.below(6), 510);
        return piece(true, random.oneIn(32) ? someLength(random) : 512, frame);
      });
      const count = random.oneIn(16) ? random.value() : kinds.length;
      return [
        piece(true, 12, words(command, 0, 0)),
        piece(true, 8 + 4 * sequence.length, words(count, 0, ...sequence)),
        ...frames,
      ];
    },
    make: (env) =>
      new VirtioPci(new VirtioRpmb(Buffer.alloc(32), store, env.log), env, {
        mode: 'legacy',
        identity: { vendorId: 0x8086, legacyDeviceId: 0x8601, type: 0xffff, classCode: 0xff0000 },
      }),
  };
}

/** Messages to an engine with two clients, which answers, refuses and goes away by chance. */
function heci(): Recipe {
  const listeners: MeiListener[] = [];
  let answer = 0;
  const client = { uuid: new Uint8Array(16), version: 1, maxConnections: 1, maxMessageBytes: 1024 };
  const host: HeciHost = {
    isEnabled: true,
    firmwareStatus: () => [0, 0, 0, 0, 0, 0],
    clients: () => [
      { ...client, isFixed: true },
      { ...client, isFixed: false },
    ],
    idle: () => Promise.resolve(),
    connect: async (_client, listener) => {
      if (answer < 0) throw new HostError('refused', -answer);
      if (!listener.isWanted()) return undefined;
      listeners.push(listener);
      return {
        send: () => answer,
        listen: () => {},
        close: () => listeners.splice(listeners.indexOf(listener), 1),
      };
    },
  };
  return {
    name: 'virtio-heci-legacy',
    shape: (random, queue) => {
      if (random.oneIn(16)) return anything(random, queue);
      if (queue === 0) return [piece(true, random.oneIn(16) ? someLength(random) : 512)];
      const payload = Uint8Array.of(
        random.pick([1, 4, 5, 6, 7, 8, 10, 16, 0x87]),
        random.below(34),
        random.below(4),
        0,
      );
      const isBus = random.oneIn(2);
      const header = isBus ? 0 : random.below(34) | (random.below(4) << 8);
      const length = random.oneIn(16) ? random.below(512) : payload.length;
      return [
        piece(false, 4, words((header | (length << 16) | (random.oneIn(4) ? 0 : 0x8000_0000)) >>> 0)),
        piece(false, random.oneIn(16) ? someLength(random) : payload.length, payload),
      ];
    },
    make: (env) =>
      new VirtioPci(new VirtioHeci(host, env.clock, env.log, env.waits.patience), env, {
        mode: 'legacy',
        identity: { vendorId: 0x8086, legacyDeviceId: 0x8602, type: 0xfffe, classCode: 0x078000 },
      }),
    hostEvent: (random) => {
      answer = random.pick([0, 0, 0, -Errno.EAGAIN, -Errno.EBUSY, -Errno.ENODEV]);
      const listener = listeners[random.below(listeners.length + 1)];
      if (random.oneIn(8)) listener?.onLost(random.pick([Errno.EIO, Errno.ENODEV]));
      else listener?.onMessage(new Uint8Array(random.below(1024)));
    },
  };
}

function recipes(scratch: Scratch, workerUrl: URL): Recipe[] {
  const polled = { virtioPollNs: 10_000_000 };
  const msi = { virtioMsi: true };
  const views = { viewsOnly: true };
  const busy = { isBusy: true };
  const everywhere = transportModes.flatMap((mode) => [
    disk('virtio-blk', 'IMAGE', mode, scratch),
    disk('virtio-blk-range', 'mq=2,IMAGE,writeback,discard=64:4:1,range=64/64', mode, scratch),
    network(mode),
    consoles(mode),
    entropy(mode),
  ]);
  return [
    ...everywhere,
    disk('virtio-blk-ro', 'IMAGE,ro,discard', 'transitional', scratch),
    disk('virtio-blk-nodisk', 'nodisk', 'transitional', scratch),
    disk('virtio-blk-kicks', 'iothread=2,mq=3,IMAGE,writeback', 'modern', scratch),
    disk('virtio-blk-kicks', 'iothread,IMAGE', 'legacy', scratch),
    disk('virtio-blk-thread', 'iothread=2,mq=2,IMAGE', 'modern', scratch, {}, workerUrl),
    disk('virtio-blk-busy', 'IMAGE,writeback,aio=threads', 'transitional', scratch, busy, workerUrl),
    { ...network('modern', busy, workerUrl), name: 'virtio-net-busy' },
    disk('virtio-blk-4k', 'IMAGE,sectorsize=4096,discard', 'modern', scratch),
    disk('virtio-blk-direct', 'IMAGE,nocache,writeback', 'modern', scratch),
    disk('virtio-blk-polled', 'IMAGE,writeback', 'transitional', scratch, polled),
    disk('virtio-blk-views', 'IMAGE,writeback', 'modern', scratch, views),
    { ...network('modern', views), name: 'virtio-net-views' },
    { ...network('transitional', polled), name: 'virtio-net-polled' },
    { ...consoles('legacy', msi), name: 'virtio-console-msi' },
    gpio('legacy'),
    gpio('modern'),
    input(),
    gpu(),
    i2c(),
    rpmb(),
    heci(),
    vsock(),
  ];
}

/**
 * @param filter names must begin with it
 * @throws Error when none does
 */
export async function makeTargets(seed: number, filter = ''): Promise<{ targets: Target[]; dispose(): void }> {
  const scratch = makeImages();
  const worker = bundledDataThread();
  await worker.build();
  const dispose = () => {
    scratch.dispose();
    worker.remove();
  };
  const chosen = recipes(scratch, worker.url).filter(
    (recipe) => recipe.name.startsWith(filter) || recipe.name.startsWith(`virtio-${filter}`),
  );
  if (chosen.length === 0) {
    dispose();
    throw new Error(`no virtio device is called ${filter}…`);
  }
  const targets = chosen.map((recipe, index): Target => {
    const random = new Random(seed + index * 7919);
    const machine = new FuzzMachine(recipe.make, recipe.choices);
    return {
      name: recipe.name,
      machine,
      random,
      guest: new HostileGuest(random, machine, recipe.shape),
      hostEvent: () => {
        if (random.oneIn(16)) machine.hsm.isFull = !machine.hsm.isFull;
        recipe.hostEvent?.(random);
      },
      check: () => {
        machine.ram.check();
        recipe.check?.();
      },
      dispose: () => recipe.dispose?.(),
    };
  });
  return { targets, dispose };
}
