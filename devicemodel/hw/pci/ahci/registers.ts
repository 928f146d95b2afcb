/** Registers and structures of a SATA host controller (AHCI 1.3.1) and of what it exchanges with drives (SATA 3.2). */

/** Generic host control (§3.1). */
export const HbaReg = {
  Cap: 0x00,
  Ghc: 0x04,
  Is: 0x08,
  Pi: 0x0c,
  Vs: 0x10,
  Cap2: 0x24,
} as const;

/** Registers of port n begin here, this far apart (§3). */
export const PORTS_OFFSET = 0x100;
export const PORT_BYTES = 0x80;
export const MAX_PORTS = 32;
/** Commands a port may have at once. */
export const SLOTS = 32;

/** CAP (§3.1.1). */
export const Cap = {
  ExternalSata: 1 << 5,
  CommandSlotsShift: 8,
  PartialState: 1 << 13,
  SlumberState: 1 << 14,
  PioMultipleDrq: 1 << 15,
  Generation3: 3 << 20,
  CommandListOverride: 1 << 24,
  ActivityLed: 1 << 25,
  AggressiveLinkPower: 1 << 26,
  StaggeredSpinUp: 1 << 27,
  MechanicalPresence: 1 << 28,
  SNotification: 1 << 29,
  NativeQueuing: 1 << 30,
  Addresses64: 1 << 31,
} as const;

/** GHC (§3.1.2). */
export const Ghc = { HbaReset: 1 << 0, InterruptEnable: 1 << 1, AhciEnable: 0x8000_0000 } as const;
/** VS: 1.3. */
export const VERSION = 0x0001_0300;
/** CAP2 (§3.1.10): automatic partial to slumber transitions. */
export const CAP2_APST = 1 << 2;

/** Port registers (§3.3), from the port's first. */
export const PortReg = {
  Clb: 0x00,
  Clbu: 0x04,
  Fb: 0x08,
  Fbu: 0x0c,
  Is: 0x10,
  Ie: 0x14,
  Cmd: 0x18,
  Tfd: 0x20,
  Sig: 0x24,
  Ssts: 0x28,
  Sctl: 0x2c,
  Serr: 0x30,
  Sact: 0x34,
  Ci: 0x38,
  Sntf: 0x3c,
} as const;

/** PxIS (§3.3.5). */
export const PortInt = {
  D2hRegister: 1 << 0,
  PioSetup: 1 << 1,
  SetDeviceBits: 1 << 3,
  HostBusFatal: 1 << 29,
  TaskFileError: 1 << 30,
} as const;
/** Interrupts there are: PxIE (§3.3.6) takes no others. */
export const PORT_INTERRUPTS = 0xfdc0_00ff;

/** PxCMD (§3.3.7). */
export const PortCmd = {
  Start: 1 << 0,
  SpinUp: 1 << 1,
  PowerOn: 1 << 2,
  ListOverride: 1 << 3,
  FisReceive: 1 << 4,
  CurrentSlotShift: 8,
  CurrentSlot: 0x1f << 8,
  FisReceiveRunning: 1 << 14,
  ListRunning: 1 << 15,
  ColdPresence: 1 << 16,
  InterfaceControl: 0xf << 28,
  /** ST, SUD, POD, CLO, FRE, APSTE, ATAPI, DLAE, ALPE, ASP, ICC. */
  Writable: 0xff80_001f,
} as const;

/** PxSSTS and PxSCTL (§3.3.10, §3.3.11). */
export const Link = {
  DetPresent: 3,
  DetReset: 1,
  SpeedMask: 0xf0,
  Generation3: 3 << 4,
  Active: 1 << 8,
} as const;

/** Status register of a drive (ACS-3 §6.2), bits 7:0 of PxTFD. */
export const AtaStatus = {
  Error: 1 << 0,
  DataRequest: 1 << 3,
  /** Seek complete; of an ATAPI device: service. */
  SeekComplete: 1 << 4,
  DeviceFault: 1 << 5,
  Ready: 1 << 6,
  Busy: 1 << 7,
} as const;
/** Error register (ACS-3 §6.3), bits 15:8 of PxTFD. */
export const AtaError = { Abort: 1 << 2, IdNotFound: 1 << 4 } as const;
/** PxTFD where no drive is. */
export const NO_DRIVE_STATUS = 0x7f;

/** PxSIG (§3.3.9). */
export const Signature = { Ata: 0x0000_0101, Atapi: 0xeb14_0101, None: 0xffff_ffff } as const;

/** Frames (SATA 3.2 §10.5). */
export const FisType = { RegisterH2d: 0x27, RegisterD2h: 0x34, PioSetup: 0x5f, SetDeviceBits: 0xa1 } as const;
/** Byte 1 of a frame: H2D has a command, D2H wants an interrupt, set device bits has a notification. */
export const FisFlag = { Command: 1 << 7, Interrupt: 1 << 6, Notification: 1 << 7 } as const;
/** Device control in byte 15 of an H2D frame: software reset. */
export const CONTROL_SRST = 1 << 2;
/** Where frames are put that come from the drive (§4.2.1). */
export const ReceivedFis = { PioSetup: 0x20, RegisterD2h: 0x40, SetDeviceBits: 0x58, Bytes: 0x100 } as const;

/** Command header (§4.2.2). */
export const Header = { Bytes: 32, PrdtLength: 2, ByteCount: 4, Table: 8, TableHigh: 12 } as const;
export const COMMAND_LIST_BYTES = SLOTS * Header.Bytes;
/** The list is aligned to its size, the received frames to theirs (§3.3.1, §3.3.3): low address bits are zero. */
export const LIST_ALIGNMENT_MASK = 0xffff_fc00;
export const FIS_ALIGNMENT_MASK = 0xffff_ff00;

/** Command table (§4.2.3): command frame, ATAPI command, physical region descriptors. */
export const Table = { PacketCommand: 0x40, CommandBytes: 0x50, Prdt: 0x80 } as const;
/** Physical region descriptor (§4.2.3.3). The count is one less than the bytes. */
export const Prd = { Bytes: 16, Address: 0, AddressHigh: 4, Count: 12, CountMask: 0x3f_ffff } as const;

/** Bytes of a command frame that name what is asked for (SATA 3.2 §10.5.5). */
export const Fis = {
  Type: 0,
  Flags: 1,
  Command: 2,
  Features: 3,
  Lba0: 4,
  Lba1: 5,
  Lba2: 6,
  Device: 7,
  Lba3: 8,
  Lba4: 9,
  Lba5: 10,
  FeaturesHigh: 11,
  Count: 12,
  CountHigh: 13,
  Control: 15,
  Auxiliary: 16,
} as const;
