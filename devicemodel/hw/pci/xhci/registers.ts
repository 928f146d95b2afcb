/**
 * Where the controller's registers are and what its capability registers say. Spec: eXtensible Host Controller Interface
 * 1.0, chapter 5. The layout and all values are those of the C device model.
 */

/** Root hub ports (§5.3.3): USB 3 ports first, then USB 2 ports. Slots are those Windows wants at least. */
export const PORT_COUNT = 20;
export const FIRST_USB3_PORT = 1;
export const FIRST_USB2_PORT = 11;
export const PORTS_PER_KIND = 10;
export const MAX_SLOTS = 64;
/** Endpoint contexts of a device, counted as doorbells count them: 1 is the control pipe. */
export const MAX_ENDPOINT_ID = 31;

const CAPABILITY_BYTES = 0x40;
/** Offsets in BAR 0. Ends are exclusive. */
export const Layout = {
  Operational: CAPABILITY_BYTES,
  /** Port n is at +0x10·(n-1). */
  Ports: CAPABILITY_BYTES + 0x400,
  Doorbells: 0x580,
  Runtime: 0xda0,
  Interrupter: 0xdc0,
  RuntimeEnd: 0xe00,
} as const;
export const PORT_BYTES = 0x10;

/** §5.3: offsets and values. HCCPARAMS1 comes without its pointer to extended capabilities. */
const CapabilityValue: Readonly<Record<number, number>> = {
  0: 0x0100_0000 | CAPABILITY_BYTES, // CAPLENGTH, HCIVERSION 1.0
  4: (PORT_COUNT << 24) | (1 << 8) | MAX_SLOTS, // HCSPARAMS1: ports, interrupters, slots
  8: (2 << 4) | 4, // HCSPARAMS2: 2^2 event ring segments, isochronous scheduling threshold
  20: Layout.Doorbells, // DBOFF
  24: Layout.Runtime, // RTSOFF
};
const HCCPARAMS1 = 0x10;
/** 2^(1+1) primary streams, short packets reported, no secondary streams; 32-bit addresses, contexts of 32 bytes. */
const HCCPARAMS1_VALUE = (1 << 12) | (1 << 9) | (1 << 7);
/** §5.3.6: largest value of MaxPStreams in an endpoint context. */
export const MAX_PRIMARY_STREAMS_EXPONENT = 1;

/** @param extendedOffset where the list of extended capabilities starts, in bytes. */
export function readCapability(offset: number, extendedOffset: number): number {
  if (offset === HCCPARAMS1) return (HCCPARAMS1_VALUE | ((extendedOffset >>> 2) << 16)) >>> 0;
  return CapabilityValue[offset] ?? 0;
}

/** §5.4, from {@link Layout.Operational}. */
export const Op = {
  Command: 0x00,
  Status: 0x04,
  PageSize: 0x08,
  DeviceNotification: 0x14,
  CommandRingLow: 0x18,
  CommandRingHigh: 0x1c,
  ContextsLow: 0x30,
  ContextsHigh: 0x34,
  Configure: 0x38,
} as const;

/** §5.4.1. */
export const UsbCommand = {
  Run: 1 << 0,
  Reset: 1 << 1,
  InterruptEnable: 1 << 2,
  SaveState: 1 << 8,
  RestoreState: 1 << 9,
};
/** Bits that are kept as they are written. */
export const USB_COMMAND_MASK = 0x3f0f;

/** §5.4.2. */
export const UsbStatus = {
  Halted: 1 << 0,
  SystemError: 1 << 2,
  EventInterrupt: 1 << 3,
  PortChange: 1 << 4,
  Saving: 1 << 8,
  Restoring: 1 << 9,
  SaveError: 1 << 10,
  NotReady: 1 << 11,
} as const;
/** Bits that a write of 1 clears. */
export const USB_STATUS_CLEARED_BY_ONE =
  UsbStatus.SystemError |
  UsbStatus.EventInterrupt |
  UsbStatus.PortChange |
  UsbStatus.Saving |
  UsbStatus.Restoring |
  UsbStatus.SaveError |
  UsbStatus.NotReady;

/** §5.4.5. */
export const CommandRingControl = { CycleState: 1 << 0, Stop: 1 << 1, Abort: 1 << 2, Running: 1 << 3 } as const;

export function joinAddress(low: number, high: number): number {
  return high * 0x1_0000_0000 + low;
}
