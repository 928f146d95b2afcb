/**
 * A whole PC whose disk hangs in the host: every system call on the image first opens `IMAGE.stall`, if that is there. A
 * FIFO keeps it in open(2) until somebody else opens the other end, as a dead NFS server would.
 */
import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, rmSync, unlinkSync } from 'node:fs';
import { expect, vi } from 'vitest';
import type { FakeHsm } from './fake-hsm.ts';
import { type FakePc, makePc } from './fake-pc.ts';

export const DISK = { bus: 0, device: 3, function: 0 };
/** What is to be served at once is, on the busiest machine, by then; what waits still waits. */
export const WHILE_MS = 250;
/** Where the guest has its queue and its request. */
const RING = 0x10_0000;
const HEADER = 0x20_0000;
const DATA = 0x20_1000;
const STATUS = 0x20_2000;
const QUEUE_SIZE = 64;
const USED = RING + Math.ceil((QUEUE_SIZE * 16 + 6 + 2 * QUEUE_SIZE) / 4096) * 4096;
export const Legacy = { features: 4, pfn: 8, select: 0x0e, notify: 0x10, status: 0x12, config: 0x14 } as const;

/** Whoever waits for the host has its answer. */
function release(image: string): void {
  try {
    // Fails while nobody has the other end open: then nobody waits.
    const fd = openSync(`${image}.stall`, constants.O_WRONLY | constants.O_NONBLOCK);
    unlinkSync(`${image}.stall`);
    closeSync(fd);
  } catch {
    rmSync(`${image}.stall`, { force: true });
  }
}

export const later = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

/** A file that can be made to stall. */
export class StallingFile {
  readonly #path: string;

  constructor(path: string) {
    this.#path = path;
  }

  /** From now on the host does not answer. */
  stall(): void {
    execFileSync('mkfifo', [`${this.#path}.stall`]);
  }

  /** The host answers again, whoever waits for it included. */
  release(): void {
    release(this.#path);
  }
}

/** A PC with a disk in slot 3, its driver, and storage that stalls when it is told to. */
export class StallingPc {
  readonly pc: FakePc;
  readonly ended: Promise<unknown>;
  bar = 0;
  /** What the driver accepts. */
  features = 0;
  #availIdx = 0;

  readonly #file: StallingFile;

  /** @param slot what `-s` has behind `virtio-blk,`; IMAGE is the image. */
  constructor(image: string, slot = 'IMAGE', argv: readonly string[] = []) {
    this.#file = new StallingFile(image);
    const pc = makePc(['-s', `3,virtio-blk,${slot.replace('IMAGE', image)}`, ...argv], undefined, {
      hasOwnRam: true,
      vcpuCount: 2,
    });
    this.pc = pc;
    this.ended = pc.vm.run();
    this.ended.catch(() => {});
  }

  async dispose(): Promise<void> {
    this.release();
    this.pc.vm.power.request({ kind: 'poweroff', reason: 'the end of the test', isForced: true });
    await this.ended.catch(() => {});
    await this.pc.dispose();
  }

  stall(): void {
    this.#file.stall();
  }
  release(): void {
    this.#file.release();
  }

  get hsm(): FakeHsm {
    return this.pc.lives.at(-1) as FakeHsm;
  }
  get guest() {
    return this.hsm.guest;
  }
  get memory() {
    return this.pc.parts.memory;
  }
  out(register: number, size: 1 | 2 | 4, value: number, vcpu = 0): Promise<number> {
    return this.guest.pioWrite(this.bar + register, size, value, vcpu);
  }
  in(register: number, size: 1 | 2 | 4, vcpu = 0): Promise<number> {
    return this.guest.pioRead(this.bar + register, size, vcpu);
  }

