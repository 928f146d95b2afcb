/**
 * Hostile guests of the SATA controller: command lists of any content anywhere, stops and resets in the middle of
 * requests, registers at random, media that the host changes. Nothing may throw or take long, only guest RAM is written,
 * nothing but the guest's part of an image is read or written, and all that was lent comes back.
 */
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { ConfigSpace } from '../../devicemodel/chips/pci-config-space.ts';
import type { AccessSize } from '../../devicemodel/core/address.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';
import { checkOptions } from '../../devicemodel/core/options.ts';
import { Ahci } from '../../devicemodel/hw/pci/ahci/ahci.ts';
import { AhciOptions, parseAhciText } from '../../devicemodel/hw/pci/ahci/options.ts';
import { makeScratch } from '../../tools/scratch.mjs';
import { VirtioMachine } from '../support/virtio-driver.ts';
import { GuardedRam } from './guarded-ram.ts';
import { Random } from './random.ts';

const ABAR = 5;
const PORTS = 6;
/** Ports that have a drive. */
const DRIVES = 4;
const MAX_CALL_MS = 2000;
/** Steps between two turns of the event loop, and between two looks at what must not change. */
const TURN_EVERY = 64;
const LOOK_EVERY = 8192;
/** Steps of one machine. */
const LIFE_STEPS = 50_000;
const MAX_LINES_A_LIFE = 2000;
const MIB = 1 << 20;
/** What stands in the file around the part that is the guest's. */
const OUTSIDE = Buffer.from('outside of the range!!!!', 'latin1');

/** Where the guest has its lists, tables and data, mostly. */
const LISTS = 0x1000;
const FRAMES = 0x3000;
const TABLES = 0x4000;
const TABLE_BYTES = 0x800;
const RAM_END = 0x40000;

const ataCommands = [
  ...[0x25, 0x35, 0x60, 0x61, 0x60, 0x61, 0xa0, 0xa0, 0x20, 0x30, 0xc4, 0xc5, 0xc8, 0xca, 0x24, 0x34, 0x29, 0x39],
  ...[0x06, 0x64, 0x2f, 0x47, 0xec, 0xa1, 0xef, 0xc6, 0xe7, 0xea, 0xe5, 0xb0, 0x00, 0x08],
];
const packets = [0x00, 0x03, 0x12, 0x1b, 0x1e, 0x25, 0x28, 0x43, 0x46, 0x4a, 0x5a, 0xa0, 0xa8, 0xbe];

export interface AhciFuzzResult {
  readonly steps: number;
  readonly lives: number;
  /** Interrupts: a guest that breaks everything at once gets none. */
  readonly interrupts: number;
}

/** @throws Error with seed and step */
export async function fuzzAhci(seed: number, steps: number): Promise<AhciFuzzResult> {
  const random = new Random(seed);
  const folder = makeScratch('fuzz-ahci');
  let [done, lives, interrupts] = [0, 0, 0];
  try {
    while (done < steps) {
      const life = new Life(random, folder, lives % 2 === 1);
      lives++;
      try {
        done += await life.run(Math.min(LIFE_STEPS, steps - done));
      } catch (error) {
        const { message } = error as Error;
        throw new Error(`ahci: seed ${seed}, life ${lives}, step ${done + life.step}: ${message}`, { cause: error });
      } finally {
        interrupts += life.interrupts;
        await life.dispose();
      }
    }
  } finally {
    rmSync(folder, { recursive: true });
  }
  return { steps: done, lives, interrupts };
}

class Life {
  readonly #random: Random;
  readonly #ram: GuardedRam;
  readonly #machine = new VirtioMachine({ ram: [] });
  readonly #config = new ConfigSpace();
  readonly #fn: Ahci;
  readonly #disc: string;
  readonly #ranged: string;
  readonly #files: readonly string[];
  readonly #fds = openFds();
  readonly #changes = new Set<Promise<void>>();
  #failure: Error | undefined;
  step = 0;
  interrupts = 0;

