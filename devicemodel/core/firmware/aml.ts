/**
 * ACPI Machine Language, written as it reads: `device('RTC', [name('_HID', eisaId('PNP0B00')), ...])` is the bytes
 * that a compiler makes of the ASL of the same shape. Spec: ACPI 6.4 chapter 20 (AML) and chapter 19 (ASL).
 *
 * Wherever a term takes an operand, a number or bigint is an integer constant, a string is a *name* (a path such as
 * `\\_SB.PCI0` or `^^PR00._PPC`), and anything else is a term made here. String constants are `text('...')`.
 */
import { BugError } from '../errors.ts';

/** Encoded AML: one term, or several in a row. A plain array, so that it cannot be taken for raw data. */
export type Aml = readonly number[];
/** What a term works on: an integer, a name, or another term. */
export type Operand = number | bigint | string | Aml;

// ---- ACPI 6.4 §20.2.4: package length -------------------------------------------------------------------------

/** Largest value of a PkgLength: 28 bits. */
const PKG_LENGTH_MAX = 0x0fff_ffff;

/** A length in PkgLength form: 6 bits in one byte, or 4 bits and one to three bytes more. */
function encodeLength(length: number, extraBytes: number): number[] {
  if (extraBytes === 0) return [length];
  const bytes = [(extraBytes << 6) | (length & 0xf)];
  for (let i = 0; i < extraBytes; i++) bytes.push((length >>> (4 + 8 * i)) & 0xff);
  return bytes;
}

function extraBytesFor(length: number): number {
  if (length < 0x40) return 0;
  if (length < 0x1000) return 1;
  if (length < 0x10_0000) return 2;
  if (length <= PKG_LENGTH_MAX) return 3;
  throw new BugError(`aml: a package of ${length} bytes does not fit a PkgLength`);
}

/** PkgLength of something `bodyBytes` long; it counts its own bytes too. */
function pkgLength(bodyBytes: number): number[] {
  let extra = extraBytesFor(bodyBytes + 1);
  extra = extraBytesFor(bodyBytes + 1 + extra);
  return encodeLength(bodyBytes + 1 + extra, extra);
}

/** A bit count in a field list: PkgLength form, counting nothing but the bits. */
function fieldLength(bits: number): number[] {
  return encodeLength(bits, extraBytesFor(bits));
}

function join(parts: readonly Aml[]): number[] {
  return ([] as number[]).concat(...parts);
}

function packaged(opcode: Aml, ...parts: readonly Aml[]): Aml {
  const body = join(parts);
  return join([opcode, pkgLength(body.length), body]);
}

/** Several terms in a row. */
export function terms(list: readonly Aml[]): Aml {
  return join(list);
}

// ---- ACPI 6.4 §20.2.2: names ----------------------------------------------------------------------------------

const NAME_SEGMENT = /^[A-Z_][A-Z0-9_]{0,3}$/;
const Prefix = { Dual: 0x2e, Multi: 0x2f, Root: 0x5c, Parent: 0x5e } as const;

function nameSegment(segment: string): number[] {
  if (!NAME_SEGMENT.test(segment)) throw new BugError(`aml: "${segment}" is not a name segment`);
  const padded = segment.padEnd(4, '_');
  return [padded.charCodeAt(0), padded.charCodeAt(1), padded.charCodeAt(2), padded.charCodeAt(3)];
}

/** Paths made so far: a DSDT says `_HID` and `_CRS` some forty times, and is built while the guest waits to start. */
const pathCache = new Map<string, Aml>();

/** NameString of a path: `ABCD`, `\\_SB.PCI0`, `^^PR00._PPC`, or `\\` and `^` alone. */
export function path(name: string): Aml {
  let encoded = pathCache.get(name);
  if (encoded === undefined) {
    encoded = encodePath(name);
    pathCache.set(name, encoded);
  }
  return encoded;
}

