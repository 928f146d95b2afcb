/**
 * Addresses as the guest sees them. All are plain numbers: a 64-bit guest-physical address fits a safe integer,
 * and a number is looked up several times faster than a bigint.
 */

/** Guest-physical address in bytes, below 2^52. */
export type Gpa = number;
/** x86 I/O port, 0..0xffff. */
export type Port = number;
/** Global system interrupt: an input pin of the virtual IOAPIC. */
export type Gsi = number;
/** Width of one access by the guest, in bytes. */
export type AccessSize = 1 | 2 | 4;

/** A PCI function's address: bus 0..255, device 0..31, function 0..7. */
export interface Bdf {
  readonly bus: number;
  readonly device: number;
  readonly function: number;
}

/** Pack as the 16-bit requester id of PCI Express (bus 15:8, device 7:3, function 2:0). */
export function bdfToNumber(bdf: Bdf): number {
  return (bdf.bus << 8) | (bdf.device << 3) | bdf.function;
}

/** `bb:dd.f` in hexadecimal, as lspci prints it. */
export function formatBdf(bdf: Bdf): string {
  const hex = (n: number) => n.toString(16).padStart(2, '0');
  return `${hex(bdf.bus)}:${hex(bdf.device)}.${bdf.function}`;
}

/** `BUS:DEVICE:FUNCTION` in decimal, as `-s` and the commands of a running VM name a slot. */
export function formatSlot({ bus, device, function: fn }: Bdf): string {
  return `${bus}:${device}:${fn}`;
}

/** All ones of an access width: what a read returns where no device answers. */
export function allOnes(size: AccessSize): number {
  return size === 4 ? 0xffffffff : size === 2 ? 0xffff : 0xff;
}

/** A number as `0x…`, for messages. */
export function hex(value: number | bigint, digits = 0): string {
  return `0x${value.toString(16).padStart(digits, '0')}`;
}
