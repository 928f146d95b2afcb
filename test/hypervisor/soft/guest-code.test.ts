/** Which guest code V8 gets to optimize. */
import { expect, test } from 'vitest';
import { GuestCode } from '../../../hypervisor/soft/guest-code.ts';
import { type Exports, TABLE_OWN } from '../../../hypervisor/soft/v86-module.ts';

/** (module (func (export "f"))), with a custom section so long that the piece has 1000 bytes. */
const PIECE_BYTES = 1000;
const head = [
  0, 0x61, 0x73, 0x6d, 1, 0, 0, 0, 1, 4, 1, 0x60, 0, 0, 3, 2, 1, 0, 7, 5, 1, 1, 0x66, 0, 0, 10, 4, 1, 2, 0, 0x0b,
];
const rest = PIECE_BYTES - head.length - 3;
const code = Uint8Array.from([...head, 0, 0x80 | (rest & 0x7f), rest >> 7, ...new Uint8Array(rest)]);
/** Milliseconds in it after which it is worth optimizing, as guest-code.ts has it. */
const WORTH_MS = PIECE_BYTES * 3e-3;

function make() {
  const installed: number[] = [];
  /** Linear address of each piece's only entry. */
  const entries = new Map<number, number>();
  const exports = {
    codegen_finalize_finished: (index: number) => installed.push(index),
    jit_find_cache_entry_in_page: (address: number, index: number) => (entries.get(index) === address ? 0 : -1),
  } as unknown as Exports;
  const table = GuestCode.createTable() as WebAssembly.Table & { get(index: number): unknown };
  const guestCode = new GuestCode(exports, table, { e: {} });
  const add = (index: number, address: number) => {
    entries.set(index, address);
    guestCode.add({ index, start: address, stateFlags: 1, code });
    guestCode.install();
    return table.get(index + TABLE_OWN);
  };
  let nowMs = 0;
  /** Be there for some time, looked at each half millisecond. */
  const stay = (address: number, ms: number, everyMs = 0.5) => {
    for (let spent = 0; spent < ms; spent += everyMs) guestCode.look((nowMs += everyMs), address);
    guestCode.install();
  };
  return { guestCode, add, stay, installed, at: (index: number) => table.get(index + TABLE_OWN) };
}

test('a piece is callable once it is installed, and the module is told', () => {
  const { add, installed } = make();
  expect(add(5, 0x1000)).toBeTypeOf('function');
  expect(installed).toEqual([5]);
});

// Mutation: without `seenMs` kept by piece, the second piece would be optimized for the time of the first.
test('only a piece the guest stays in is installed again, once, and the module is not told', () => {
  const { add, stay, at, installed } = make();
  const short = add(5, 0x1000);
  const long = add(6, 0x2000);
  stay(0x1000, WORTH_MS - 1);
  stay(0x2000, WORTH_MS - 1);
  expect(at(6)).toBe(long);
  stay(0x2000, 3);
  const optimized = at(6);
  expect(optimized).not.toBe(long);
  expect(at(5)).toBe(short);
  stay(0x2000, 10 * WORTH_MS);
  expect(at(6)).toBe(optimized);
  expect(installed).toEqual([5, 6]);
});

test('time in which the guest stood still does not count', () => {
  const { add, stay, at } = make();
  const piece = add(5, 0x1000);
  stay(0x1000, 100 * WORTH_MS, 5);
  expect(at(5)).toBe(piece);
});

test('a piece that is given up while it waits for its optimization stays away', () => {
  const { guestCode, add, at } = make();
  add(5, 0x1000);
  for (let ms = 0; ms < 2 * WORTH_MS; ms += 0.5) guestCode.look(ms, 0x1000);
  guestCode.remove(5);
  guestCode.install();
  expect(at(5)).toBeNull();
});

test('code nobody translated does not keep pieces from being found later', () => {
  const { add, stay, at } = make();
  const piece = add(5, 0x1000);
  stay(0x9000, 5);
  stay(0x1000, 2 * WORTH_MS + 8);
  expect(at(5)).not.toBe(piece);
});
