/**
 * Hostile guest: random registers, rings and memory against every virtio device, in all transports. A failure names the
 * seed and the step; the same seed does the same again.
 *
 *   npx tsx test/fuzz/virtio.ts [--seed N] [--steps N] [--device virtio-blk]
 *
 * What is checked: nothing throws, every call ends soon, reads are unsigned and in range, and no byte outside of guest
 * RAM changes (RAM lies between guard bytes).
 */
import { mkdtempSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import type { AccessSize } from '../../devicemodel/core/address.ts';
import { type Mapping, map } from '../../devicemodel/core/host/mapping.ts';
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import { Log } from '../../devicemodel/core/log.ts';
import { GuestMemory } from '../../devicemodel/core/memory.ts';
import { checkOptions } from '../../devicemodel/core/options.ts';
import { ConfigSpace } from '../../devicemodel/hw/pci/config-space.ts';
import type { PciEnv } from '../../devicemodel/hw/pci/driver.ts';
import type { BarIndex } from '../../devicemodel/hw/pci/function.ts';
import { virtioBlk } from '../../devicemodel/hw/pci/virtio/block.ts';
import { BlockOptions, parseBlockText } from '../../devicemodel/hw/pci/virtio/block-options.ts';
import { virtioConsole } from '../../devicemodel/hw/pci/virtio/console.ts';
import { ConsoleOptions, parseConsoleText } from '../../devicemodel/hw/pci/virtio/console-options.ts';
import type { InputSource } from '../../devicemodel/hw/pci/virtio/evdev.ts';
import { VirtioI2c } from '../../devicemodel/hw/pci/virtio/i2c.ts';
import type { I2cBus } from '../../devicemodel/hw/pci/virtio/i2c-bus.ts';
import { VirtioInput } from '../../devicemodel/hw/pci/virtio/input.ts';
import { VirtioNet } from '../../devicemodel/hw/pci/virtio/net.ts';
import { NetOptions, parseNetText } from '../../devicemodel/hw/pci/virtio/net-options.ts';
import { transportModes } from '../../devicemodel/hw/pci/virtio/options.ts';
import { virtioRnd } from '../../devicemodel/hw/pci/virtio/rng.ts';
import { VirtioPci } from '../../devicemodel/hw/pci/virtio/transport.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { type FramePeer, socketPair } from '../support/socket-pair.ts';
import { FakeCharBackend } from '../support/virtio-driver.ts';

const GUARD = 4096;
const GUARD_BYTE = 0xa5;
/** Small, so that random addresses often hit; two chunks that touch, and one far up. */
const RAM: ReadonlyArray<readonly [number, number]> = [
  [0, 0x20000],
  [0x20000, 0x20000],
  [0x1_0000_0000, 0x10000],
];
/** One call into a device may take this long; an endless loop takes longer. */
const MAX_CALL_MS = 2000;

/** mulberry32: small, and the same everywhere. */
class Random {
  #state: number;
  constructor(seed: number) {
    this.#state = seed >>> 0;
  }
  u32(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (t ^ (t >>> 14)) >>> 0;
  }
  below(n: number): number {
    return this.u32() % n;
  }
  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)] as T;
  }
  /** Values that tend to hurt. */
  value(): number {
    switch (this.below(6)) {
      case 0:
        return this.u32();
      case 1:
        return this.below(256);
      case 2:
        return this.pick([
          0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff,
        ]);
      case 3:
        return this.below(64) * 4096;
      default:
        return this.below(0x50000);
    }
  }
}

class World {
  readonly clock = new FakeClock();
  readonly memory: GuestMemory;
  readonly mappings: Mapping[] = [];
  interrupts = 0;

  constructor() {
    this.memory = new GuestMemory(
      RAM.map(([base, size]) => {
        const mapping = map(size + 2 * GUARD, 'fuzz RAM');
        mapping.bytes.fill(GUARD_BYTE, 0, GUARD);
        mapping.bytes.fill(GUARD_BYTE, GUARD + size);
        this.mappings.push(mapping);
        return {
          base,
          bytes: mapping.bytes.subarray(GUARD, GUARD + size),
          hostAddress: mapping.address + BigInt(GUARD),
        };
      }),
    );
  }

  checkGuards(): void {
    for (const { bytes } of this.mappings) {
      for (let i = 0; i < GUARD; i++) {
        if (bytes[i] !== GUARD_BYTE || bytes[bytes.length - 1 - i] !== GUARD_BYTE) {
          throw new Error('memory outside of guest RAM was written');
        }
      }
    }
  }

