/**
 * Plays the guest's side of virtio: memory, interrupt controller and a driver that fills rings as Linux does, over the
 * registers of a device's BARs.
 *
 *   const machine = new VirtioMachine();
 *   const driver = new VirtioDriver(machine, machine.add(virtioRnd, {}), 'legacy');
 *   await driver.init();                                  // all features, all queues, DRIVER_OK
 *   const used = driver.request(0, [{ write: 64 }]);      // one chain, kicked; what the device gave back
 */
import { expect } from 'vitest';
import type { BarIndex } from '../../devicemodel/chips/pci-config-space.ts';
import { ConfigSpace } from '../../devicemodel/chips/pci-config-space.ts';
import type { AccessSize, Gpa } from '../../devicemodel/core/address.ts';
import type { CharBackend } from '../../devicemodel/core/char-backend.ts';
import { CounterBook } from '../../devicemodel/core/counters.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import { type Mapping, map } from '../../devicemodel/core/host/mapping.ts';
import type { Hsm, IoeventfdSpec } from '../../devicemodel/core/hsm/hsm.ts';
import { Log } from '../../devicemodel/core/log.ts';
import { GuestMemory } from '../../devicemodel/core/memory.ts';
import { newWaits } from '../../devicemodel/core/waits.ts';
import type { PciEnv } from '../../devicemodel/hw/pci/driver.ts';
import type { EmulatedPciFunction, PciFunction } from '../../devicemodel/hw/pci/function.ts';
import { FakeClock } from './fake-clock.ts';
import { PackedDriverRing } from './packed-driver-ring.ts';

/** Where RAM is, unless a test asks for something else: two chunks that touch, and one above 4 GiB. */
export const defaultRam: ReadonlyArray<readonly [Gpa, number]> = [
  [0, 0x80000],
  [0x80000, 0x80000],
  [0x1_0000_0000, 0x20000],
];
export const RAM_SEAM = 0x80000;
export const HIGH_RAM = 0x1_0000_0000;

export type MachineChoices = Partial<PciEnv['machine']> & {
  readonly ram?: ReadonlyArray<readonly [Gpa, number]>;
  /** RAM without host addresses, as a WebAssembly engine has it. */
  readonly viewsOnly?: boolean;
};

/** One PCI slot's world. */
export class VirtioMachine {
  readonly clock = new FakeClock();
  readonly memory: GuestMemory;
  readonly lines: string[] = [];
  readonly msis: MsiMessage[] = [];
  readonly ioeventfds: Array<{ readonly spec: IoeventfdSpec; readonly assign: boolean }> = [];
  readonly counters = new CounterBook();
  readonly backends: FakeCharBackend[] = [];
  /** Level of the legacy line, and how often it was asserted. */
  intx = false;
  intxEdges = 0;
  /** Guest writes outside of RAM chunks would land here: nothing ever may. */
  readonly #mappings: Mapping[] = [];
  readonly #choices: MachineChoices;

  constructor(choices: MachineChoices = {}) {
    this.#choices = choices;
    const ram = choices.ram ?? defaultRam;
    this.memory = new GuestMemory(
      ram.map(([base, size]) => {
        if (choices.viewsOnly === true) return { base, bytes: new Uint8Array(size), hostAddress: undefined };
        const mapping = map(size, 'test guest RAM');
        this.#mappings.push(mapping);
        return { base, bytes: mapping.bytes, hostAddress: mapping.address };
      }),
    );
  }