  constructor(random: Random, folder: string, viewsOnly: boolean) {
    this.#random = random;
    this.#ram = new GuardedRam(viewsOnly);
    const file = (name: string, bytes: Uint8Array) => {
      const path = join(folder, name);
      writeFileSync(path, bytes);
      return path;
    };
    const disk = file('disk', new Uint8Array(MIB));
    this.#ranged = file('ranged', Buffer.alloc(MIB, OUTSIDE).fill(0, 1024 * 512, 1536 * 512));
    this.#disc = file('disc', new Uint8Array(MIB / 4).fill(0x41));
    this.#files = [disk, this.#ranged, this.#disc];
    const text =
      `hd:${disk},discard,writeback,cd:${this.#disc},hd:${this.#ranged},range=1024/512,discard,` +
      `hd:${this.#disc},ro,sectorsize=4096`;
    const env = this.#machine.env();
    this.#fn = new Ahci(checkOptions(AhciOptions, parseAhciText('ahci', 'hd', text)), {
      ...env,
      memory: this.#ram.memory,
      msi: { signal: () => void this.interrupts++ },
      intx: () => ({ gsi: 16, set: (isUp) => void (this.interrupts += +isUp) }),
    });
    this.#fn.configure(this.#config);
    this.#config.seal();
  }

  async run(steps: number): Promise<number> {
    await this.#fn.start();
    for (this.step = 0; this.step < steps; this.step++) {
      const from = performance.now();
      this.#act();
      if (performance.now() - from > MAX_CALL_MS) throw new Error('one access took too long');
      if (this.step % TURN_EVERY === 0) await this.#turn();
      if (this.step % LOOK_EVERY === 0) this.#look();
      if (this.#failure !== undefined) throw this.#failure;
    }
    await this.#end();
    return steps;
  }

  #act(): void {
    const random = this.#random;
    switch (random.below(16)) {
      case 0:
        this.#anyAccess();
        break;
      case 1:
        this.#scribble();
        break;
      case 2:
      case 3:
        this.#control();
        break;
      case 4:
        this.#setPort(this.#port(), random.pick([0x00, 0x08]), this.#place());
        break;
      case 5:
        this.#acknowledge();
        break;
      case 6:
        if (random.oneIn(500)) this.#changeMedium();
        else if (random.oneIn(100)) this.#setHba(4, random.pick([1, 2, 0, random.value()]));
        else if (random.oneIn(20))
          this.#config.write(0x42, 2, random.pick([0, 1, 0x11, 0x31, random.value() & 0xffff]));
        else this.#bringUp(this.#port());
        break;
      default:
        this.#issue();
        break;
    }
  }

  #port(): number {
    return this.#random.oneIn(16) ? this.#random.below(PORTS) : this.#random.below(DRIVES);
  }

  #setHba(reg: number, value: number): void {
    this.#fn.writeBar(ABAR, reg, 4, value >>> 0);
  }

  #setPort(port: number, reg: number, value: number): void {
    this.#setHba(0x100 + port * 0x80 + reg, value);
  }

  #getPort(port: number, reg: number): number {
    return this.#fn.readBar(ABAR, 0x100 + port * 0x80 + reg, 4);
  }

  #anyAccess(): void {
    const random = this.#random;
    const size = random.pick([1, 2, 4] as const) as AccessSize;
    const offset = random.below(0x400);
    if (random.oneIn(2)) this.#fn.writeBar(ABAR, offset, size, random.value() % 2 ** (8 * size));
    const value = this.#fn.readBar(ABAR, offset, size);
    if (!(value >= 0 && value < 2 ** (8 * size))) throw new Error(`a read of ${size} bytes gave ${value}`);
  }

  /** A few bytes anywhere where structures are. */
  #scribble(): void {
    const random = this.#random;
    const at = LISTS + random.below(TABLES + 0x8000 - LISTS);
    this.#ram.memory.writeU32(at & ~3, random.value());
  }

  /** Start, stop, COMRESET, command list override. */
  #control(): void {
    const random = this.#random;
    const port = this.#port();
    if (random.oneIn(8)) this.#setPort(port, 0x2c, random.pick([1, 0, 0x301, random.value()]));
    else if (random.oneIn(4)) this.#setPort(port, 0x18, random.oneIn(4) ? random.value() : 0x16);
    else this.#setPort(port, 0x18, random.pick([0x17, 0x17, 0x17, 0x1f, 0x07]));
  }

  /** As a driver does. */
  #bringUp(port: number): void {
    this.#setPort(port, 0x18, 0x06);
    this.#setPort(port, 0x00, LISTS + (port & 3) * 0x400);
    this.#setPort(port, 0x04, 0);
    this.#setPort(port, 0x08, FRAMES + (port & 3) * 0x100);
    this.#setPort(port, 0x0c, 0);
    this.#setPort(port, 0x2c, 1);
    this.#setPort(port, 0x2c, 0);
    this.#setPort(port, 0x10, 0xffff_ffff);
    this.#setPort(port, 0x14, 0xffff_ffff);
    this.#setHba(4, 0x8000_0002);
    this.#setPort(port, 0x18, 0x17);
  }

  /** An error stops a port: as a driver does, or not at all. */
  #acknowledge(): void {
    const port = this.#port();
    const status = this.#getPort(port, 0x10);
    this.#setPort(port, 0x10, status);
    this.#setHba(8, 1 << port);
    if ((status & 0x6000_0000) !== 0 && !this.#random.oneIn(8)) {
      this.#setPort(port, 0x18, 0x16);
      this.#setPort(port, 0x18, 0x1f);
    }
  }

  /** One or several slots with commands in them. */
  #issue(): void {
    const random = this.#random;
    const port = this.#port();
    let bits = 0;
    for (let i = random.oneIn(8) ? 1 + random.below(32) : 1; i > 0; i--) {
      const slot = random.below(32);
      this.#prepare(port, slot);
      bits |= 1 << slot;
    }
    if (random.oneIn(16)) bits = random.value();
    if (random.oneIn(2)) this.#setPort(port, 0x34, bits);
    this.#setPort(port, 0x38, bits);
  }

  #prepare(port: number, slot: number): void {
    const random = this.#random;
    const { memory } = this.#ram;
    const header = LISTS + (port & 3) * 0x400 + slot * 32;
    const isAnywhere = random.oneIn(32);
    const table = isAnywhere ? this.#place() : TABLES + random.below(16) * TABLE_BYTES;
    const regions = random.oneIn(16) ? random.below(120) : random.below(4);
    memory.writeU32(header, 5 | (((random.oneIn(64) ? random.value() : regions) & 0xffff) << 16));
    memory.writeU32(header + 8, table % 2 ** 32);
    memory.writeU32(header + 12, Math.floor(table / 2 ** 32));
    if (!memory.contains(table, 0x80 + regions * 16)) return;
    this.#frame(table, port);
    const prdt = new DataView(new ArrayBuffer(regions * 16));
    for (let i = 0; i < regions; i++) {
      const place = this.#place();
      prdt.setUint32(i * 16, place % 2 ** 32, true);
      prdt.setUint32(i * 16 + 4, Math.floor(place / 2 ** 32), true);
      prdt.setUint32(i * 16 + 12, this.#count(), true);
    }
    memory.write(table + 0x80, new Uint8Array(prdt.buffer));
  }

  #frame(table: number, port: number): void {
    const random = this.#random;
    const { memory } = this.#ram;
    const command = random.oneIn(32)
      ? random.below(256)
      : random.pick(port === 1 ? [0xa0, 0xa0, 0xa1, 0xef] : ataCommands);
    const frame = new Uint8Array(0x50);
    frame.set([random.oneIn(64) ? random.below(256) : 0x27, random.oneIn(32) ? random.below(256) : 0x80, command]);
    const lba = random.oneIn(8) ? random.value() : random.below(2048);
    const count = random.oneIn(8) ? random.below(0x10000) : random.below(17);
    frame.set([count & 0xff, lba & 0xff, (lba >> 8) & 0xff, (lba >> 16) & 0xff, random.below(256)], 3);
    frame.set([lba >>> 24, random.oneIn(16) ? random.below(256) : 0, 0, count >> 8], 8);
    frame.set(
      [random.oneIn(4) ? random.below(256) : count & 0xff, count >> 8, 0, random.pick([0, 0, 4]), random.below(2)],
      12,
    );
    if (random.oneIn(4)) frame[3] = random.pick([1, 2, 3, 0x10, 0x82]);
    frame.set(
      [random.pick(packets), random.below(4), 0, 0, 0, random.below(128), random.below(4), 0, random.below(20)],
      0x40,
    );
    if (random.oneIn(8)) frame[random.below(0x50)] = random.below(256);
    memory.write(table, frame);
  }

  /** A guest address: mostly RAM, often at its ends. */
  #place(): number {
    const random = this.#random;
    switch (random.below(8)) {
      case 0:
        return random.wide();
      case 1:
        return random.pick([0, 0x1ff00, 0x20000, RAM_END - 512, RAM_END - 1, RAM_END, 0x1_0000_0000, 0x1_0000_ff00]);
      default:
        return random.below(RAM_END);
    }
  }

  #count(): number {
    const random = this.#random;
    return random.oneIn(8) ? random.value() : random.pick([511, 511, 4095, 0, 1, 2047, 0xffff]);
  }

  #changeMedium(): void {
    const image = { path: this.#disc, ro: true, writeback: false, nocache: false };
    const change = this.#fn.changeMedium(1, this.#random.oneIn(2) ? undefined : image).catch((error: Error) => {
      // Over another.
      if (!(error instanceof ConfigError)) this.#failure = error;
    });
    this.#changes.add(change);
    void change.then(() => this.#changes.delete(change));
  }

  async #turn(): Promise<void> {
    this.#machine.clock.advance(1_000_000);
    await new Promise((resolve) => setImmediate(resolve));
    if (this.#random.oneIn(50)) await this.#machineReset();
  }

  async #machineReset(): Promise<void> {
    await this.#settle();
    this.#fn.reset();
    if (this.#fn.readBar(ABAR, 4, 4) !== 0x8000_0000) throw new Error('the reset is not over');
    for (let port = 0; port < DRIVES; port++) this.#bringUp(port);
  }

  /** The clock goes on while the machine waits. */
  async #settle(): Promise<void> {
    let isOver = false;
    const wait = Promise.resolve(this.#fn.settle(false)).finally(() => {
      isOver = true;
    });
    while (!isOver) {
      this.#machine.clock.advance(1_000_000);
      await new Promise((resolve) => setImmediate(resolve));
    }
    await wait;
  }

  #look(): void {
    this.#ram.check();
    for (const path of this.#files) {
      const size = path === this.#disc ? MIB / 4 : MIB;
      if (statSync(path).size !== size) throw new Error(`${path} has another size`);
    }
    for (const chunk of this.#ram.memory.chunks) {
      if (Buffer.from(chunk.bytes.buffer, chunk.bytes.byteOffset, chunk.bytes.length).includes(OUTSIDE)) {
        throw new Error('the guest read what is not its part of the file');
      }
    }
    const ranged = readFileSync(this.#ranged);
    const expected = Buffer.alloc(MIB, OUTSIDE);
    if (!ranged.subarray(0, 1024 * 512).equals(expected.subarray(0, 1024 * 512))) throw new Error('before the range');
    if (!ranged.subarray(1536 * 512).equals(expected.subarray(1536 * 512))) throw new Error('behind the range');
    if (readFileSync(this.#disc).some((byte) => byte !== 0x41)) throw new Error('a disc was written to');
    if (this.#machine.lines.length > MAX_LINES_A_LIFE)
      throw new Error(`${this.#machine.lines.length} lines in the log`);
  }

  /** All comes back, and another guest finds a controller that works. */
  async #end(): Promise<void> {
    await Promise.all(this.#changes);
    await this.#machineReset();
    await this.#settle();
    this.#look();
    this.#setPort(0, 0x18, 0x16);
    this.#bringUp(0);
    const { memory } = this.#ram;
    memory.write(TABLES, Uint8Array.of(0x27, 0x80, 0x25, 0, 1, 0, 0, 0x40, 0, 0, 0, 0, 1, 0, 0, 0));
    memory.writeU64(TABLES + 0x80, 0x20000n);
    memory.writeU32(TABLES + 0x8c, 511);
    memory.writeU32(LISTS, 5 | (1 << 16));
    memory.writeU64(LISTS + 8, BigInt(TABLES));
    this.#setPort(0, 0x38, 1);
    await this.#settle();
    if (this.#getPort(0, 0x38) !== 0 || this.#getPort(0, 0x20) !== 0x50) throw new Error('a good command fails');
  }

  async dispose(): Promise<void> {
    await Promise.all(this.#changes);
    await this.#settle().catch(() => {});
    await this.#fn.stop();
    this.#ram.dispose();
    this.#machine.dispose();
    const left = openFds() - this.#fds;
    if (left > 0 && this.#failure === undefined) throw new Error(`${left} descriptors are left open`);
  }
}

function openFds(): number {
  return readdirSync('/proc/self/fd').length;
}
