/**
 * The engine without hardware: one v86 CPU on the device thread. Guest RAM is the CPU's own memory and is handed out;
 * the device model serves each access from inside {@link SoftEngine.run}, synchronously.
 */
import { allOnes, type Gpa, type Gsi, hex } from '../../devicemodel/core/address.ts';
import type { Timer } from '../../devicemodel/core/clock.ts';
import type { MsiMessage } from '../../devicemodel/core/device.ts';
import type { EngineRam, FreezeAbility, VcpuRegs } from '../../devicemodel/core/hsm/hsm.ts';
import type { IoreqPage } from '../../devicemodel/core/ioreq-page.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { RamChunk } from '../../devicemodel/core/memory.ts';
import { MiB } from '../../devicemodel/core/units.ts';
import type { CpuEngine, GuestBus, MemoryWindow } from '../embedded/cpu-engine.ts';
import { TimerfdClock } from '../turn-loop/timerfd-clock.ts';
import { MAX_MEMORY_BYTES, tooMuchMemory } from './limits.ts';
import { type CpuBus, V86Cpu } from './v86-cpu.ts';

/** How long the guest runs before the event loop has its turn. */
const SLICE_MS = 2;
/** A wait shorter than this costs more than looking again. */
const MIN_SLEEP_MS = 0.02;
const NS_PER_MS = 1e6;
/** RAM for a VM that was given none (tests): the CPU needs a first page. */
const MIN_RAM_BYTES = MiB;
/** Legacy VGA window: not RAM to the CPU, but RAM to ACRN's User VMs, also to those with a VGA. */
const VgaHole = { base: 0xa_0000, size: 0x2_0000 } as const;
const FOUR_GIB = 0x1_0000_0000;
/** The CPU takes large pages only with it, those of PAE, too: guests that set PAE alone (memtest86+) would find none. */
const CR4_PSE = 1 << 4;
/** Of CS at the reset vector (Intel SDM vol. 3, 9.1.4), and with the same bytes below 1 MiB. */
const RESET_CS_BASE = 0xffff_0000;
const LOW_RESET_CS_BASE = 0xf_0000;

/** A compiled block has fewer accesses; a string instruction in it may have this many. */
const MAX_WRITES_BEHIND = 4096;

/** What the guest wrote while the access before it was not answered. */
interface HeldWrite {
  readonly isPort: boolean;
  readonly address: number;
  readonly size: 1 | 2 | 4;
  readonly value: number;
}

interface Window {
  readonly base: Gpa;
  readonly end: Gpa;
  readonly bytes: Uint8Array;
  readonly view: DataView;
  readonly writable: boolean;
}

export class SoftEngine implements CpuEngine {
  readonly backend = 'soft';
  /** v86's IOAPIC has 24 pins, ACRN's 48. */
  readonly gsiCount = 24;
  readonly ram: EngineRam;

  readonly #log: Log;
  readonly #hasVga: boolean;
  #cpu: V86Cpu | undefined;
  #bus: GuestBus | undefined;
  #page: IoreqPage | undefined;
  #windows: Window[] = [];
  #lastWindow: Window | undefined;
  #isRunning = false;
  /** Somebody wants it to stand still. */
  #isFrozen = false;
  /** The access the CPU is in was not answered: it stands still until that comes, or clear and reset. */
  #isBlocked = false;
  /** The device model served something in this slice: what it has to do at its end must not wait for the guest. */
  #hasServed = false;
  /**
   * What the guest wrote since: its CPU stops at the end of the compiled block, which may have more accesses in it. (What it
   * reads there is all ones.)
   */
  readonly #behind: HeldWrite[] = [];
  /** The slice under way is to end: something else decides what happens next. */
  #isInterrupted = false;
  /** The guest shut down, and that was reported. */
  #isShutDown = false;
  /** Thrown by the device model from inside an access; handed on when the CPU has come to a stop. */
  #failure: { readonly error: unknown } | undefined;
  #wakeUp: (() => void) | undefined;
  /** Also keeps the process while the guest sleeps for good. */
  #clock: TimerfdClock | undefined;
  #alarm: Timer | undefined;