  dispose(): void {
    for (const mapping of this.#mappings.splice(0)) mapping.dispose();
  }

  env(): PciEnv {
    const { ram: _ram, viewsOnly: _viewsOnly, ...machine } = this.#choices;
    const hsm = {
      backend: 'fake',
      ioeventfd: (spec: IoeventfdSpec, assign: boolean) => this.ioeventfds.push({ spec, assign }),
    };
    return {
      bdf: { bus: 0, device: 3, function: 0 },
      hsm: hsm as unknown as Hsm,
      memory: this.memory,
      clock: this.clock,
      log: new Log([{ maxLevel: 5, write: (level, line) => this.lines.push(`${level} ${line}`) }]),
      msi: { signal: (message) => this.msis.push({ ...message }) },
      power: { request: () => {} },
      waits: newWaits(() => {}),
      intx: () => ({
        gsi: 16,
        set: (asserted) => {
          if (asserted && !this.intx) this.intxEdges++;
          this.intx = asserted;
        },
      }),
      secondaryBus: () => {
        throw new Error('no virtio device is a bridge');
      },
      charBackend: (text) => {
        const backend = new FakeCharBackend(typeof text === 'string' ? text : JSON.stringify(text));
        this.backends.push(backend);
        return backend;
      },
      counters: (kind, part) => this.counters.of(kind, part === undefined ? 'device' : `device@${part}`),
      machine: {
        vmName: 'test',
        windows: false,
        virtioMsi: false,
        virtioPollNs: undefined,
        hasOvmf: false,
        isRtvm: false,
        ...machine,
      },
    };
  }
}

/** A back end with a string each way. */
export class FakeCharBackend implements CharBackend {
  readonly name: string;
  onReadable: (() => void) | undefined;
  written = '';
  flushes = 0;
  isStarted = false;
  #input: number[] = [];

  constructor(name: string) {
    this.name = name;
  }

  read(): number {
    return this.#input.shift() ?? -1;
  }
  get unread(): number {
    return this.#input.length;
  }
  write(byte: number): void {
    this.written += String.fromCharCode(byte);
  }
  flush(): void {
    this.flushes++;
  }
  start(): void {
    this.isStarted = true;
  }
  stop(): void {
    this.isStarted = false;
  }
  /** Someone types. */
  type(text: string): void {
    this.#input.push(...Buffer.from(text));
    this.onReadable?.();
  }
}

/** One descriptor as a driver would make it. */
export interface DescriptorSpec {
  /** Bytes the device reads. */
  readonly read?: Uint8Array | readonly number[] | string;
  /** Room for this many bytes of the device. */
  readonly write?: number;
  /** Where the buffer is; default: the next free place. */
  readonly at?: Gpa;
}

export interface UsedElement {
  /** Index of the first descriptor; the buffer id of a packed ring. */
  readonly head: number;
  readonly length: number;
}

interface DriverQueue {
  readonly size: number;
  readonly desc: Gpa;
  readonly avail: Gpa;
  readonly used: Gpa;
  /** Undefined: the rings are split, and the following is their state. */
  readonly packed: PackedDriverRing | undefined;
  nextDescriptor: number;
  availIdx: number;
  seenUsed: number;
  /** Available index at the last decision whether to kick. */
  decidedAt: number;
}

/** Registers of the legacy window. */
const Legacy = {
  hostFeatures: 0x00,
  guestFeatures: 0x04,
  pfn: 0x08,
  size: 0x0c,
  select: 0x0e,
  notify: 0x10,
  status: 0x12,
  isr: 0x13,
} as const;

const DescFlag = { Next: 1, Write: 2, Indirect: 4 } as const;

/** `packed`: the modern form with packed rings, which must be offered; `modern` leaves them alone. */
export type DriverMode = 'legacy' | 'modern' | 'packed';

const RING_PACKED = 1n << 34n;

export class VirtioDriver {
  readonly machine: VirtioMachine;
  readonly fn: EmulatedPciFunction;
  readonly config = new ConfigSpace();
  readonly mode: DriverMode;
  readonly queues: DriverQueue[] = [];
  /** Features accepted, after `init`. */
  features = 0n;
  #free: Gpa = 0x40000;
  /** Buffers of the last chain made, one per descriptor. */
  lastBuffers: Array<{ readonly at: Gpa; readonly length: number }> = [];

  constructor(machine: VirtioMachine, fn: PciFunction, mode: DriverMode = 'legacy') {
    if (fn.backing !== 'device-model') throw new Error('not emulated');
    this.machine = machine;
    this.fn = fn;
    this.mode = mode;
    fn.configure?.(this.config, {
      bdf: { bus: 0, device: 3, function: 0 },
      barAddress: (index) => (index === 0 ? 0x2000 : 0x8000_0000 + index * 0x10000),
    });
    this.config.seal();
  }

  // Registers.