function encodePath(name: string): Aml {
  const prefix: number[] = [];
  if (name[0] === '\\') prefix.push(Prefix.Root);
  else while (name[prefix.length] === '^') prefix.push(Prefix.Parent);
  const rest = name.slice(prefix.length);
  if (rest === '') {
    if (prefix.length === 0) throw new BugError('aml: a name is empty');
    return [...prefix, 0];
  }
  const segments = rest.split('.');
  if (segments.length > 255) throw new BugError(`aml: the path ${name} has more than 255 segments`);
  if (segments.length === 2) prefix.push(Prefix.Dual);
  else if (segments.length > 2) prefix.push(Prefix.Multi, segments.length);
  return join([prefix, ...segments.map(nameSegment)]);
}

// ---- ACPI 6.4 §20.2.3: data objects ---------------------------------------------------------------------------

const Op = {
  Zero: 0x00,
  One: 0x01,
  Name: 0x08,
  BytePrefix: 0x0a,
  WordPrefix: 0x0b,
  DWordPrefix: 0x0c,
  StringPrefix: 0x0d,
  QWordPrefix: 0x0e,
  Scope: 0x10,
  Buffer: 0x11,
  Package: 0x12,
  VarPackage: 0x13,
  Method: 0x14,
  Local0: 0x60,
  Arg0: 0x68,
  Store: 0x70,
  Add: 0x72,
  Concat: 0x73,
  Decrement: 0x76,
  ShiftLeft: 0x79,
  And: 0x7b,
  Or: 0x7d,
  FindSetRightBit: 0x82,
  ConcatRes: 0x84,
  CreateDWordField: 0x8a,
  CreateWordField: 0x8b,
  LEqual: 0x93,
  LLess: 0x95,
  ToInteger: 0x99,
  If: 0xa0,
  Else: 0xa1,
  While: 0xa2,
  Return: 0xa4,
  Break: 0xa5,
  Ones: 0xff,
} as const;

/** Two-byte opcodes begin with this (ExtOpPrefix). */
const EXT = 0x5b;
const ExtOp = {
  OperationRegion: 0x80,
  Field: 0x81,
  Device: 0x82,
} as const;

const MAX_U64 = 0xffff_ffff_ffff_ffffn;

function littleEndian(value: number, bytes: number): number[] {
  const out: number[] = [];
  let rest = value;
  for (let i = 0; i < bytes; i++) {
    out.push(rest % 256);
    rest = Math.floor(rest / 256);
  }
  return out;
}

/**
 * An integer constant in its shortest form (ComputationalData).
 * @throws BugError unless it is an unsigned integer of at most 64 bits; a number must be a safe integer.
 */
export function integer(value: number | bigint): Aml {
  if (typeof value === 'bigint') {
    if (value === MAX_U64) return [Op.Ones];
    if (value < 0n || value > MAX_U64) throw new BugError(`aml: ${value} is not an unsigned 64-bit integer`);
    if (value <= BigInt(Number.MAX_SAFE_INTEGER)) return integer(Number(value));
    return [Op.QWordPrefix, ...littleEndian(Number(value & 0xffff_ffffn), 4), ...littleEndian(Number(value >> 32n), 4)];
  }
  if (!Number.isSafeInteger(value) || value < 0) throw new BugError(`aml: ${value} is not an unsigned integer`);
  if (value === 0) return [Op.Zero];
  if (value === 1) return [Op.One];
  if (value <= 0xff) return [Op.BytePrefix, value];
  if (value <= 0xffff) return [Op.WordPrefix, ...littleEndian(value, 2)];
  if (value <= 0xffff_ffff) return [Op.DWordPrefix, ...littleEndian(value, 4)];
  return [Op.QWordPrefix, ...littleEndian(value, 8)];
}

/** A string constant: ASCII without NUL. */
export function text(value: string): Aml {
  const codes = Array.from(value, (c) => c.charCodeAt(0));
  if (codes.some((c) => c === 0 || c > 0x7f)) throw new BugError(`aml: "${value}" is not plain ASCII`);
  return [Op.StringPrefix, ...codes, 0];
}

function operand(value: Operand): Aml {
  if (typeof value === 'string') return path(value);
  if (typeof value === 'number' || typeof value === 'bigint') return integer(value);
  return value;
}

/** A buffer of given content, and of `sizeBytes` (content and zeroes) if that is more. */
export function buffer(bytes: Aml | Uint8Array, sizeBytes: number = bytes.length): Aml {
  return packaged([Op.Buffer], integer(sizeBytes), Array.from(bytes));
}