  /** The guest runs only within {@link run}, which has nothing to do then. */
  readonly freezing: FreezeAbility = {
    freeze: () => {
      this.#isFrozen = true;
      this.#cpu?.stopSoon();
    },
    thaw: () => {
      this.#isFrozen = false;
      this.wake();
    },
  };

  /** @param hasVga a device answers in the legacy VGA window; otherwise it is RAM. */
  constructor(log: Log, hasVga = false) {
    this.#log = log;
    this.#hasVga = hasVga;
    this.ram = { allocate: (regions) => this.#allocate(regions) };
  }

  async create(bus: GuestBus): Promise<number> {
    this.#bus = bus;
    this.#page = bus.page;
    const cpuBus: CpuBus = {
      readPort: (port, size) => this.#readPort(port, size),
      writePort: (port, size, value) => this.#writePort(port, size, value),
      readMemory: (address, size) => this.#readMemory(address, size),
      writeMemory: (address, size, value) => this.#writeMemory(address, size, value),
    };
    this.#cpu = await V86Cpu.create(cpuBus);
    this.#clock = new TimerfdClock();
    this.#alarm = this.#clock.createTimer(() => this.wake());
    return 1;
  }

  /** Only the state of 32-bit protected mode and of real mode counts: there is no long mode. */
  setRegs(_vcpu: number, regs: VcpuRegs): void {
    const cpu = this.#need();
    const u32 = (value: bigint | undefined) => Number((value ?? 0n) & 0xffff_ffffn);
    const cr0 = u32(regs.cr0);
    const isProtected = (cr0 & 1) !== 0;
    cpu.setRegisters(
      [regs.rax, regs.rcx, regs.rdx, regs.rbx, regs.rsp, regs.rbp, regs.rsi, regs.rdi].map((r) => u32(r)),
    );
    // Its CPU executes from RAM only: firmware is started where the first megabyte shows the reset vector.
    const csBase = u32(regs.cs.base) === RESET_CS_BASE ? LOW_RESET_CS_BASE : u32(regs.cs.base);
    cpu.setSegment('cs', {
      selector: regs.cs.selector,
      base: csBase,
      limit: regs.cs.limit,
      access: regs.cs.attributes & 0xff,
    });
    // Only selectors are given: as ACRN does, flat in protected mode, by paragraph in real mode.
    const data = [
      ['ss', regs.ss],
      ['ds', regs.ds],
      ['es', regs.es],
      ['fs', regs.fs],
      ['gs', regs.gs],
    ] as const;
    for (const [name, selector = 0] of data) {
      cpu.setSegment(name, {
        selector,
        base: isProtected ? 0 : selector << 4,
        limit: isProtected ? 0xffff_ffff : 0xffff,
        access: 0x93,
      });
    }
    cpu.setSegment('ldtr', { selector: regs.ldt ?? 0, base: 0, limit: 0xffff, access: 0x82 });
    cpu.setSegment('tr', { selector: regs.tr ?? 0, base: 0, limit: 0xffff, access: 0x8b });
    const table = (t: VcpuRegs['gdt']) => ({ base: u32(t?.base), limit: t?.limit ?? 0xffff });
    cpu.setTables(table(regs.gdt), table(regs.idt));
    cpu.setMode({
      cr0,
      cr3: u32(regs.cr3),
      cr4: u32(regs.cr4) | CR4_PSE,
      flags: u32(regs.rflags),
      ip: (csBase + u32(regs.rip)) >>> 0,
      is32: isProtected && (regs.cs.attributes & 0x4000) !== 0, // D/B
    });
  }

  mapMemory(gpa: Gpa, bytes: Uint8Array, _hostAddress: bigint | undefined, writable: boolean): MemoryWindow {
    const end = gpa + bytes.length;
    // A guest may move its BAR without end.
    const warn = (what: string) => this.#log.rationed('warn', () => `memory at ${hex(gpa)} ${what}`);
    if (end > FOUR_GIB) warn('is out of reach of a 32-bit CPU');
    else if (gpa < this.#need().memorySizeBytes) warn('is hidden by RAM');
    const window: Window = {
      base: gpa,
      end,
      bytes,
      view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
      writable,
    };
    this.#windows = [...this.#windows, window];
    return {
      dispose: () => {
        this.#windows = this.#windows.filter((w) => w !== window);
        this.#lastWindow = undefined;
      },
    };
  }

  start(): void {
    const cpu = this.#need();
    if (cpu.memorySizeBytes === 0) this.#allocate([{ base: 0, size: MIN_RAM_BYTES }]);
    cpu.forgetCode(); // images were loaded
    this.#isBlocked = false;
    this.#behind.length = 0;
    this.#isFrozen = false;
    this.#isRunning = true;
  }

  stop(): void {
    this.#isRunning = false;
    this.#cpu?.stopSoon();
  }

  reset(): void {
    this.#need().reset();
    this.#isBlocked = false;
    this.#behind.length = 0;
    this.#isShutDown = false;
  }

  destroy(): void {
    this.stop();
    this.wake();
    this.#cpu?.destroy();
    this.#cpu = undefined;
    this.#clock?.dispose();
    this.#clock = undefined;
    this.#alarm = undefined;
    this.#windows = [];
    this.#lastWindow = undefined;
  }

  setLine(gsi: Gsi, isHigh: boolean): void {
    this.#cpu?.setPin(gsi, isHigh);
    // Either level may be the one that asserts.
    this.wake();
  }

  injectMsi(message: MsiMessage): void {
    this.#cpu?.message(message.data);
    this.wake();
  }

  describeVcpu(_vcpu: number): string {
    return this.#cpu?.describe() ?? '';
  }

  run(): undefined | Promise<void> {
    const cpu = this.#cpu;
    if (cpu === undefined || !this.#isRunning || this.#isShutDown || this.#isFrozen)
      return this.#sleep(Number.POSITIVE_INFINITY);
    this.#isInterrupted = false;
    this.#hasServed = false;
    if (this.#isBlocked && !this.#unblock()) return undefined;
    const end = performance.now() + SLICE_MS;
    do {
      const turnEnd = cpu.turn();
      this.#throwFailure();
      if (!this.#isRunning || this.#isBlocked || this.#isInterrupted || this.#isFrozen) return undefined;
      if (turnEnd === 'shutdown') {
        this.#isShutDown = true;
        this.#bus?.tripleFault(0);
        return undefined;
      }
      if (turnEnd === 'halted') {
        const { sleepMs } = cpu;
        return this.#hasServed || sleepMs < MIN_SLEEP_MS ? undefined : this.#sleep(sleepMs);
      }
    } while (performance.now() < end);
    return undefined;
  }

  /** @returns whether the guest may go on: the answer came, and what it wrote meanwhile was carried out. */
  #unblock(): boolean {
    if (this.#bus?.retire(0) !== true) return false;
    this.#isBlocked = false;
    while (!this.#isBlocked && this.#isRunning) {
      const write = this.#behind.shift();
      if (write === undefined) return true;
      if (write.isPort) this.#writePort(write.address, write.size, write.value);
      else this.#writeMemory(write.address, write.size, write.value);
      this.#throwFailure();
    }
    return false;
  }

  /** @throws what the device model threw inside an access. */
  #throwFailure(): void {
    if (this.#failure === undefined) return;
    const { error } = this.#failure;
    this.#failure = undefined;
    throw error;
  }

  wake(): void {
    const wakeUp = this.#wakeUp;
    this.#wakeUp = undefined;
    wakeUp?.();
  }

  interrupt(): void {
    this.#isInterrupted = true;
    this.#cpu?.stopSoon();
    this.wake();
  }

  /** Until {@link wake}, or the time is over. */
  #sleep(ms: number): Promise<void> {
    const clock = this.#clock;
    if (clock === undefined || ms === Number.POSITIVE_INFINITY) this.#alarm?.cancel();
    else this.#alarm?.arm(clock.nowNs() + Math.round(ms * NS_PER_MS));
    return new Promise((resolve) => {
      this.#wakeUp = resolve;
    });
  }

  #allocate(regions: readonly { readonly base: Gpa; readonly size: number }[]): RamChunk[] {
    const cpu = this.#need();
    const low = regions.find((r) => r.base === 0);
    if (low === undefined || low.size > MAX_MEMORY_BYTES || regions.some((r) => r.base + r.size > FOUR_GIB)) {
      throw tooMuchMemory(regions.reduce((sum, r) => sum + r.size, 0));
    }
    return regions.map(({ base, size }) => {
      if (base === 0) {
        cpu.allocateMemory(size);
        if (!this.#hasVga) this.#mapVgaHole(cpu.ram);
        const onHostWrite = (at: Gpa, length: number) => cpu.noteWrite(at, length);
        return { base, bytes: cpu.ram, hostAddress: cpu.ramAddress, onHostWrite };
      }
      const bytes = new Uint8Array(size);
      this.mapMemory(base, bytes, undefined, true);
      return { base, bytes, hostAddress: undefined };
    });
  }

  #mapVgaHole(ram: Uint8Array): void {
    const bytes = ram.subarray(VgaHole.base, VgaHole.base + VgaHole.size);
    this.#windows.push({
      base: VgaHole.base,
      end: VgaHole.base + VgaHole.size,
      bytes,
      view: new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength),
      writable: true,
    });
  }

