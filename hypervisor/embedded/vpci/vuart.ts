/**
 * The hypervisor's PCI vUART (MCS9900): 16550 registers in BAR0, one MSI-X vector, and a wire to the vUART of another
 * VM. Registers: PC16550D data sheet; behaviour of ACRN's dm/vuart.c and dm/vpci/vmcs9900.c.
 */
import { type AccessSize, allOnes } from '../../../devicemodel/core/address.ts';
import type { IoRegion } from '../../../devicemodel/core/device.ts';
import type { VuartVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { VirtualFunction, VirtualFunctionHost } from '../virtual-function.ts';
import { ConfigSpace, Register } from './config-space.ts';
import { MSIX_BAR_BYTES, MsixTable } from './msix.ts';

const Id = { vendor: 0x9710, device: 0x9900, class: 0x07, progIf: 0x02, subsystemVendor: 0xa000, subsystem: 0x1000 };
const Bar = { Registers: 0, Msix: 1 } as const;
const REGISTERS_BYTES = 0x1000;

/** Offsets; with DLAB set, 0 and 1 are the divisor latch. */
const Reg = { RbrThr: 0, Ier: 1, IirFcr: 2, Lcr: 3, Mcr: 4, Lsr: 5, Msr: 6, Scr: 7 } as const;
const Ier = { ReceivedData: 1, ThrEmpty: 2, LineStatus: 4, ModemStatus: 8 } as const;
const Iir = { None: 1, ModemStatus: 0, ThrEmpty: 2, ReceivedData: 4, LineStatus: 6, FifosEnabled: 0xc0 } as const;
const Fcr = { Enable: 1, ResetReceiver: 2, Kept: 0xc9 } as const;
const LCR_DLAB = 0x80;
const Mcr = { Dtr: 1, Rts: 2, Out1: 4, Out2: 8, Loopback: 0x10 } as const;
const Lsr = { DataReady: 1, Overrun: 2, Break: 0x10, ThrEmpty: 0x20, TransmitterEmpty: 0x40 } as const;
const Msr = {
  DeltaCts: 1,
  DeltaDsr: 2,
  TrailingRi: 4,
  DeltaDcd: 8,
  Cts: 0x10,
  Dsr: 0x20,
  Ri: 0x40,
  Dcd: 0x80,
} as const;
const MSR_DELTAS = 0xf;

/** Bytes a receiver holds; ACRN's default. */
export const VUART_FIFO_BYTES = 256;
/** A sender is told to wait when fewer bytes than this are free: drivers send 16 for one THRE interrupt. */
export const VUART_FIFO_RESERVE = 64;

/** The far end of the wire. */
export interface VuartWire {
  /** Whether a vUART is at the other end. */
  readonly isConnected: boolean;
  /** Whether its FIFO has room. */
  readonly hasRoom: boolean;
  send(byte: number): void;
  /** The guest has taken a byte that came by the wire. */
  consumed(): void;
  /** Bytes from the other end; and the other end has room again, or appeared, or went. */
  attach(handlers: { receive(byte: number): void; changed(): void }): void;
  dispose(): void;
}

/** Registers and FIFO; no PCI. */
class Uart implements IoRegion {
  readonly #wire: VuartWire;
  readonly #interrupt: () => void;
  #ier = 0;
  #fcr = 0;
  #lcr = 0;
  #mcr = 0;
  #msr: number = Msr.Dcd | Msr.Dsr;
  #scratch = 0;
  /** 115200 baud. */
  #divisor = 1;
  #overrun = false;
  #isThrePending = true;
  readonly #fifo = new Uint8Array(VUART_FIFO_BYTES);
  #fifoRead = 0;
  #fifoCount = 0;
  /** What the last interrupt was about; a new reason or a new cause sends another one, as an edge would. */
  #signalled: number = Iir.None;

  constructor(wire: VuartWire, interrupt: () => void) {
    this.#wire = wire;
    this.#interrupt = interrupt;
    wire.attach({ receive: (byte) => this.#receive(byte), changed: () => this.#roomChanged() });
  }

  read(offset: number, size: AccessSize): number {
    if (size !== 1) return this.read(offset, 1); // byte registers: the upper lanes are 0
    if ((this.#lcr & LCR_DLAB) !== 0 && offset <= Reg.Scr) {
      // Compat: with DLAB set, ACRN answers 0 for all other registers, and drivers read LSR and MSR then.
      if (offset === Reg.RbrThr) return this.#divisor & 0xff;
      if (offset === Reg.Ier) return this.#divisor >>> 8;
    }
    switch (offset) {
      case Reg.RbrThr:
        return this.#take();
      case Reg.Ier:
        return this.#ier;
      case Reg.IirFcr: {
        const reason = this.#reason;
        if (reason === Iir.ThrEmpty) this.#isThrePending = false;
        this.#update(false);
        return reason | ((this.#fcr & Fcr.Enable) !== 0 ? Iir.FifosEnabled : 0);
      }
      case Reg.Lcr:
        return this.#lcr;
      case Reg.Mcr:
        return this.#mcr;
      case Reg.Lsr: {
        const status =
          (this.#fifoCount > 0 ? Lsr.DataReady : 0) |
          (this.#overrun ? Lsr.Overrun : 0) |
          (!this.#wire.isConnected || this.#wire.hasRoom ? Lsr.ThrEmpty | Lsr.TransmitterEmpty : 0);
        this.#overrun = false;
        this.#update(false);
        return status;
      }
      case Reg.Msr: {
        const status = this.#msr;
        this.#msr &= ~MSR_DELTAS;
        this.#update(false);
        return status;
      }
      case Reg.Scr:
        return this.#scratch;
      default:
        return allOnes(1);
    }
  }

  write(offset: number, _size: AccessSize, value: number): void {
    const byte = value & 0xff;
    if ((this.#lcr & LCR_DLAB) !== 0) {
      if (offset === Reg.RbrThr) {
        this.#divisor = (this.#divisor & 0xff00) | byte;
        return;
      }
      if (offset === Reg.Ier) {
        this.#divisor = (this.#divisor & 0xff) | (byte << 8);
        return;
      }
    }
    switch (offset) {
      case Reg.RbrThr:
        this.#transmit(byte);
        break;
      case Reg.Ier: {
        const enablesThre = (byte & Ier.ThrEmpty) !== 0 && (this.#ier & Ier.ThrEmpty) === 0;
        if (enablesThre) this.#isThrePending = true;
        this.#ier = byte & 0xf;
        this.#update(true);
        break;
      }
      case Reg.IirFcr:
        if ((byte & Fcr.Enable) === 0) {
          this.#fcr = 0;
        } else {
          if ((byte & Fcr.ResetReceiver) !== 0) while (this.#fifoCount > 0) this.#take();
          this.#fcr = byte & Fcr.Kept;
        }
        this.#update(false);
        break;
      case Reg.Lcr:
        this.#lcr = byte;
        break;
      case Reg.Mcr:
        this.#mcr = byte & 0x1f;
        this.#updateModem();
        this.#update(false);
        break;
      case Reg.Scr:
        this.#scratch = byte;
        break;
      default:
        break; // LSR, MSR and beyond
    }
  }

  #transmit(byte: number): void {
    this.#isThrePending = false;
    if ((this.#mcr & Mcr.Loopback) !== 0) {
      this.#put(byte);
      this.#isThrePending = true;
    } else {
      if (this.#wire.isConnected) this.#wire.send(byte); // with nobody there it is gone, as on an open wire
      if (!this.#wire.isConnected || this.#wire.hasRoom) this.#isThrePending = true;
    }
    this.#update(true);
  }

  #receive(byte: number): void {
    this.#put(byte);
    this.#update(true);
  }

  /** The oldest byte makes room when the guest does not read. */
  #put(byte: number): void {
    if (this.#fifoCount === VUART_FIFO_BYTES) {
      this.#overrun = true;
      this.#fifoRead = (this.#fifoRead + 1) % VUART_FIFO_BYTES;
      this.#fifoCount--;
      this.#wire.consumed(); // its place is free again
    }
    this.#fifo[(this.#fifoRead + this.#fifoCount) % VUART_FIFO_BYTES] = byte;
    this.#fifoCount++;
  }

  #take(): number {
    if (this.#fifoCount === 0) return 0;
    const byte = this.#fifo[this.#fifoRead] as number;
    this.#fifoRead = (this.#fifoRead + 1) % VUART_FIFO_BYTES;
    this.#fifoCount--;
    this.#wire.consumed();
    this.#update(false);
    return byte;
  }

  #roomChanged(): void {
    if (this.#wire.isConnected && !this.#wire.hasRoom) return;
    this.#isThrePending = true;
    this.#update(true);
  }

  /** Highest priority first (data sheet, table IV). */
  get #reason(): number {
    if (this.#overrun && (this.#ier & Ier.LineStatus) !== 0) return Iir.LineStatus;
    if (this.#fifoCount > 0 && (this.#ier & Ier.ReceivedData) !== 0) return Iir.ReceivedData;
    if (this.#isThrePending && (this.#ier & Ier.ThrEmpty) !== 0) return Iir.ThrEmpty;
    if ((this.#msr & MSR_DELTAS) !== 0 && (this.#ier & Ier.ModemStatus) !== 0) return Iir.ModemStatus;
    return Iir.None;
  }

  /**
   * Compat: ACRN sends the message after every access while any reason stands; here a new reason or cause sends one,
   * which is what an edge-triggered message means.
   */
  #update(isNewCause: boolean): void {
    const reason = this.#reason;
    const before = this.#signalled;
    this.#signalled = reason;
    if (reason !== Iir.None && (isNewCause || reason !== before)) this.#interrupt();
  }

  #updateModem(): void {
    const mcr = this.#mcr;
    let lines: number = Msr.Dcd | Msr.Dsr; // somebody is always there: opening a tty must not block
    if ((mcr & Mcr.Loopback) !== 0) {
      lines = 0;
      if ((mcr & Mcr.Rts) !== 0) lines |= Msr.Cts;
      if ((mcr & Mcr.Dtr) !== 0) lines |= Msr.Dsr;
      if ((mcr & Mcr.Out1) !== 0) lines |= Msr.Ri;
      if ((mcr & Mcr.Out2) !== 0) lines |= Msr.Dcd;
    }
    const changed = lines ^ this.#msr;
    let deltas = this.#msr & MSR_DELTAS;
    if ((changed & Msr.Cts) !== 0) deltas |= Msr.DeltaCts;
    if ((changed & Msr.Dsr) !== 0) deltas |= Msr.DeltaDsr;
    if ((changed & Msr.Dcd) !== 0) deltas |= Msr.DeltaDcd;
    if ((this.#msr & Msr.Ri) !== 0 && (lines & Msr.Ri) === 0) deltas |= Msr.TrailingRi;
    this.#msr = lines | deltas;
  }
}

class Vuart implements VirtualFunction {
  readonly bdf: VuartVdev['bdf'];
  readonly #config = new ConfigSpace();
  readonly #wire: VuartWire;
  readonly #placed: Array<{ dispose(): void } | undefined> = [];

  constructor(vdev: VuartVdev, wire: VuartWire, host: VirtualFunctionHost) {
    this.bdf = vdev.bdf;
    this.#wire = wire;
    const config = this.#config;
    config.set(Register.VendorId, 2, Id.vendor);
    config.set(Register.DeviceId, 2, Id.device);
    config.set(Register.Class, 1, Id.class);
    config.set(Register.ProgIf, 1, Id.progIf);
    config.set(Register.SubsystemVendorId, 2, Id.subsystemVendor);
    config.set(Register.SubsystemId, 2, Id.subsystem);
    const msix = new MsixTable(1, Bar.Msix, config, host);
    const uart = new Uart(wire, () => msix.signal(0));
    const bar = (index: number, base: number, sizeBytes: number, region: IoRegion) =>
      config.addBar({
        index,
        sizeBytes,
        base,
        is64: false,
        prefetchable: false,
        place: (at) => {
          this.#placed[index]?.dispose();
          this.#placed[index] = at === undefined ? undefined : host.addRegisters(at, sizeBytes, region);
        },
      });
    bar(Bar.Registers, vdev.registersBar, REGISTERS_BYTES, uart);
    bar(Bar.Msix, vdev.msixBar, MSIX_BAR_BYTES, msix);
  }

  readConfig(offset: number, size: AccessSize): number {
    return this.#config.read(offset, size);
  }
  writeConfig(offset: number, size: AccessSize, value: number): void {
    this.#config.write(offset, size, value);
  }
  dispose(): void {
    this.#config.dispose();
    this.#wire.dispose();
  }
}

/** The function for a CREATE_VDEV whose vUART exists. */
export function createVuart(vdev: VuartVdev, wire: VuartWire, host: VirtualFunctionHost): VirtualFunction {
  return new Vuart(vdev, wire, host);
}
