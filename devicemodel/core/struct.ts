/**
 * C structs in little-endian bytes: layout written once, by name, in header order. Natural alignment as gcc on
 * x86-64 unless `packed`. Sizes and offsets are compared with the compiler's own in test/hypervisor/acrn/abi.test.ts.
 */
import { BugError } from './errors.ts';

/** How one field is stored. */
export interface Field<T> {
  readonly size: number;
  readonly align: number;
  read(view: DataView, at: number): T;
  write(view: DataView, at: number, value: T): void;
}

function integer(
  size: 1 | 2 | 4,
  read: (v: DataView, at: number) => number,
  write: (v: DataView, at: number, n: number) => void,
): Field<number> {
  return { size, align: size, read, write };
}

export const u8 = integer(
  1,
  (v, at) => v.getUint8(at),
  (v, at, n) => v.setUint8(at, n),
);
export const u16 = integer(
  2,
  (v, at) => v.getUint16(at, true),
  (v, at, n) => v.setUint16(at, n, true),
);
export const u32 = integer(
  4,
  (v, at) => v.getUint32(at, true),
  (v, at, n) => v.setUint32(at, n, true),
);
export const s32 = integer(
  4,
  (v, at) => v.getInt32(at, true),
  (v, at, n) => v.setInt32(at, n, true),
);

/** Sixty-four data bits. */
export const u64: Field<bigint> = {
  size: 8,
  align: 8,
  read: (v, at) => v.getBigUint64(at, true),
  write: (v, at, n) => v.setBigUint64(at, n, true),
};

/** A 64-bit address or length that must be a safe integer. */
export const addr: Field<number> = {
  size: 8,
  align: 8,
  read: (v, at) => v.getUint32(at, true) + v.getUint32(at + 4, true) * 0x1_0000_0000,
  write: (v, at, n) => {
    if (!Number.isSafeInteger(n) || n < 0) throw new BugError(`address ${n} is not a safe unsigned integer`);
    v.setUint32(at, n % 0x1_0000_0000, true);
    v.setUint32(at + 4, Math.floor(n / 0x1_0000_0000), true);
  },
};

/** `count` elements in a row; missing ones are written as zero. */
export function array<T>(element: Field<T>, count: number, zero: T): Field<readonly T[]> {
  return {
    size: element.size * count,
    align: element.align,
    read: (v, at) => Array.from({ length: count }, (_, i) => element.read(v, at + i * element.size)),
    write: (v, at, values) => {
      for (let i = 0; i < count; i++) element.write(v, at + i * element.size, values[i] ?? zero);
    },
  };
}

/** Raw bytes, zero padded. Reading copies. */
export function bytes(size: number): Field<Uint8Array> {
  return {
    size,
    align: 1,
    read: (v, at) => new Uint8Array(v.buffer, v.byteOffset + at, size).slice(),
    write: (v, at, value) => {
      if (value.length > size) throw new BugError(`${value.length} bytes do not fit a field of ${size}`);
      const target = new Uint8Array(v.buffer, v.byteOffset + at, size);
      target.fill(0);
      target.set(value);
    },
  };
}

// biome-ignore lint/suspicious/noExplicitAny: fields of every value type in one record
type Fields = Readonly<Record<string, Field<any>>>;
type ValueOf<F> = F extends Field<infer T> ? T : never;

export interface Struct<F> extends Field<{ [K in keyof F]: ValueOf<F[K]> }> {
  readonly offsets: { readonly [K in keyof F]: number };
  /** Fields left out are zero. */
  encode(value: Partial<{ [K in keyof F]: ValueOf<F[K]> }>): Uint8Array;
  decode(bytes: Uint8Array): { [K in keyof F]: ValueOf<F[K]> };
}

/** Lay out a struct as the C compiler does; `packed` = no padding, alignment 1. */
export function struct<F extends Fields>(fields: F, options: { packed?: boolean } = {}): Struct<F> {
  const offsets: Record<string, number> = {};
  let size = 0;
  let align = 1;
  for (const [name, field] of Object.entries(fields)) {
    const fieldAlign = options.packed === true ? 1 : field.align;
    size = Math.ceil(size / fieldAlign) * fieldAlign;
    offsets[name] = size;
    size += field.size;
    align = Math.max(align, fieldAlign);
  }
  size = Math.ceil(size / align) * align;
  const entries = Object.entries(fields) as Array<[string, Field<unknown>]>;
  const read = (view: DataView, at: number) =>
    Object.fromEntries(
      entries.map(([name, field]) => [name, field.read(view, at + (offsets[name] as number))]),
    ) as never;
  const write = (view: DataView, at: number, value: Record<string, unknown>) => {
    for (const [name, field] of entries) {
      const v = value[name];
      if (v !== undefined) field.write(view, at + (offsets[name] as number), v);
    }
  };
  return {
    size,
    align,
    offsets: offsets as never,
    read,
    write: write as never,
    encode: (value) => {
      const out = new Uint8Array(size);
      write(new DataView(out.buffer), 0, value as Record<string, unknown>);
      return out;
    },
    decode: (input) => {
      if (input.length < size) throw new BugError(`struct of ${size} bytes decoded from ${input.length}`);
      return read(new DataView(input.buffer, input.byteOffset, input.byteLength), 0);
    },
  };
}