  #need(): V86Cpu {
    if (this.#cpu === undefined) throw new Error('the VM of this engine is gone');
    return this.#cpu;
  }

  // ---- accesses of the guest: the hot path

  #readPort(port: number, size: 1 | 2 | 4): number {
    if (this.#isBlocked) return allOnes(size);
    (this.#page as IoreqPage).fillPortIo(0, false, port, size, 0);
    return this.#finish(size);
  }

  #writePort(port: number, size: 1 | 2 | 4, value: number): void {
    if (this.#isBlocked) {
      this.#defer({ isPort: true, address: port, size, value });
      return;
    }
    (this.#page as IoreqPage).fillPortIo(0, true, port, size, value);
    this.#finish(size);
  }

  #readMemory(address: number, size: 1 | 4): number {
    const window = this.#windowAt(address);
    if (window !== undefined) {
      const offset = address - window.base;
      if (size === 1) return window.bytes[offset] as number;
      return offset + 4 <= window.bytes.length ? window.view.getUint32(offset, true) : 0xffff_ffff;
    }
    if (this.#isBlocked) return allOnes(size);
    (this.#page as IoreqPage).fillMmio(0, false, address, size, 0);
    return this.#finish(size);
  }

  #writeMemory(address: number, size: 1 | 2 | 4, value: number): void {
    const window = this.#windowAt(address);
    if (window !== undefined) {
      const offset = address - window.base;
      if (!window.writable || offset + size > window.bytes.length) return;
      if (size === 1) window.bytes[offset] = value;
      else if (size === 2) window.view.setUint16(offset, value, true);
      else window.view.setUint32(offset, value, true);
      return;
    }
    if (this.#isBlocked) {
      this.#defer({ isPort: false, address, size, value });
      return;
    }
    (this.#page as IoreqPage).fillMmio(0, true, address, size, value);
    this.#finish(size);
  }

  #defer(write: HeldWrite): void {
    if (this.#behind.length < MAX_WRITES_BEHIND) this.#behind.push(write);
    else this.#log.guest(() => 'the guest wrote more than can be kept behind an access that waits: the rest is lost');
  }

  /** Let the hypervisor or the device model answer slot 0. @returns what a read gives the guest */
  #finish(size: 1 | 2 | 4): number {
    const bus = this.#bus as GuestBus;
    try {
      if (!bus.submit(0)) {
        this.#hasServed = true;
        bus.serve();
      }
    } catch (error) {
      // It must not unwind the CPU's own frames: stop, and throw when it has.
      this.#failure ??= { error };
    }
    if (!bus.retire(0)) {
      this.#isBlocked = true;
      this.#cpu?.stopSoon();
      return allOnes(size);
    }
    const value = bus.page.value(0);
    return size === 4 ? value : size === 2 ? value & 0xffff : value & 0xff;
  }

  #windowAt(address: number): Window | undefined {
    const last = this.#lastWindow;
    if (last !== undefined && address >= last.base && address < last.end) return last;
    for (const window of this.#windows) {
      if (address >= window.base && address < window.end) {
        this.#lastWindow = window;
        return window;
      }
    }
    return undefined;
  }
}