  /** A driver that is ready. */
  async init(): Promise<void> {
    await vi.waitFor(() => expect(this.pc.vm.state).toBe('running'), { timeout: 10_000 });
    this.bar = (await this.guest.pciRead(DISK, 0x10, 4)) & ~3;
    for (const status of [0, 1, 3]) await this.out(Legacy.status, 1, status);
    await this.out(Legacy.features, 4, this.features);
    await this.out(Legacy.select, 2, 0);
    for (const piece of this.memory.pieces(RING, 0x4000)) piece.fill(0);
    this.#availIdx = 0;
    await this.out(Legacy.pfn, 4, RING / 4096);
    await this.out(Legacy.status, 1, 7);
  }

  /** Ask for a sector; not waited for. */
  read(sector: number): void {
    this.request(0, sector);
  }
  write(sector: number, value: number): void {
    for (const piece of this.memory.pieces(DATA, 512)) piece.fill(value);
    this.request(1, sector);
  }
  request(type: number, sector: number): void {
    const { memory } = this;
    memory.writeU32(HEADER, type);
    memory.writeU32(HEADER + 8, sector);
    memory.writeU8(STATUS, 0xff);
    const descriptor = (index: number, at: number, length: number, flags: number) => {
      const bytes = new DataView(new ArrayBuffer(16));
      bytes.setUint32(0, at, true);
      bytes.setUint32(8, length, true);
      bytes.setUint16(12, flags, true);
      bytes.setUint16(14, index + 1, true);
      memory.write(RING + 16 * index, new Uint8Array(bytes.buffer));
    };
    descriptor(0, HEADER, 16, 1);
    descriptor(1, DATA, 512, type === 0 ? 3 : 1);
    descriptor(2, STATUS, 1, 2);
    const avail = RING + 16 * QUEUE_SIZE;
    memory.writeU16(avail + 4 + 2 * (this.#availIdx % QUEUE_SIZE), 0);
    memory.writeU16(avail + 2, ++this.#availIdx);
    this.kick();
  }
  kick(): void {
    // The fake hypervisor has no ioeventfd that a guest could hit: the request page passes it on.
    void this.out(Legacy.notify, 2, 0, 1);
  }
  get used(): number {
    return this.memory.readU16(USED + 2);
  }
  /** Of the latest request; 0xff until it is done. */
  get status(): number {
    return this.memory.readU8(STATUS);
  }
  async isServed(): Promise<void> {
    const before = this.used;
    this.read(1);
    await vi.waitFor(() => expect(this.used).toBe(before + 1), { timeout: 10_000 });
    expect(this.status).toBe(0);
    expect(this.memory.readU8(DATA)).toBe(0x5a);
  }
  /** A request that the host keeps. */
  async getStuck(type = 0): Promise<void> {
    this.stall();
    this.request(type, 8);
    await this.in(Legacy.status, 1, 1);
    await later(50);
    expect(this.used).toBe(0);
  }
  /** Another one, of a machine that has served some. */
  async getStuckAgain(): Promise<void> {
    const before = this.used;
    this.stall();
    this.request(0, 8);
    await this.in(Legacy.status, 1, 1);
    await later(50);
    expect(this.used).toBe(before);
  }
  /** Other vCPUs and the host are served, and what the thread has been lent is left alone. */
  async othersAreServed(): Promise<void> {
    const assigned = this.hsm.calls.filter(({ method }) => method === 'ioeventfd').length;
    const from = performance.now();
    let turns = 0;
    while (performance.now() - from < WHILE_MS) {
      await this.guest.pioRead(0x71, 1, 1);
      await new Promise((resolve) => setTimeout(resolve, 1));
      turns++;
    }
    // On a machine that does nothing else there are a hundred.
    expect(turns).toBeGreaterThan(5);
    expect(this.used).toBe(0);
    expect(this.hsm.calls.filter(({ method }) => method === 'ioeventfd').length).toBe(assigned);
  }
}

/** Whether a promise is fulfilled. */
export function flag(promise: Promise<unknown>): { isSet: boolean } {
  const result = { isSet: false };
  promise.then(
    () => {
      result.isSet = true;
    },
    () => {},
  );
  return result;
}
