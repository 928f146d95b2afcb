/**
 * Extended capabilities: which ports are of which USB (xHCI 1.0 §7.2), and of `cap=apl` the dual-role switch of Intel's
 * Apollo Lake (Linux: drivers/usb/roles/intel-xhci-usb-role-switch.c).
 */
import { FIRST_USB2_PORT, FIRST_USB3_PORT, PORTS_PER_KIND } from './registers.ts';

export interface ExtendedCapabilities {
  /** Offset of the first one in BAR 0. */
  readonly start: number;
  /** End of all registers. */
  readonly end: number;
  /** undefined where none is. */
  read(offset: number): number | undefined;
  write(offset: number, value: number): void;
  reset(): void;
}

/** §7.2: header with revision, name, ports. */
function supportedProtocol(revision: number, nextDwords: number, name: string, firstPort: number): readonly number[] {
  const SUPPORTED_PROTOCOL = 2;
  const header = ((revision << 24) | (nextDwords << 8) | SUPPORTED_PROTOCOL) >>> 0;
  return [header, Buffer.from(name, 'latin1').readUInt32LE(0), (PORTS_PER_KIND << 8) | firstPort, 0];
}

/** Where the C device model has them: among the capability registers. */
const PLAIN_START = 0x20;
const PLAIN_REGISTERS = new Map(
  [
    ...supportedProtocol(2, 4, 'USB ', FIRST_USB2_PORT),
    // Compat: the name of USB 3 ports, too; and the pointer of the last one is 0.
    ...supportedProtocol(3, 0, 'USB ', FIRST_USB3_PORT),
  ].map((value, i) => [PLAIN_START + 4 * i, value]),
);

export const plainCapabilities: ExtendedCapabilities = {
  start: PLAIN_START,
  end: 0,
  read: (offset) => PLAIN_REGISTERS.get(offset),
  write: () => {},
  reset: () => {},
};

const APL_START = 0x8000;
const APL_END = 0x80e0;
const APL_USB2 = 0x8000;
const APL_USB3 = 0x8020;
const APL_DRD = 0x8070;
const APL_REGISTERS: ReadonlyMap<number, number> = new Map(
  [
    { at: APL_USB2, dwords: supportedProtocol(2, 8, 'USB2', FIRST_USB2_PORT) },
    { at: APL_USB3, dwords: supportedProtocol(3, 0x14, 'USB3', FIRST_USB3_PORT) },
    // Vendor defined: dual role. The last one.
    { at: APL_DRD, dwords: [0xc0] },
  ].flatMap(({ at, dwords }) => dwords.map((value, i) => [at + 4 * i, value] as const)),
);

/** Dual-role configuration registers. */
const DrdReg = { Config0: 0x80d8, Config1: 0x80dc } as const;
const Config0 = { IdPin: 1 << 20, IdPinEnable: 1 << 21 } as const;
const Config1 = { HostMode: 1 << 29 } as const;

export type UsbRole = 'host' | 'device';

export class AplCapabilities implements ExtendedCapabilities {
  readonly start = APL_START;
  readonly end = APL_END;
  readonly #setRole: (role: UsbRole) => boolean;
  #config0 = 0;
  #config1 = 0;

  /** @param setRole tells the host's port, whose switch it is. @returns whether it did */
  constructor(setRole: (role: UsbRole) => boolean) {
    this.#setRole = setRole;
  }

  reset(): void {
    this.#config0 = 0;
    this.#config1 = 0;
  }

  read(offset: number): number | undefined {
    // Compat: among the capability registers C has those of the plain controller, too.
    if (offset < APL_START) return PLAIN_REGISTERS.get(offset);
    const at = offset & ~3;
    if (at === DrdReg.Config0) return this.#config0;
    if (at === DrdReg.Config1) return this.#config1;
    return APL_REGISTERS.get(at) ?? 0;
  }

  write(offset: number, value: number): void {
    if (offset !== DrdReg.Config0 || value === this.#config0) return;
    this.#config0 = value;
    if ((value & Config0.IdPinEnable) === 0) return;
    const role: UsbRole = (value & Config0.IdPin) === 0 ? 'host' : 'device';
    if (this.#setRole(role)) this.#config1 = role === 'host' ? Config1.HostMode : 0;
  }
}