/** UTF-16 text with a terminating NUL, as `_STR` wants it (ASL `Unicode`). */
export function unicode(value: string): Aml {
  const bytes: number[] = [];
  for (let i = 0; i < value.length; i++) bytes.push(...littleEndian(value.charCodeAt(i), 2));
  return buffer([...bytes, 0, 0]);
}

/** A package of constant length; elements are data, names or terms. */
export function pkg(elements: readonly Operand[]): Aml {
  if (elements.length > 255) {
    return packaged([Op.VarPackage], integer(elements.length), ...elements.map(operand));
  }
  return packaged([Op.Package], [elements.length], ...elements.map(operand));
}

/**
 * Compressed EISA id, `PNP0303` (ACPI 6.4 §19.6.36): three letters of 5 bits and four hex digits, most significant
 * byte first; an integer like any other, so `PNP0000` takes only a word.
 */
export function eisaId(id: string): Aml {
  const match = /^([A-Z]{3})([0-9A-F]{4})$/.exec(id);
  if (match === null) throw new BugError(`aml: "${id}" is not an EISA id`);
  const letters = match[1] as string;
  const letter = (i: number) => letters.charCodeAt(i) - 0x40;
  const vendor = (letter(0) << 10) | (letter(1) << 5) | letter(2);
  const product = Number.parseInt(match[2] as string, 16);
  const bytes = [vendor >>> 8, vendor & 0xff, product >>> 8, product & 0xff] as const;
  return integer(bytes[0] + (bytes[1] << 8) + (bytes[2] << 16) + bytes[3] * 0x100_0000);
}

/** A UUID as the buffer `_OSC` and `_DSM` take (ACPI 6.4 §19.6.142): the first three groups little endian. */
export function uuid(value: string): Aml {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(value)) throw new BugError(`aml: "${value}" is not a UUID`);
  const hex = value.replaceAll('-', '');
  const order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
  return buffer(order.map((i) => Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16)));
}

// ---- ACPI 6.4 §20.2.5: named objects and scopes ---------------------------------------------------------------

export function name(object: string, value: Operand): Aml {
  return join([[Op.Name], path(object), operand(value)]);
}

export function scope(location: string, body: readonly Aml[]): Aml {
  return packaged([Op.Scope], path(location), ...body);
}

export function device(object: string, body: readonly Aml[]): Aml {
  return packaged([EXT, ExtOp.Device], path(object), ...body);
}

export interface MethodOptions {
  /** Only one thread at a time; needed when the body creates named objects. */
  readonly serialized?: boolean;
  readonly syncLevel?: number;
}

export function method(object: string, argumentCount: number, body: readonly Aml[], options: MethodOptions = {}): Aml {
  if (!Number.isInteger(argumentCount) || argumentCount < 0 || argumentCount > 7)
    throw new BugError(`aml: method ${object} cannot have ${argumentCount} arguments`);
  const flags = argumentCount | (options.serialized === true ? 0x08 : 0) | ((options.syncLevel ?? 0) << 4);
  return packaged([Op.Method], path(object), [flags], ...body);
}

/** For a method whose body creates named objects. */
export const SERIALIZED: MethodOptions = { serialized: true };

export const RegionSpace = { SystemMemory: 0, SystemIo: 1, PciConfig: 2, EmbeddedControl: 3, Smbus: 4 } as const;

export function operationRegion(object: string, space: number, offset: Operand, length: Operand): Aml {
  return join([[EXT, ExtOp.OperationRegion], path(object), [space], operand(offset), operand(length)]);
}

export const FieldAccess = { Any: 0, Byte: 1, Word: 2, DWord: 3, QWord: 4, Buffer: 5 } as const;
export const FieldUpdate = { Preserve: 0, WriteAsOnes: 1, WriteAsZeros: 2 } as const;

/** One entry of a field list. */
export type FieldElement =
  /** A named run of bits. */
  | { readonly name: string; readonly bits: number }
  /** Bits that have no name. */
  | { readonly skipBits: number }
  /** What follows begins at this byte of the region. */
  | { readonly offset: number };

export interface FieldOptions {
  readonly access?: number;
  readonly lock?: boolean;
  readonly update?: number;
}

