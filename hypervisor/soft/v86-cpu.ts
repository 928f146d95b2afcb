/**
 * One 32-bit x86 CPU with local APIC, IOAPIC and PIC: the WebAssembly module of the npm package v86 (BSD-2-Clause), used
 * without the rest of that package. v86's own machine (BIOS, VGA, disks, PIT, RTC ...) is never created: every port and
 * every address that is not RAM comes out of here.
 */
import { randomBytes } from 'node:crypto';
import { HostError } from '../../devicemodel/core/errors.ts';
import { addressOf, viewOf } from '../../devicemodel/core/host/mapping.ts';
import { GuestCode } from './guest-code.ts';
import { IoapicPins, Rte } from './ioapic-pins.ts';
import {
  Apic,
  At,
  codeImports,
  type Exports,
  Ioapic,
  instantiationFailure,
  loadModule,
  PIC_BYTES,
  SEGMENT,
  type SegmentName,
  STATE_BYTES,
  wrongVersion,
} from './v86-module.ts';

/** Where accesses go that are not RAM. Values are unsigned. None of these may throw. */
export interface CpuBus {
  readPort(port: number, size: 1 | 2 | 4): number;
  writePort(port: number, size: 1 | 2 | 4, value: number): void;
  readMemory(address: number, size: 1 | 4): number;
  writeMemory(address: number, size: 1 | 2 | 4, value: number): void;
}

export interface SegmentState {
  readonly selector: number;
  readonly base: number;
  /** Last valid offset. */
  readonly limit: number;
  /** Type, S, DPL and P: bits 7:0 of the VMX access rights. */
  readonly access: number;
}

/** What one turn of the CPU ended with. */
export type TurnEnd = 'ran' | 'halted' | 'shutdown';

const FLAG_INTERRUPT = 0x200;
/** Always set in EFLAGS. */
const FLAGS_RESERVED = 2;
const CR0_PROTECTION = 1;
/** Instructions after which the CPU looks for interrupts [LOOP_COUNTER]. */
const LOOP_COUNTER = 100_003;
/** What the local APIC says when its timer does not run (apic.rs). */
const NO_TIMER_MS = 100;
/** RAM comes in these units. */
const MEMORY_BLOCK_BYTES = 128 * 1024;
/** Taken from the heap and given back at start, so that the module's memory does not grow while the guest runs. */
const HEAP_RESERVE_BYTES = 32 * 1024 * 1024;

/** Interrupt command register (Intel SDM vol. 3, 11.6.1): delivery mode NMI, destination mode and shorthand. */
const Icr = {
  modeMask: 7 << 8,
  nmi: 4 << 8,
  logical: 1 << 11,
  shorthandShift: 18,
  allButSelf: 3,
  broadcast: 0xff,
} as const;
const DELIVERY_LOWEST_PRIORITY = 1;
const DELIVERY_NMI = 4;
const NMI_VECTOR = 2;
/** DPL of a gate, in its byte 5. */
const GATE_DPL_3 = 3 << 5;

/** Views of guest RAM keep the WebAssembly memory alive by being keys here. */
const memoryOf = new WeakMap<ArrayBufferLike, WebAssembly.Memory>();

export class V86Cpu {
  /** Guest RAM from address 0; empty before {@link allocateMemory}. */
  ram = new Uint8Array(0);
  /** Its address in this process. */
  ramAddress = 0n;

  readonly #exports: Exports;
  readonly #code: GuestCode;
  readonly #base: bigint;
  readonly #words: Int32Array;
  readonly #halves: Uint16Array;
  readonly #bytes: Uint8Array;
  readonly #apic: Int32Array;
  readonly #pins: IoapicPins;
  /** Interrupt controllers at power-on: the module's reset leaves them alone. */
  readonly #powerOn: ReadonlyArray<{ readonly live: Uint8Array; readonly initial: Uint8Array }>;

  /** The guest's IF and HLT state while the CPU is made to stand still. */
  #stopping = false;
  #heldFlags = 0;
  #heldHlt = 0;
  #isHeld = false;
  #nextTimerMs = 0;
  #isLost = false;
  #isNmiPending = false;