  env(virtioPollNs: number | undefined): PciEnv {
    return {
      bdf: { bus: 0, device: 3, function: 0 },
      hsm: { ioeventfd: () => {} } as unknown as Hsm,
      memory: this.memory,
      clock: this.clock,
      log: new Log([]),
      msi: { signal: () => this.interrupts++ },
      power: { request: () => {} },
      intx: () => ({ gsi: 16, set: () => this.interrupts++ }),
      charBackend: () => new EndlessBackend('fuzz'),
      machine: {
        vmName: 'fuzz',
        windows: false,
        virtioMsi: false,
        virtioPollNs,
        hasOvmf: false,
        isRtvm: false,
      },
    };
  }
}

/** Always has something to read, and keeps nothing. */
class EndlessBackend extends FakeCharBackend {
  override read(): number {
    return 0x78;
  }
  override write(): void {}
}

const endlessInput: InputSource = {
  name: () => Buffer.from('fuzz'),
  ids: () => [1, 2, 3, 4],
  properties: (size) => new Uint8Array(size).fill(1),
  codes: (_type, size) => new Uint8Array(size).fill(1),
  axis: () => [0, 1, 2, 3, 4],
  read: (into) => {
    into.type = 0;
    into.code = 0;
    into.value = 0;
    return true;
  },
  write: () => {},
  watch: () => () => {},
  close: () => {},
};

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

interface Target {
  readonly name: string;
  readonly fn: VirtioPci;
  readonly config: ConfigSpace;
  readonly peer: FramePeer | undefined;
}

function makeTargets(world: World, imagePath: string): Target[] {
  const targets: Target[] = [];
  const add = (name: string, fn: VirtioPci, peer?: FramePeer) => {
    const config = new ConfigSpace();
    fn.configure(config, { bdf: { bus: 0, device: 3, function: 0 }, barAddress: (index) => 0x2000 + index * 0x10000 });
    config.seal();
    targets.push({ name, fn, config, peer });
  };
  for (const transport of transportModes) {
    const poll = transport === 'transitional' ? 10_000_000 : undefined;
    const env = world.env(poll);
    const blockText = `mq=2,${imagePath},writeback,discard=64:4:1,transport=${transport},range=${transportModes.indexOf(transport) * 64}/64`;
    const block = checkOptions(BlockOptions, parseBlockText(blockText)) as Parameters<typeof virtioBlk.create>[0];
    add('virtio-blk', virtioBlk.create(block, env) as VirtioPci);
    const ports = checkOptions(ConsoleOptions, parseConsoleText(`@stdio:a,pty:b,transport=${transport}`));
    add('virtio-console', virtioConsole.create(ports, env) as VirtioPci);
    add('virtio-rnd', virtioRnd.create({ kernel: 'off', transport }, env) as VirtioPci);
    const [fd, peer] = socketPair();
    const net = checkOptions(NetOptions, parseNetText(`tap=fuzz,transport=${transport}`)) as NetOptions;
    const wires = { clock: env.clock, log: env.log, mac: [2, 0, 0, 0, 0, 1], openTap: () => fd };
    add(
      'virtio-net',
      new VirtioPci(new VirtioNet(net, wires), env, {
        mode: transport,
        identity: { legacyDeviceId: 0x1000, type: 1, classCode: 0x020000 },
      }),
      peer,
    );
  }
  const env = world.env(undefined);
  const input = new VirtioInput(() => endlessInput, 'serial', env.log);
  add(
    'virtio-input',
    new VirtioPci(input, env, { mode: 'modern', identity: { legacyDeviceId: 0, type: 18, classCode: 0x098000 } }),
  );
  const i2c = new VirtioI2c(() => [{ bus: new FickleBus(), addresses: [1, 2, 3, 4, 5] }]);
  add(
    'virtio-i2c',
    new VirtioPci(i2c, env, { mode: 'modern', identity: { legacyDeviceId: 0, type: 34, classCode: 0x050000 } }),
  );
  return targets;
}

const SIZES: readonly AccessSize[] = [1, 2, 4];

class Fuzzer {
  readonly #random: Random;
  readonly #world: World;
  readonly #chunks: ReadonlyArray<{ readonly base: number; readonly bytes: Uint8Array }>;
  steps = 0;
  kicks = 0;
  served = 0;

  constructor(random: Random, world: World) {
    this.#random = random;
    this.#world = world;
    this.#chunks = world.memory.chunks;
  }

