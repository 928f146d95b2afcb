/**
 * Guest code that v86 translated, and which compiler of V8 makes machine code of it. V8 would give each piece to its
 * optimizing compiler after a few thousand jumps: a piece is one function of 70 KB, so that costs 0.1 s where most pieces
 * run for less (a start of Debian spent two thirds of its CPU time there). So pieces come from the baseline compiler, and
 * only those the guest was seen in for longer than their optimization takes are installed again, for V8 to optimize.
 */
import { setFlagsFromString } from 'node:v8';
import { type Exports, TABLE_CODE, TABLE_OWN } from './v86-module.ts';

/** One piece as the module hands it over: a WebAssembly module of its own, not yet compiled. */
export interface TranslatedCode {
  /** In the module's table. */
  readonly index: number;
  /** Guest-physical address of its page. */
  readonly start: number;
  readonly stateFlags: number;
  readonly code: Uint8Array;
}

interface Piece extends TranslatedCode {
  /** For how long the guest was seen in it. */
  seenMs: number;
  isOptimized: boolean;
}

/** Twice what V8's optimizing compiler takes, measured with pieces of 20 to 240 KB. */
const OPTIMIZE_AFTER_MS_PER_BYTE = 3e-3;
/** Two looks further apart than this: the guest did not run in between, or its devices did. */
const MAX_LOOK_MS = 2;
/** When no piece is found, so many looks are left out: it is interpreted, and asking for each piece costs microseconds. */
const LOOKS_LEFT_OUT = 8;

/** Baseline code, at once. */
const BASELINE = ['--no-wasm-tier-up', '--no-wasm-dynamic-tiering', '--no-wasm-lazy-compilation'];
/** As V8 starts. */
const DEFAULT = ['--wasm-tier-up', '--wasm-dynamic-tiering', '--wasm-lazy-compilation'];

export class GuestCode {
  readonly #exports: Exports;
  readonly #table: WebAssembly.Table;
  readonly #imports: WebAssembly.Imports;
  readonly #pieces = new Map<number, Piece>();
  #translated: Piece | undefined;
  #hot: Piece[] = [];
  #last: Piece | undefined;
  #lookedMs = 0;
  #leaveOut = 0;

  /** @param imports what a piece imports. */
  constructor(exports: Exports, table: WebAssembly.Table, imports: WebAssembly.Imports) {
    this.#exports = exports;
    this.#table = table;
    this.#imports = imports;
  }

  /** The table both the module and the pieces live in. */
  static createTable(): WebAssembly.Table {
    return new WebAssembly.Table({ element: 'anyfunc', initial: TABLE_OWN + TABLE_CODE });
  }

  /** One at a time: the module translates no other before this one is installed. */
  add(code: TranslatedCode): void {
    this.#translated = { ...code, seenMs: 0, isOptimized: false };
  }

  /** The module has no use for it any more. */
  remove(index: number): void {
    this.#table.set(index + TABLE_OWN, null);
    const piece = this.#pieces.get(index);
    if (piece === undefined) return;
    this.#pieces.delete(index);
    if (this.#last === piece) this.#last = undefined;
    this.#hot = this.#hot.filter((p) => p !== piece);
  }

  /**
   * Between two turns: install what was translated in the last one, synchronously. A compilation in the background is
   * faster only while a core is idle, and the guest is interpreted until it is done.
   */
  install(): void {
    const piece = this.#translated;
    if (piece !== undefined) {
      this.#translated = undefined;
      withFlags(BASELINE, () => this.#compile(piece));
      this.#pieces.set(piece.index, piece);
      this.#exports.codegen_finalize_finished(piece.index, piece.start, piece.stateFlags);
    }
    if (this.#hot.length === 0) return;
    for (const hot of this.#hot) this.#compile(hot); // V8 optimizes it in the background while it runs
    this.#hot = [];
  }

  /** Where the guest is now, a linear address. Called by the module's main loop, some thousand times a second. */
  look(nowMs: number, address: number): void {
    const elapsedMs = nowMs - this.#lookedMs;
    this.#lookedMs = nowMs;
    if (elapsedMs > MAX_LOOK_MS) return;
    const piece = this.#pieceAt(address);
    if (piece === undefined || piece.isOptimized) return;
    piece.seenMs += elapsedMs;
    if (piece.seenMs < piece.code.length * OPTIMIZE_AFTER_MS_PER_BYTE) return;
    piece.isOptimized = true;
    this.#hot.push(piece);
  }

  #pieceAt(address: number): Piece | undefined {
    if (this.#last !== undefined && this.#isIn(this.#last, address)) return this.#last;
    if (this.#leaveOut > 0) {
      this.#leaveOut--;
      return undefined;
    }
    for (const piece of this.#pieces.values()) {
      if (this.#isIn(piece, address)) {
        this.#last = piece;
        return piece;
      }
    }
    this.#leaveOut = LOOKS_LEFT_OUT;
    return undefined;
  }

  #isIn(piece: Piece, address: number): boolean {
    return this.#exports.jit_find_cache_entry_in_page(address, piece.index, piece.stateFlags) >= 0;
  }

  #compile(piece: Piece): void {
    const { exports } = new WebAssembly.Instance(new WebAssembly.Module(piece.code), this.#imports);
    this.#table.set(piece.index + TABLE_OWN, exports['f']);
  }
}

/** Flags are V8's, so every thread's: only for as long as one synchronous compilation. */
function withFlags(flags: readonly string[], work: () => void): void {
  for (const flag of flags) setFlagsFromString(flag);
  try {
    work();
  } finally {
    for (const flag of DEFAULT) setFlagsFromString(flag);
  }
}