  in(offset: number, size: AccessSize, bar: BarIndex = this.#bar): number {
    return this.fn.readBar(bar, offset, size);
  }
  out(offset: number, size: AccessSize, value: number, bar: BarIndex = this.#bar): void {
    this.fn.writeBar(bar, offset, size, value);
  }
  get #bar(): BarIndex {
    return this.mode === 'legacy' ? 0 : 4;
  }

  get status(): number {
    return this.mode === 'legacy' ? this.in(Legacy.status, 1) : this.in(20, 1);
  }
  set status(value: number) {
    this.out(this.mode === 'legacy' ? Legacy.status : 20, 1, value);
  }
  /** Reset the device; with queues in other hands that takes until they are back, and a vCPU would be held. */
  async reset(): Promise<void> {
    this.status = 0;
    await this.notHeld();
  }
  /** When the device takes the next access. */
  async notHeld(): Promise<void> {
    await expect.poll(() => this.fn.gate?.isClosed ?? false, { interval: 1, timeout: 10_000 }).toBe(false);
  }
  get needsReset(): boolean {
    return (this.status & 0x40) !== 0;
  }
  get isr(): number {
    return this.mode === 'legacy' ? this.in(Legacy.isr, 1) : this.in(0x1000, 1);
  }
  get hostFeatures(): bigint {
    if (this.mode === 'legacy') return BigInt(this.in(Legacy.hostFeatures, 4));
    this.out(0, 4, 0);
    const low = this.in(4, 4);
    this.out(0, 4, 1);
    return BigInt(low) | (BigInt(this.in(4, 4)) << 32n);
  }
  #acceptFeatures(features: bigint): void {
    if (this.mode === 'legacy') {
      this.out(Legacy.guestFeatures, 4, Number(features & 0xffffffffn));
    } else {
      this.out(8, 4, 0);
      this.out(12, 4, Number(features & 0xffffffffn));
      this.out(8, 4, 1);
      this.out(12, 4, Number(features >> 32n));
    }
    this.features = features;
  }
  /** Device configuration. */
  readConfig(offset: number, size: AccessSize): number {
    return this.in(this.#configBase + offset, size);
  }
  /** Legacy: the vector registers are there only with MSI-X. */
  get #configBase(): number {
    return this.mode !== 'legacy' ? 0x2000 : this.config.isMsixEnabled ? 0x18 : 0x14;
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.out(this.#configBase + offset, size, value);
  }
  kick(queue: number): void {
    const state = this.queues[queue];
    if (state !== undefined) state.decidedAt = state.availIdx;
    if (this.mode === 'legacy') this.out(Legacy.notify, 2, queue);
    else this.out(0x3000 + 4 * queue, 2, queue);
  }

  /** Turn on MSI-X with message data 0x40 + vector for every vector. */
  enableMsix(): void {
    const control = this.config.findCapability(0x11);
    if (control === undefined) throw new Error('no MSI-X');
    const vectors = (this.config.get16(control + 2) & 0x7ff) + 1;
    for (let i = 0; i < vectors; i++) {
      this.fn.writeBar(1, i * 16, 4, 0xfee00000);
      this.fn.writeBar(1, i * 16 + 4, 4, 0);
      this.fn.writeBar(1, i * 16 + 8, 4, 0x40 + i);
      this.fn.writeBar(1, i * 16 + 12, 4, 0);
    }
    this.config.write(control + 2, 2, 0x8000);
  }

  // Set-up.

  /** Everything up to DRIVER_OK. @param accept which of the offered features to take; default all. */
  init(accept: (offered: bigint) => bigint = (f) => f): void {
    this.status = 0;
    this.status = 1;
    this.status = 3;
    const accepted = accept(this.hostFeatures);
    this.#acceptFeatures(this.mode === 'packed' ? accepted : accepted & ~RING_PACKED);
    if (this.mode === 'packed') expect(this.features & RING_PACKED).toBe(RING_PACKED);
    if (this.mode !== 'legacy') {
      this.status = 0xb;
      expect(this.status & 8).toBe(8);
    }
    this.queues.length = 0;
    const count = this.mode === 'legacy' ? 64 : this.in(18, 2);
    for (let i = 0; i < count && this.setUpQueue(i); i++);
    this.status = this.mode === 'legacy' ? 7 : 0xf;
  }

  /**
   * What no driver should do: take DRIVER_OK back without a reset, settle on other features and go on.
   * @param newRings set every queue up anew; else the rings of before stay, and what is in them.
   */
  renegotiate(accept: (offered: bigint) => bigint, newRings: boolean): void {
    const wasPacked = (this.features & RING_PACKED) !== 0n;
    this.status = 3;
    const accepted = accept(this.hostFeatures);
    this.#acceptFeatures(wasPacked ? accepted : accepted & ~RING_PACKED);
    if (this.mode !== 'legacy') this.status = 0xb;
    const count = this.queues.length;
    if (newRings) {
      for (let i = 0; i < count; i++) {
        // The queue goes off before it can be placed elsewhere.
        if (this.mode === 'legacy') {
          this.out(Legacy.select, 2, i);
          this.out(Legacy.pfn, 4, 0);
        }
        this.setUpQueue(i);
      }
    }
    this.status = this.mode === 'legacy' ? 7 : 0xf;
  }

  /** @param sizeWanted other than what the device offers. @returns false when the device has no such queue. */
  setUpQueue(index: number, at?: Gpa, sizeWanted?: number): boolean {
    this.out(this.mode === 'legacy' ? Legacy.select : 22, 2, index);
    const offered = this.in(this.mode === 'legacy' ? Legacy.size : 24, 2);
    if (offered === 0) return false;
    if (sizeWanted !== undefined) this.out(24, 2, sizeWanted);
    const size = sizeWanted ?? offered;
    const desc = at ?? this.allocate(size * 16 + 6 + 2 * size + 4096 + 6 + 8 * size + 4096, 4096);
    const avail = desc + size * 16;
    const used = Math.ceil((avail + 6 + 2 * size) / 4096) * 4096;
    this.fill(desc, used + 6 + 8 * size - desc, 0);
    const isPacked = (this.features & RING_PACKED) !== 0n;
    const addresses = { desc, driverEvents: avail, deviceEvents: used };
    const packed = isPacked ? new PackedDriverRing(this.machine.memory, size, addresses) : undefined;
    this.queues[index] = { size, desc, avail, used, packed, nextDescriptor: 0, availIdx: 0, seenUsed: 0, decidedAt: 0 };
    if (this.mode === 'legacy') {
      this.out(Legacy.pfn, 4, desc / 4096);
    } else {
      for (const [offset, address] of [
        [32, desc],
        [40, avail],
        [48, used],
      ] as const) {
        this.out(offset, 4, address % 0x1_0000_0000);
        this.out(offset + 4, 4, Math.floor(address / 0x1_0000_0000));
      }
      this.out(28, 2, 1);
    }
    return true;
  }

  /** Fresh guest memory, never given back. */
  allocate(size: number, align = 16): Gpa {
    const at = Math.ceil(this.#free / align) * align;
    this.#free = at + size;
    return at;
  }

  // Memory.

  fill(at: Gpa, length: number, value: number): void {
    for (const piece of this.machine.memory.pieces(at, length)) piece.fill(value);
  }
  read(at: Gpa, length: number): Uint8Array {
    return this.machine.memory.read(at, length);
  }
  write(at: Gpa, data: Uint8Array): void {
    this.machine.memory.write(at, data);
  }

  // Rings.

  /** Write one descriptor. */
  setDescriptor(table: Gpa, index: number, address: Gpa | bigint, length: number, flags: number, next: number): void {
    const bytes = new Uint8Array(16);
    const view = new DataView(bytes.buffer);
    view.setBigUint64(0, BigInt.asUintN(64, BigInt(address)), true);
    view.setUint32(8, length, true);
    view.setUint16(12, flags, true);
    view.setUint16(14, next, true);
    this.write(table + index * 16, bytes);
  }

  /** Build a chain and make it available, without a kick. @returns its head. */
  add(queueIndex: number, specs: readonly DescriptorSpec[], options: { indirect?: boolean } = {}): number {
    const queue = this.queues[queueIndex] as DriverQueue;
    this.lastBuffers = specs.map((spec) => {
      const data = typeof spec.read === 'string' ? Buffer.from(spec.read) : spec.read;
      const length = spec.write ?? data?.length ?? 0;
      const at = spec.at ?? this.allocate(Math.max(length, 1));
      if (data !== undefined) this.write(at, Uint8Array.from(data));
      return { at, length };
    });
    const flagsOf = (i: number) =>
      ((specs[i] as DescriptorSpec).write !== undefined ? DescFlag.Write : 0) |
      (i + 1 < specs.length ? DescFlag.Next : 0);
    if (queue.packed !== undefined) {
      const buffers = this.lastBuffers.map((b, i) => ({ ...b, isWritable: specs[i]?.write !== undefined }));
      return queue.packed.add(buffers, options.indirect === true ? this.allocate(specs.length * 16) : undefined);
    }
    const head = queue.nextDescriptor;
    if (options.indirect === true) {
      const table = this.allocate(specs.length * 16);
      this.lastBuffers.forEach((b, i) => {
        this.setDescriptor(table, i, b.at, b.length, flagsOf(i), i + 1);
      });
      this.setDescriptor(queue.desc, head, table, specs.length * 16, DescFlag.Indirect, 0);
      queue.nextDescriptor = (head + 1) % queue.size;
    } else {
      this.lastBuffers.forEach((b, i) => {
        const at = (head + i) % queue.size;
        this.setDescriptor(queue.desc, at, b.at, b.length, flagsOf(i), (at + 1) % queue.size);
      });
      queue.nextDescriptor = (head + specs.length) % queue.size;
    }
    this.makeAvailable(queueIndex, head);
    return head;
  }

  /** Put a head into the available ring and move the index. */
  makeAvailable(queueIndex: number, head: number): void {
    const queue = this.queues[queueIndex] as DriverQueue;
    const { memory } = this.machine;
    memory.writeU16(queue.avail + 4 + 2 * (queue.availIdx % queue.size), head);
    queue.availIdx = (queue.availIdx + 1) & 0xffff;
    memory.writeU16(queue.avail + 2, queue.availIdx);
  }

  /** What the device gave back since the last look. */
  takeUsed(queueIndex: number): UsedElement[] {
    const queue = this.queues[queueIndex] as DriverQueue;
    if (queue.packed !== undefined) return queue.packed.takeUsed();
    const { memory } = this.machine;
    const idx = memory.readU16(queue.used + 2);
    const elements: UsedElement[] = [];
    while (queue.seenUsed !== idx) {
      const at = queue.used + 4 + 8 * (queue.seenUsed % queue.size);
      elements.push({ head: memory.readU32(at), length: memory.readU32(at + 4) });
      queue.seenUsed = (queue.seenUsed + 1) & 0xffff;
    }
    return elements;
  }

  /** Kick if the device wants to hear of what was made available since the last time, as Linux decides it. */
  kickIfWanted(queueIndex: number): void {
    const queue = this.queues[queueIndex] as DriverQueue;
    if (queue.packed !== undefined) {
      if (queue.packed.wantsKick()) this.kick(queueIndex);
      return;
    }
    const { memory } = this.machine;
    const before = queue.decidedAt;
    queue.decidedAt = queue.availIdx;
    const availEvent = memory.readU16(queue.used + 4 + 8 * queue.size);
    const isWanted =
      (this.features & (1n << 29n)) !== 0n
        ? ((queue.availIdx - availEvent - 1) & 0xffff) < ((queue.availIdx - before) & 0xffff)
        : (memory.readU16(queue.used) & 1) === 0;
    if (isWanted) this.kick(queueIndex);
  }

  /** One chain, kicked and waited for. */
  request(queueIndex: number, specs: readonly DescriptorSpec[], options: { indirect?: boolean } = {}): UsedElement {
    const head = this.add(queueIndex, specs, options);
    this.kickIfWanted(queueIndex);
    const used = this.takeUsed(queueIndex);
    expect(used.map((u) => u.head)).toEqual([head]);
    return used[0] as UsedElement;
  }

  /** Contents of buffer `index` of the last chain. */
  buffer(index: number, length?: number): Uint8Array {
    const buffer = this.lastBuffers[index] as { at: Gpa; length: number };
    return this.read(buffer.at, length ?? buffer.length);
  }
}