  /** A place in RAM, as guest address. */
  #place(): number {
    const chunk = this.#random.pick(this.#chunks);
    return chunk.base + this.#random.below(chunk.bytes.length);
  }

  #pokeRam(): void {
    const chunk = this.#random.pick(this.#chunks);
    const at = this.#random.below(chunk.bytes.length - 4);
    const value = this.#random.value();
    for (let i = 0; i < 4; i++) chunk.bytes[at + i] = (value >>> (8 * i)) & 0xff;
  }

  #access(target: Target): void {
    const random = this.#random;
    const bar = random.pick<BarIndex>([0, 0, 1, 2, 4, 4]);
    const size = random.pick(SIZES);
    const offset = bar === 4 ? random.below(4) * 0x1000 + random.below(140) : random.below(96);
    if (random.below(3) === 0) {
      const value = target.fn.readBar(bar, offset, size);
      if (!(Number.isInteger(value) && value >= 0 && value < 2 ** (8 * size))) {
        throw new Error(`${target.name}: BAR ${bar} offset ${offset} size ${size} reads ${value}`);
      }
    } else {
      const value = random.value();
      target.fn.writeBar(bar, offset, size, size === 4 ? value : value & (size === 2 ? 0xffff : 0xff));
    }
  }

  #configAccess(target: Target): void {
    const random = this.#random;
    const offset = 0x40 + random.below(0xc0);
    const size = random.pick(SIZES);
    if (random.below(2) === 0) target.config.read(offset, size);
    else target.config.write(offset, size, random.value() & (size === 4 ? -1 : size === 2 ? 0xffff : 0xff));
  }

  /** A driver that behaves until DRIVER_OK: otherwise chance hardly ever gets behind it. */
  #setUp(target: Target): void {
    const { fn } = target;
    const random = this.#random;
    const isLegacy = fn.mode === 'legacy' || (fn.mode === 'transitional' && random.below(2) === 0);
    if (isLegacy) {
      fn.writeBar(0, 0x12, 1, 0);
      fn.writeBar(0, 0x12, 1, 3);
      const offered = fn.readBar(0, 0, 4);
      fn.writeBar(0, 4, 4, random.below(2) === 0 ? offered : (offered & random.u32()) >>> 0);
      for (let i = 0; i < Math.min(fn.queues.length, 6); i++) {
        fn.writeBar(0, 0x0e, 2, i);
        fn.writeBar(0, 0x08, 4, random.below(20) === 0 ? random.value() : 1 + random.below(0x30));
      }
      fn.writeBar(0, 0x12, 1, 7);
    } else {
      fn.writeBar(4, 20, 1, 0);
      fn.writeBar(4, 20, 1, 3);
      for (const half of [0, 1]) {
        fn.writeBar(4, 0, 4, half);
        const offered = fn.readBar(4, 4, 4);
        fn.writeBar(4, 8, 4, half);
        fn.writeBar(4, 12, 4, half === 1 || random.below(2) === 0 ? offered : (offered & random.u32()) >>> 0);
      }
      fn.writeBar(4, 20, 1, 0xb);
      for (let i = 0; i < Math.min(fn.queues.length, 6); i++) {
        fn.writeBar(4, 22, 2, i);
        if (random.below(2) === 0) fn.writeBar(4, 24, 2, 1 << random.below(8));
        for (const offset of [32, 40, 48]) {
          const at = random.below(20) === 0 ? random.value() : this.#place() & ~0xf;
          fn.writeBar(4, offset, 4, (at % 0x1_0000_0000) >>> 0);
          fn.writeBar(4, offset + 4, 4, Math.floor(at / 0x1_0000_0000));
        }
        fn.writeBar(4, 28, 2, 1);
      }
      fn.writeBar(4, 20, 1, 0xf);
    }
  }

  /** A chain that is mostly right, offered and kicked. */
  #offer(target: Target): void {
    const random = this.#random;
    const queue = random.pick(target.fn.queues.slice(0, 6));
    if (!queue.isReady) return;
    const { desc, avail, used } = queue.addresses;
    const { memory } = this.#world;
    const before = memory.readU16(used + 2);
    const count = 1 + random.below(5);
    const head = random.below(queue.size);
    const firstWritable = random.below(count + 1);
    for (let i = 0; i < count; i++) {
      const at = desc + ((head + i) % queue.size) * 16;
      const address = random.below(200) === 0 ? random.value() : this.#place();
      const length =
        random.below(200) === 0
          ? random.value()
          : random.pick([0, 1, 8, 12, 16, 16, 64, 512, 512, 513, 1024, 4096, random.below(70000)]);
      memory.writeU32(at, (address % 0x1_0000_0000) >>> 0);
      memory.writeU32(at + 4, Math.floor(address / 0x1_0000_0000));
      memory.writeU32(at + 8, length);
      let flags = (i + 1 < count ? 1 : 0) | (i >= firstWritable ? 2 : 0);
      if (random.below(300) === 0) flags = random.below(8);
      memory.writeU16(at + 12, flags);
      memory.writeU16(at + 14, random.below(400) === 0 ? random.value() & 0xffff : (head + i + 1) % queue.size);
      if (i === 0 && firstWritable > 0 && address + 16 < 0x40000) {
        // Requests of disks and control messages of consoles begin with small numbers.
        const words = [
          random.below(14),
          random.below(8),
          random.below(80),
          random.below(100) === 0 ? random.value() : 0,
        ];
        memory.write(address, new Uint8Array(Uint32Array.from(words).buffer));
      }
    }
    const index = memory.readU16(avail + 2);
    memory.writeU16(avail + 4 + 2 * (index % queue.size), head);
    const jump = random.below(500) === 0 ? random.below(0x10000) : 1;
    memory.writeU16(avail + 2, (index + jump) & 0xffff);
    this.#kick(target, queue.index);
    const served = (memory.readU16(used + 2) - before) & 0xffff;
    // Random buffers also land in the used ring.
    if (served <= queue.size) this.served += served;
  }

  #kick(target: Target, queue: number): void {
    this.kicks++;
    const { fn } = target;
    if (fn.mode === 'legacy') fn.writeBar(0, 0x10, 2, queue);
    else if (this.#random.below(2) === 0) fn.writeBar(2, 0, 2, queue);
    else fn.writeBar(4, 0x3000 + 4 * queue, 2, queue);
  }

  step(target: Target): void {
    this.steps++;
    const random = this.#random;
    // A broken device only waits for its reset.
    if ((target.fn.status & 0x40) !== 0 && random.below(8) === 0) this.#setUp(target);
    switch (random.below(40)) {
      case 0:
        this.#setUp(target);
        break;
      case 1:
        this.#configAccess(target);
        break;
      case 2:
        this.#world.clock.advance(random.pick([1, 1000, 6e9]));
        break;
      case 3:
        if (random.below(50) === 0) target.fn.reset();
        break;
      case 4:
        while (target.peer?.receive() !== undefined);
        break;
      case 5:
      case 6:
      case 7:
      case 8:
      case 9:
        this.#access(target);
        break;
      case 10:
      case 11:
      case 12:
      case 13:
        this.#pokeRam();
        break;
      case 14:
        this.#kick(target, random.below(8));
        break;
      default:
        this.#offer(target);
    }
  }
}