  private constructor(exports: Exports, table: WebAssembly.Table) {
    this.#exports = exports;
    exports.rust_init();
    exports.v86_free(exports.v86_malloc(HEAP_RESERVE_BYTES));
    // V8 reserves the whole address range of a 32-bit memory, so growing does not move it: views by address stay valid
    // where `memory.buffer` would be detached. `#checkBase` makes sure.
    this.#base = addressOf(new Uint8Array(exports.memory.buffer));
    const state = this.#view(0, STATE_BYTES);
    this.#bytes = state;
    this.#words = new Int32Array(state.buffer, state.byteOffset, STATE_BYTES / 4);
    this.#halves = new Uint16Array(state.buffer, state.byteOffset, STATE_BYTES / 2);
    this.#apic = asWords(this.#view(exports.get_apic_addr(), Apic.words * 4));
    const ioapic = asWords(this.#view(exports.get_ioapic_addr(), Ioapic.words * 4));
    this.#pins = new IoapicPins(ioapic, (entry) => this.#redirect(entry));
    this.#powerOn = [
      asBytes(this.#apic),
      asBytes(ioapic),
      this.#view(exports.get_pic_addr_master(), PIC_BYTES),
      this.#view(exports.get_pic_addr_slave(), PIC_BYTES),
    ].map((live) => ({ live, initial: live.slice() }));
    this.#code = new GuestCode(exports, table, { e: codeImports(exports) });
  }

  /** @throws HostError when the package is missing, or is a version this was not written for. */
  static async create(bus: CpuBus): Promise<V86Cpu> {
    const module = await loadModule();
    const table = GuestCode.createTable();
    // The module calls these only while it runs, which is after `cpu` is set.
    let cpu: V86Cpu;
    const random = new Int32Array(256);
    let randomLeft = 0;
    const imports = {
      __indirect_function_table: table,
      microtick: () => performance.now(),
      run_hardware_timers: (_acpi: number, nowMs: number) => cpu.#runTimers(nowMs),
      cpu_event_halt: () => {},
      stop_idling: () => {},
      get_rand_int: () => {
        if (randomLeft === 0) {
          new Uint8Array(random.buffer).set(randomBytes(random.byteLength));
          randomLeft = random.length;
        }
        return random[--randomLeft];
      },
      io_port_read8: (port: number) => bus.readPort(port, 1),
      io_port_read16: (port: number) => bus.readPort(port, 2),
      io_port_read32: (port: number) => bus.readPort(port, 4),
      io_port_write8: (port: number, value: number) => bus.writePort(port, 1, value & 0xff),
      io_port_write16: (port: number, value: number) => bus.writePort(port, 2, value & 0xffff),
      io_port_write32: (port: number, value: number) => bus.writePort(port, 4, value >>> 0),
      mmap_read8: (address: number) => bus.readMemory(address >>> 0, 1),
      mmap_read32: (address: number) => bus.readMemory(address >>> 0, 4),
      mmap_write8: (address: number, value: number) => bus.writeMemory(address >>> 0, 1, value & 0xff),
      mmap_write16: (address: number, value: number) => bus.writeMemory(address >>> 0, 2, value & 0xffff),
      mmap_write32: (address: number, value: number) => bus.writeMemory(address >>> 0, 4, value >>> 0),
      mmap_write64: (address: number, low: number, high: number) => {
        bus.writeMemory(address >>> 0, 4, low >>> 0);
        bus.writeMemory((address >>> 0) + 4, 4, high >>> 0);
      },
      mmap_write128: (address: number, ...words: number[]) => {
        for (let i = 0; i < 4; i++) bus.writeMemory((address >>> 0) + 4 * i, 4, (words[i] as number) >>> 0);
      },
      codegen_finalize: (index: number, start: number, stateFlags: number, code: number, length: number) =>
        cpu.#code.add({ index, start, stateFlags, code: cpu.#view(code >>> 0, length >>> 0).slice() }),
      jit_clear_func: (index: number) => cpu.#code.remove(index),
      console_log_from_wasm: () => {},
    };
    let exports: Exports;
    try {
      const instance = await WebAssembly.instantiate(module, { env: imports });
      exports = instance.exports as unknown as Exports;
    } catch (cause) {
      throw instantiationFailure(cause);
    }
    if (typeof exports.main_loop !== 'function' || typeof exports.get_ioapic_addr !== 'function') throw wrongVersion();
    cpu = new V86Cpu(exports, table);
    cpu.#words[At.acpiEnabled >> 2] = 1; // local APIC and IOAPIC exist
    cpu.reset();
    // After a reset the CPU is at F000:FFF0 with CR0.ET, CD, NW set; elsewhere if the state has moved in this version.
    if (cpu.#words[At.instructionPointer >> 2] !== 0xffff0 || cpu.#words[At.cr >> 2] !== 0x6000_0010) {
      throw wrongVersion();
    }
    return cpu;
  }

  /** RAM from address 0; once. @param sizeBytes rounded up to 128 KiB, at most what limits.ts says. */
  allocateMemory(sizeBytes: number): void {
    const size = Math.ceil(sizeBytes / MEMORY_BLOCK_BYTES) * MEMORY_BLOCK_BYTES;
    const at = this.#exports.allocate_memory(size) >>> 0;
    this.#words[At.memorySize >> 2] = size;
    this.#checkBase();
    this.ram = this.#view(at, size).subarray(0, sizeBytes) as Uint8Array<ArrayBuffer>;
    this.ramAddress = this.#base + BigInt(at);
    memoryOf.set(this.ram.buffer, this.#exports.memory);
  }

  /** The first address that is not RAM (the VGA hole aside). */
  get memorySizeBytes(): number {
    return this.#words[At.memorySize >> 2] as number;
  }

  /** CPU and interrupt controllers as after power-on. RAM is kept. */
  reset(): void {
    this.#release();
    this.#exports.reset_cpu();
    for (const { live, initial } of this.#powerOn) live.set(initial);
    this.#bytes[At.apicEnabled] = 1; // firmware leaves the local APIC on
    this.#isLost = false;
    this.#isNmiPending = false;
  }

  setSegment(name: SegmentName, segment: SegmentState): void {
    const i = SEGMENT[name];
    this.#halves[(At.sreg >> 1) + i] = segment.selector;
    this.#words[(At.segmentOffsets >> 2) + i] = segment.base;
    this.#words[(At.segmentLimits >> 2) + i] = segment.limit;
    this.#bytes[At.segmentAccess + i] = segment.access;
    this.#bytes[At.segmentIsNull + i] = 0;
  }

  setTables(gdt: { base: number; limit: number }, idt: { base: number; limit: number }): void {
    this.#words[At.gdtrOffset >> 2] = gdt.base;
    this.#words[At.gdtrSize >> 2] = gdt.limit;
    this.#words[At.idtrOffset >> 2] = idt.base;
    this.#words[At.idtrSize >> 2] = idt.limit;
  }

  /** @param registers eax ecx edx ebx esp ebp esi edi */
  setRegisters(registers: readonly number[]): void {
    for (let i = 0; i < 8; i++) this.#words[(At.reg32 >> 2) + i] = registers[i] ?? 0;
  }

  /** Control registers, mode and where to go on. `ip` is linear: segment base included. */
  setMode(mode: { cr0: number; cr3: number; cr4: number; flags: number; ip: number; is32: boolean }): void {
    const words = this.#words;
    const isProtected = (mode.cr0 & CR0_PROTECTION) !== 0;
    words[At.cr >> 2] = mode.cr0 | 0x10;
    words[(At.cr >> 2) + 3] = mode.cr3;
    words[(At.cr >> 2) + 4] = mode.cr4;
    words[At.protectedMode >> 2] = isProtected ? 1 : 0;
    words[At.is32 >> 2] = mode.is32 ? 1 : 0;
    words[At.stackSize32 >> 2] = mode.is32 ? 1 : 0;
    words[At.flags >> 2] = mode.flags | FLAGS_RESERVED;
    words[At.flagsChanged >> 2] = 0;
    words[At.lastOpSize >> 2] = 0;
    words[At.lastOp1 >> 2] = 0;
    words[At.lastResult >> 2] = 0;
    words[At.instructionPointer >> 2] = mode.ip;
    words[At.previousIp >> 2] = mode.ip;
    this.#bytes[At.cpl] = 0;
    this.#bytes[At.prefixes] = 0;
    this.#bytes[At.inHlt] = 0;
    this.#exports.full_clear_tlb();
    this.#exports.update_state_flags();
  }

  /** The host changed guest RAM: code compiled from there is out of date. */
  noteWrite(address: number, length: number): void {
    if (length > 0) this.#exports.jit_dirty_cache(address, address + length);
  }

  /** All of RAM may have changed. */
  forgetCode(): void {
    this.#exports.jit_clear_cache_js();
  }

  // ---- interrupts. Never delivered here, only noted: inside an access of compiled code the registers are not in place.

  /**
   * The level of pins 0..23. ISA lines go to the PIC as well, and are active high; pin 2 is the timer, which the PIC has
   * on line 0. What the level of the others means is the guest's to say.
   */
  setPin(pin: number, isHigh: boolean): void {
    if (pin < 16 && pin !== 2) {
      this.#withoutInterrupts(() => this.#setBoth(pin, isHigh));
      return;
    }
    if (pin === 2) this.#withoutInterrupts(() => this.#setBoth(0, isHigh));
    this.#pins.set(pin, isHigh);
    this.interruptSoon();
  }

  /** A message to FEExxxxx (Intel SDM vol. 3, 11.11). One CPU: every destination is this one. */
  message(data: number): void {
    const deliveryMode = (data >>> 8) & 7;
    const vector = data & 0xff;
    if (deliveryMode === DELIVERY_NMI) this.#raiseNmi();
    // Fixed and lowest priority; SMI, INIT and ExtINT are not wired in this CPU.
    if (deliveryMode > DELIVERY_LOWEST_PRIORITY || vector < 0x10) return;
    this.#deliver(vector, (data & Rte.level) !== 0);
    this.interruptSoon();
  }

  /** Make the CPU look for interrupts after the instruction, or at most the compiled block, that it is in. */
  interruptSoon(): void {
    const at = At.instructionCounter >> 2;
    this.#words[at] = (this.#words[at] as number) + LOOP_COUNTER;
  }

  // ---- running

  /**
   * Run for about a millisecond, or until HLT or {@link stopSoon}. The bus is called from inside.
   * `shutdown`: a triple fault, or something the module has no answer to; only a reset helps.
   */
  turn(): TurnEnd {
    if (this.#isLost) return 'shutdown';
    this.#stopping = false;
    this.#release();
    try {
      this.#code.install();
      this.#pins.look();
      if (this.#isNmiPending) this.#deliverNmi();
      this.#exports.handle_irqs();
      this.#nextTimerMs = this.#exports.main_loop();
      this.#takeNmiCommand();
    } catch {
      // The bus does not throw: this is a trap of the module (it panics where a CPU shuts down) or its stack's end.
      this.#isLost = true;
      return 'shutdown';
    }
    this.#release();
    return this.#bytes[At.inHlt] === 0 || this.#isNmiPending ? 'ran' : 'halted';
  }

  /** End the current turn as soon as the CPU can; nothing is delivered any more in this turn. */
  stopSoon(): void {
    this.#stopping = true;
    this.interruptSoon();
  }

  /** Of a halted CPU: milliseconds to the local APIC timer; Infinity when only an interrupt from outside can wake it. */
  get sleepMs(): number {
    if (((this.#words[At.flags >> 2] as number) & FLAG_INTERRUPT) === 0) return Number.POSITIVE_INFINITY;
    return this.#nextTimerMs === NO_TIMER_MS ? Number.POSITIVE_INFINITY : this.#nextTimerMs;
  }

  /** For a log: where the CPU is and what its registers hold. */
  describe(): string {
    const hex = (value: number | undefined) => ((value ?? 0) >>> 0).toString(16).padStart(8, '0');
    const word = (at: number) => this.#words[at >> 2];
    const names = ['eax', 'ecx', 'edx', 'ebx', 'esp', 'ebp', 'esi', 'edi'];
    const cs = this.#halves[(At.sreg >> 1) + SEGMENT.cs] ?? 0;
    const eip = (word(At.previousIp) ?? 0) - (this.#words[(At.segmentOffsets >> 2) + SEGMENT.cs] ?? 0);
    return [
      `cs:eip ${cs.toString(16).padStart(4, '0')}:${hex(eip)}`,
      ...names.map((name, i) => `${name} ${hex(word(At.reg32 + 4 * i))}`),
      `eflags ${hex(word(At.flags))}`,
      ...[0, 2, 3, 4].map((i) => `cr${i} ${hex(word(At.cr + 4 * i))}`),
      `idt ${hex(word(At.idtrOffset))}+${((word(At.idtrSize) ?? 0) & 0xffff).toString(16)}`,
    ].join(' ');
  }

  /** Instructions executed, modulo 2^32, give or take 100,000 per interrupt: for measurements. */
  get instructionCount(): number {
    return (this.#words[At.instructionCounter >> 2] as number) >>> 0;
  }

  destroy(): void {
    this.#isLost = true;
    this.ram = new Uint8Array(0);
  }

  #view(at: number, length: number): Uint8Array<ArrayBuffer> {
    return viewOf(this.#base + BigInt(at), length);
  }

  #checkBase(): void {
    if (addressOf(new Uint8Array(this.#exports.memory.buffer)) !== this.#base) {
      throw new HostError('the memory of the software engine moved: no address space is left to reserve', 0, {
        hint: 'raise the limit on virtual memory (ulimit -v unlimited)',
      });
    }
  }

  /** Called by the module between stretches of guest code, before it looks for interrupts, and by HLT. */
  #runTimers(nowMs: number): number {
    this.#code.look(nowMs, this.#words[At.instructionPointer >> 2] as number);
    const sleepMs = this.#exports.apic_timer(nowMs);
    this.#takeNmiCommand();
    if ((this.#stopping || this.#isNmiPending) && !this.#isHeld) {
      // Nothing may be delivered now: without IF nothing is, and a halted CPU leaves the loop.
      this.#isHeld = true;
      this.#heldFlags = this.#words[At.flags >> 2] as number;
      this.#heldHlt = this.#bytes[At.inHlt] as number;
      this.#words[At.flags >> 2] = this.#heldFlags & ~FLAG_INTERRUPT;
      this.#bytes[At.inHlt] = 1;
    }
    return sleepMs;
  }

  #release(): void {
    if (!this.#isHeld) return;
    this.#isHeld = false;
    this.#words[At.flags >> 2] = (this.#words[At.flags >> 2] as number) | (this.#heldFlags & FLAG_INTERRUPT);
    this.#bytes[At.inHlt] = this.#heldHlt;
  }

  #setBoth(irq: number, asserted: boolean): void {
    if (asserted) this.#exports.device_raise_irq(irq);
    else this.#exports.device_lower_irq(irq);
  }

  #redirect(entry: number): void {
    const mode = (entry & Rte.deliveryMode) >>> 8;
    if (mode === DELIVERY_NMI) this.#raiseNmi();
    else if (mode <= DELIVERY_LOWEST_PRIORITY) this.#deliver(entry & Rte.vector, (entry & Rte.level) !== 0);
  }

  #deliver(vector: number, isLevel: boolean): void {
    if (vector < 0x10) return;
    const word = vector >>> 5;
    const bit = 1 << (vector & 31);
    this.#apic[Apic.irr + word] = (this.#apic[Apic.irr + word] as number) | bit;
    const tmr = this.#apic[Apic.tmr + word] as number;
    this.#apic[Apic.tmr + word] = isLevel ? tmr | bit : tmr & ~bit;
  }

  /** Delivered at the start of the next turn: only between turns are the registers in place. */
  #raiseNmi(): void {
    this.#isNmiPending = true;
    this.interruptSoon();
  }

  /**
   * The module keeps what the guest writes to the interrupt command register and sends only fixed interrupts from it. An
   * NMI to this CPU is taken out here, so that the same command written again is seen again.
   */
  #takeNmiCommand(): void {
    const low = this.#apic[Apic.icrLow] as number;
    if ((low & Icr.modeMask) !== Icr.nmi) return;
    this.#apic[Apic.icrLow] = low & ~Icr.modeMask;
    const shorthand = (low >>> Icr.shorthandShift) & 3;
    const destination = (this.#apic[Apic.icrHigh] as number) >>> 24;
    const isToSelf =
      shorthand === 0
        ? (low & Icr.logical) !== 0 || destination === 0 || destination === Icr.broadcast
        : shorthand !== Icr.allButSelf;
    if (isToSelf) this.#raiseNmi();
  }

  /**
   * The module's software interrupt does what an NMI does but for one check, the gate's privilege level, which is lifted
   * meanwhile. A further NMI is not held back until IRET, as a real CPU would.
   */
  #deliverNmi(): void {
    this.#isNmiPending = false;
    this.#bytes[At.inHlt] = 0;
    const isProtected = (this.#words[At.protectedMode >> 2] as number) !== 0;
    const gateAt = ((this.#words[At.idtrOffset >> 2] as number) + 8 * NMI_VECTOR + 5) >>> 0;
    const at = isProtected ? this.#exports.translate_address_system_read_js(gateAt) >>> 0 : this.ram.length;
    const type = this.ram[at];
    if (type !== undefined) this.ram[at] = type | GATE_DPL_3;
    this.#exports.instr_CD(NMI_VECTOR);
    if (type !== undefined) this.ram[at] = type;
  }

  /** The module delivers at once if it may; clear IF so that it may not. */
  #withoutInterrupts(change: () => void): void {
    const at = At.flags >> 2;
    const interrupts = (this.#words[at] as number) & FLAG_INTERRUPT;
    this.#words[at] = (this.#words[at] as number) & ~FLAG_INTERRUPT;
    change();
    this.#words[at] = (this.#words[at] as number) | interrupts;
    this.interruptSoon();
  }
}

function asWords(bytes: Uint8Array<ArrayBuffer>): Int32Array {
  return new Int32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

function asBytes(words: Int32Array): Uint8Array {
  return new Uint8Array(words.buffer, words.byteOffset, words.byteLength);
}
