/**
 * A VM on the software engine that runs a few bytes of machine code: no loader, no board. The device model is the
 * function `serve` of the test.
 */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import { IoreqPage } from '../../devicemodel/core/ioreq-page.ts';
import { silentLog } from '../../devicemodel/core/log.ts';
import { GuestMemory, type RamChunk } from '../../devicemodel/core/memory.ts';
import { openSoftHsm } from '../../hypervisor/soft/open.ts';

export const CODE_BASE = 0x1000;
export const IDT_BASE = 0x8000;
const RAM_BYTES = 2 * 1024 * 1024;
const STACK = 0x7000;

export interface SoftVmOptions {
  readonly name?: string;
  /** Shared by VMs that should meet. */
  readonly runDirectory?: string;
  /** Drivers of its PCI slots, as far as the hypervisor minds them. */
  readonly drivers?: readonly string[];
  /** Answer the pending request of slot 0; the default answers reads with 0. Notified afterwards. */
  readonly onRequest?: (page: IoreqPage) => void;
  readonly onTripleFault?: () => void;
}

export class SoftVm {
  readonly hsm: Hsm;
  readonly ram: Uint8Array;
  /** The same, as devices have it. */
  readonly memory: GuestMemory;
  readonly page: IoreqPage;
  readonly vmid: number;
  /** Set by a test whose device model holds back its answer. */
  holdAnswers = false;
  readonly #options: SoftVmOptions;
  readonly #ownDirectory: string | undefined;

  private constructor(hsm: Hsm, ram: RamChunk, vmid: number, options: SoftVmOptions, ownDirectory?: string) {
    this.hsm = hsm;
    this.ram = ram.bytes;
    this.memory = new GuestMemory([ram]);
    this.vmid = vmid;
    this.page = new IoreqPage(hsm.ioreqPage);
    this.#options = options;
    this.#ownDirectory = ownDirectory;
  }

  static async create(options: SoftVmOptions = {}): Promise<SoftVm> {
    const ownDirectory = options.runDirectory === undefined ? mkdtempSync(join(tmpdir(), 'soft-vm-')) : undefined;
    const name = options.name ?? 'vm';
    const hsm = await openSoftHsm({
      config: {
        name,
        scenarioPath: undefined,
        pci: (options.drivers ?? []).map((driver, device) => ({
          driver,
          bdf: { bus: 0, device, function: 0 },
          options: {},
          text: '',
        })),
      },
      log: silentLog,
      runDirectory: options.runDirectory ?? (ownDirectory as string),
      ...(options.onTripleFault === undefined ? {} : { onTripleFault: options.onTripleFault }),
    });
    const { vmid } = await hsm.createVm({ name, flags: 0n, cpuAffinity: 0n });
    const [chunk] = hsm.engineRam?.allocate([{ base: 0, size: RAM_BYTES }]) ?? [];
    return new SoftVm(hsm, chunk as RamChunk, vmid, options, ownDirectory);
  }

  /** Load 32-bit code, and start it flat in protected mode with interrupts off, or in real mode. */
  start(code: readonly number[], mode: 'protected' | 'real' = 'protected'): void {
    this.load(code);
    const isReal = mode === 'real';
    this.hsm.setVcpuRegs(0, {
      rip: isReal ? 0n : BigInt(CODE_BASE),
      rsp: BigInt(STACK),
      cr0: isReal ? 0x30n : 0x31n,
      cs: isReal
        ? { selector: CODE_BASE >> 4, base: BigInt(CODE_BASE), limit: 0xffff, attributes: 0x9f }
        : { selector: 0x10, base: 0n, limit: 0xffff_ffff, attributes: 0xc09b },
      ...(isReal ? {} : { ss: 0x18, ds: 0x18, es: 0x18 }),
      gdt: { base: BigInt(GDT_BASE), limit: 0x1f },
      idt: { base: BigInt(IDT_BASE), limit: 0x7ff },
    });
    this.hsm.createIoreqClient();
    this.hsm.startVm();
  }

  load(code: readonly number[]): void {
    this.ram.set(code, CODE_BASE);
    const gdt = new DataView(this.ram.buffer, this.ram.byteOffset + GDT_BASE, 32);
    gdt.setBigUint64(0x10, 0x00cf_9b00_0000_ffffn, true); // flat code
    gdt.setBigUint64(0x18, 0x00cf_9300_0000_ffffn, true); // flat data
  }

  /** An interrupt gate for `vector` to `offset`. */
  setGate(vector: number, offset: number): void {
    const gate = new DataView(this.ram.buffer, this.ram.byteOffset + IDT_BASE + 8 * vector, 8);
    gate.setUint32(0, (0x10 << 16) | (offset & 0xffff), true);
    gate.setUint32(4, (offset & 0xffff_0000) | 0x8e00, true);
  }

  /** One call of waitForIoreqs with this VM's device model. */
  turn() {
    return this.hsm.waitForIoreqs(() => {
      if (!this.page.isPending(0)) return;
      if (!this.page.isWrite(0)) this.page.setValue(0, 0);
      this.#options.onRequest?.(this.page);
      if (!this.holdAnswers) this.hsm.notifyIoreqDone(0);
    });
  }

  /** A turn of the guest and of the event loop; a guest that sleeps for good is not waited for. */
  async step(): Promise<void> {
    const result = this.turn();
    if (result instanceof Promise) await Promise.race([result, new Promise((resolve) => setTimeout(resolve, 20))]);
    else await new Promise((resolve) => setImmediate(resolve));
  }

  /** Run until `done`, with turns of the event loop in between. @throws Error after 15 s. */
  async runUntil(done: () => boolean, what = 'the guest'): Promise<void> {
    const end = performance.now() + 15_000;
    while (!done()) {
      await this.step();
      if (performance.now() > end) throw new Error(`${what} did not get there`);
    }
  }

  word(address: number): number {
    return new DataView(this.ram.buffer, this.ram.byteOffset).getUint32(address, true);
  }

  dispose(): void {
    try {
      this.hsm.pauseVm();
      this.hsm.destroyVm();
    } catch {
      // destroyed by the test
    }
    this.hsm.close();
    if (this.#ownDirectory !== undefined) rmSync(this.#ownDirectory, { recursive: true, force: true });
  }
}

const GDT_BASE = 0x9000;

/** The four bytes of a 32-bit immediate. */
export function dword(value: number): number[] {
  return [value & 0xff, (value >>> 8) & 0xff, (value >>> 16) & 0xff, value >>> 24];
}

/** Machine code by name: what the tests need of the instruction set, 32-bit operands. */
export const asm = {
  inAl: (port: number) => [0x66, 0xba, port & 0xff, port >>> 8, 0xec],
  inEax: (port: number) => [0x66, 0xba, port & 0xff, port >>> 8, 0xed],
  outAl: (port: number) => [0x66, 0xba, port & 0xff, port >>> 8, 0xee],
  outEax: (port: number) => [0x66, 0xba, port & 0xff, port >>> 8, 0xef],
  movAl: (value: number) => [0xb0, value],
  movEax: (value: number) => [0xb8, ...dword(value)],
  loadEax: (address: number) => [0xa1, ...dword(address)],
  storeEax: (address: number) => [0xa3, ...dword(address)],
  incMemory: (address: number) => [0xff, 0x05, ...dword(address)],
  storeImmediate: (address: number, value: number) => [0xc7, 0x05, ...dword(address), ...dword(value)],
  sti: [0xfb],
  cli: [0xfa],
  hlt: [0xf4],
  iret: [0xcf],
  /** Short jump; counted from the next instruction. */
  jump: (distance: number) => [0xeb, distance & 0xff],
} as const;