async function main(): Promise<void> {
  const { values } = parseArgs({
    options: { seed: { type: 'string' }, steps: { type: 'string' }, device: { type: 'string' } },
  });
  const seed = values.seed === undefined ? Date.now() >>> 0 : Number(values.seed);
  const steps = Number(values.steps ?? 1_000_000);
  const scratch = mkdtempSync(
    join(statSync('/dev/shm', { throwIfNoEntry: false }) ? '/dev/shm' : tmpdir(), 'virtio-fuzz-'),
  );
  const imagePath = join(scratch, 'disk');
  writeFileSync(imagePath, Buffer.alloc(3 * 64 * 512));
  const world = new World();
  const targets = makeTargets(world, imagePath).filter((t) => values.device === undefined || t.name === values.device);
  const fuzzer = new Fuzzer(new Random(seed), world);
  const order = new Random(seed ^ 0x5eed);
  let failed = false;
  try {
    for (const target of targets) await target.fn.start();
    let target = targets[0] as Target;
    for (let step = 0; step < steps; step++) {
      // Runs on one device: it takes several steps to get anywhere.
      if (step % 200 === 0) target = order.pick(targets);
      const from = performance.now();
      try {
        fuzzer.step(target);
      } catch (error) {
        throw new Error(`${target.name} (${target.fn.mode}), seed ${seed}, step ${step}`, { cause: error });
      }
      if (performance.now() - from > MAX_CALL_MS) {
        throw new Error(`${target.name} (${target.fn.mode}), seed ${seed}, step ${step}: one call took too long`);
      }
      if (step % 50_000 === 0) {
        world.checkGuards();
        // Back ends that wait for the event loop have their turn.
        for (const t of targets) t.peer?.send(new Uint8Array(64));
        await new Promise((resolve) => setImmediate(resolve));
        for (const t of targets) while (t.peer?.receive() !== undefined);
      }
    }
    world.checkGuards();
    if (statSync(imagePath).size !== 3 * 64 * 512) throw new Error('the image changed its size');
  } catch (error) {
    failed = true;
    console.error(error);
  }
  for (const target of targets) await target.fn.stop();
  rmSync(scratch, { recursive: true });
  console.log(
    `virtio fuzz: seed ${seed}, ${fuzzer.steps} steps on ${targets.length} devices, ${fuzzer.kicks} kicks, ` +
      `${fuzzer.served} requests served, ${world.interrupts} interrupts${failed ? ': FAILED' : ''}`,
  );
  process.exitCode = failed ? 1 : 0;
}

await main();