/** `Field (region, access, lock, update) { ... }` (ACPI 6.4 §19.6.48). */
export function field(region: string, options: FieldOptions, elements: readonly FieldElement[]): Aml {
  const flags =
    (options.access ?? FieldAccess.Any) |
    (options.lock === true ? 0x10 : 0) |
    ((options.update ?? FieldUpdate.Preserve) << 5);
  const list: Aml[] = [];
  let bit = 0;
  for (const element of elements) {
    if ('name' in element) {
      list.push(nameSegment(element.name), fieldLength(element.bits));
      bit += element.bits;
      continue;
    }
    const skip = 'offset' in element ? element.offset * 8 - bit : element.skipBits;
    if (skip < 0) throw new BugError(`aml: a field of ${region} would go back to offset ${(bit + skip) / 8}`);
    list.push([0], fieldLength(skip));
    bit += skip;
  }
  return packaged([EXT, ExtOp.Field], path(region), [flags], ...list);
}

// ---- ACPI 6.4 §20.2.5.4: expressions and statements -----------------------------------------------------------

export function local(index: number): Aml {
  if (index < 0 || index > 7) throw new BugError(`aml: there is no Local${index}`);
  return [Op.Local0 + index];
}

export function arg(index: number): Aml {
  if (index < 0 || index > 6) throw new BugError(`aml: there is no Arg${index}`);
  return [Op.Arg0 + index];
}

/** No target: the result is only the value of the expression. */
const NO_TARGET: Aml = [0];

function target(value: Operand | undefined): Aml {
  return value === undefined ? NO_TARGET : operand(value);
}

/** Opcodes of the shape `op operand operand target`. */
function binary(opcode: number) {
  return (a: Operand, b: Operand, into?: Operand): Aml => join([[opcode], operand(a), operand(b), target(into)]);
}
/** `op operand target`. */
function unary(opcode: number) {
  return (a: Operand, into?: Operand): Aml => join([[opcode], operand(a), target(into)]);
}
/** `op operand`. */
function plain(opcode: number) {
  return (a: Operand): Aml => join([[opcode], operand(a)]);
}
/** `op operand operand`, a truth value. */
function compare(...opcodes: number[]) {
  return (a: Operand, b: Operand): Aml => join([opcodes, operand(a), operand(b)]);
}
/** `op source index name`: a new name for part of a buffer. */
function createField(opcode: number) {
  return (source: Operand, index: Operand, object: string): Aml =>
    join([[opcode], operand(source), operand(index), path(object)]);
}

export const add = binary(Op.Add);
export const shiftLeft = binary(Op.ShiftLeft);
export const and = binary(Op.And);
export const or = binary(Op.Or);
export const concatenate = binary(Op.Concat);
export const concatenateResources = binary(Op.ConcatRes);

export const findSetRightBit = unary(Op.FindSetRightBit);
export const toInteger = unary(Op.ToInteger);

export const decrement = plain(Op.Decrement);
export const ret = plain(Op.Return);

export const equal = compare(Op.LEqual);
export const less = compare(Op.LLess);

export const createWordField = createField(Op.CreateWordField);
export const createDWordField = createField(Op.CreateDWordField);

export function store(value: Operand, into: Operand): Aml {
  return join([[Op.Store], operand(value), operand(into)]);
}

/** Call a method. How many arguments follow is known only from the method itself. */
export function call(object: string, ...args: readonly Operand[]): Aml {
  return join([path(object), ...args.map(operand)]);
}

/** `If (predicate) { ... }`, with `Else { ... }` when `otherwise` is given. */
export function ifElse(predicate: Operand, then: readonly Aml[], otherwise?: readonly Aml[]): Aml {
  const branch = packaged([Op.If], operand(predicate), ...then);
  return otherwise === undefined ? branch : join([branch, packaged([Op.Else], ...otherwise)]);
}

export function whileLoop(predicate: Operand, body: readonly Aml[]): Aml {
  return packaged([Op.While], operand(predicate), ...body);
}

export const breakLoop: Aml = [Op.Break];

/** `_STA`: there, enabled, shown, working (ACPI 6.4 §6.3.7). */
export const PRESENT: Aml = method('_STA', 0, [ret(0x0f)]);
