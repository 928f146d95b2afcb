/**
 * The WebAssembly module of the npm package v86: loading it, what it exports, and where it keeps its state. It is at fixed
 * addresses of its memory (v86 src/rust/cpu/global_pointers.rs); the interrupt controllers are structs whose layout the
 * module asserts (apic.rs, ioapic.rs, pic.rs). So the version is checked at start.
 */
import { readFile } from 'node:fs/promises';
import { createRequire } from 'node:module';
import { ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';

export type SegmentName = 'es' | 'cs' | 'ss' | 'ds' | 'fs' | 'gs' | 'tr' | 'ldtr';

/** Byte addresses of the CPU's state, v86 src/rust/cpu/global_pointers.rs. */
export const At = {
  reg32: 64,
  lastOpSize: 96,
  flagsChanged: 100,
  lastOp1: 104,
  lastResult: 112,
  flags: 120,
  segmentAccess: 512,
  apicEnabled: 548,
  acpiEnabled: 552,
  instructionPointer: 556,
  previousIp: 560,
  idtrSize: 564,
  idtrOffset: 568,
  gdtrSize: 572,
  gdtrOffset: 576,
  cr: 580,
  cpl: 612,
  inHlt: 616,
  prefixes: 648,
  instructionCounter: 664,
  sreg: 668,
  segmentIsNull: 724,
  segmentOffsets: 736,
  segmentLimits: 768,
  protectedMode: 800,
  is32: 804,
  stackSize32: 808,
  memorySize: 812,
} as const;
/** Enough for everything in {@link At}. */
export const STATE_BYTES = 1280;

/** Index in sreg, segment_offsets and so on. */
export const SEGMENT: Readonly<Record<SegmentName, number>> = {
  es: 0,
  cs: 1,
  ss: 2,
  ds: 3,
  fs: 4,
  gs: 5,
  tr: 6,
  ldtr: 7,
};

/** The module's indirect function table: its own entries, then the compiled code. */
export const TABLE_OWN = 1024;
export const TABLE_CODE = 900;

/** Local APIC struct (apic.rs), in words. */
export const Apic = { icrLow: 14, icrHigh: 15, irr: 16, tmr: 32, words: 46 } as const;
/** IOAPIC struct (ioapic.rs), in words. */
export const Ioapic = { config: 0, irr: 50, irqValue: 51, words: 52, pins: 24 } as const;
export const PIC_BYTES = 13;

export interface Exports {
  readonly memory: WebAssembly.Memory;
  rust_init(): void;
  reset_cpu(): void;
  main_loop(): number;
  handle_irqs(): void;
  allocate_memory(sizeBytes: number): number;
  v86_malloc(sizeBytes: number): number;
  v86_free(address: number): void;
  device_raise_irq(irq: number): void;
  device_lower_irq(irq: number): void;
  get_apic_addr(): number;
  get_ioapic_addr(): number;
  get_pic_addr_master(): number;
  get_pic_addr_slave(): number;
  apic_timer(nowMs: number): number;
  instr_CD(vector: number): void;
  translate_address_system_read_js(linear: number): number;
  update_state_flags(): void;
  full_clear_tlb(): void;
  jit_clear_cache_js(): void;
  jit_dirty_cache(start: number, end: number): void;
  /** @returns negative when there is no code for the linear address in that piece. */
  jit_find_cache_entry_in_page(linear: number, index: number, stateFlags: number): number;
  codegen_finalize_finished(index: number, start: number, stateFlags: number): void;
}

let compiled: Promise<WebAssembly.Module> | undefined;

/** Compiled once a process; about 40 ms. @throws HostError with what to install. */
export function loadModule(): Promise<WebAssembly.Module> {
  compiled ??= (async () => {
    let path: string;
    try {
      path = createRequire(import.meta.url).resolve('v86/build/v86.wasm');
    } catch (cause) {
      throw new HostError('the software engine needs the npm package v86, which is not installed', 0, {
        hint: 'npm install v86@0.5.462, or use --hypervisor acrn',
        exitCode: ExitCode.Unavailable,
        cause,
      });
    }
    return WebAssembly.compile(await readFile(path));
  })();
  compiled.catch(() => {
    compiled = undefined;
  });
  return compiled;
}

/** Compiled code calls the module's helpers under their export names, and has its memory as `m`. */
export function codeImports(exports: Exports): WebAssembly.ModuleImports {
  const imports: WebAssembly.ModuleImports = Object.create(null);
  for (const [name, value] of Object.entries(exports)) imports[name] = value as WebAssembly.ImportValue;
  imports['m'] = exports.memory;
  return imports;
}

/** Why the module did not come up: an engine that cannot have its address space (`ulimit -v`) says RangeError. */
export function instantiationFailure(cause: unknown): HostError {
  if (!(cause instanceof RangeError)) return wrongVersion(cause);
  return new HostError('the memory of the software CPU cannot be had', Errno.ENOMEM, {
    hint: '`ulimit -v` has to be unlimited: WebAssembly reserves address space, some 10 GiB, and uses little of it',
    exitCode: ExitCode.OsError,
    cause,
  });
}

export function wrongVersion(cause?: unknown): HostError {
  return new HostError('the installed version of the npm package v86 is not one this engine knows', 0, {
    hint: 'npm install v86@0.5.462',
    exitCode: ExitCode.Unavailable,
    ...(cause === undefined ? {} : { cause }),
  });
}
