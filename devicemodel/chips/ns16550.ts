/**
 * 16550A UART. Spec: National Semiconductor PC16550D datasheet (chapter 8, "Registers"). No port and no PCI here: an
 * owner maps the eight registers and wires the interrupt.
 *
 * The line is told its level after every access, also when it did not change: on an ISA bus each such call while
 * something is pending is one more edge, as in the C device model. Where the line sends a message, it is told of news.
 */
import type { AccessSize } from '../core/address.ts';
import type { CharBackend } from '../core/char-backend.ts';
import type { Device, InterruptLine, IoRegion } from '../core/device.ts';

/** Register offsets; 0 and 1 are the divisor latch while LCR.DLAB is set. */
const Reg = { RbrThr: 0, Ier: 1, IirFcr: 2, Lcr: 3, Mcr: 4, Lsr: 5, Msr: 6, Scr: 7 } as const;
const Ier = { Received: 1 << 0, ThrEmpty: 1 << 1, LineStatus: 1 << 2, ModemStatus: 1 << 3 } as const;
/** Interrupt identification by priority; bit 0 clear means one is pending. */
const Iir = {
  None: 0x1,
  LineStatus: 0x6,
  CharTimeout: 0xc,
  ThrEmpty: 0x2,
  ModemStatus: 0x0,
  FifosEnabled: 0xc0,
} as const;
const Fcr = { Enable: 1 << 0, ReceiverReset: 1 << 1, DmaMode: 1 << 3, Trigger: 3 << 6 } as const;
const Lcr = { Dlab: 1 << 7 } as const;
const Mcr = { Dtr: 1 << 0, Rts: 1 << 1, Out1: 1 << 2, Out2: 1 << 3, Loopback: 1 << 4, Implemented: 0x1f } as const;
const Lsr = { DataReady: 1 << 0, Overrun: 1 << 1, ThrEmpty: 1 << 5, TransmitterEmpty: 1 << 6 } as const;
const Msr = {
  DeltaCts: 1 << 0,
  DeltaDsr: 1 << 1,
  TrailingRi: 1 << 2,
  DeltaDcd: 1 << 3,
  Deltas: 0x0f,
  Cts: 1 << 4,
  Dsr: 1 << 5,
  Ri: 1 << 6,
  Dcd: 1 << 7,
} as const;

export const UART_REGISTER_COUNT = 8;

/** Divisor of 9600 baud from the usual 1.8432 MHz crystal, the power-on rate of the C device model. */
const DEFAULT_DIVISOR = 1_843_200 / 16 / 9600;
/** Compat: the receiver FIFO of the C device model, larger than a 16550A's 16 bytes; seen in loopback only. */
const FIFO_BYTES = 256;
/** Input thrown away at once when the guest resets the receiver: bounds the work per access. */
const FLUSH_BYTES = 64 * 1024;

export interface Ns16550Options {
  readonly irq: InterruptLine;
  /** The line sends a message when it is raised: raise it for another reason or another cause only. Default: false. */
  readonly isMessageSignalled?: boolean;
  /** Undefined: nothing is connected. Started and stopped with the UART. */
  readonly backend: CharBackend | undefined;
}

export class Ns16550 implements Device, IoRegion {
  readonly #irq: InterruptLine;
  readonly #isMessageSignalled: boolean;
  readonly #backend: CharBackend | undefined;
  readonly #fifo = new Uint8Array(FIFO_BYTES);
  #fifoHead = 0;
  #fifoCount = 0;
  #divisorLow = 0;
  #divisorHigh = 0;
  #interruptEnable = 0;
  #fifoControl = 0;
  #lineControl = 0;
  #modemControl = 0;
  #modemStatus = 0;
  #scratch = 0;
  #hasOverrun = false;
  /** Set when THR empties, cleared when IIR names it or THR is written. Latched whether or not IER enables it. */
  #isThrePending = false;
  /** What the last message was about. */
  #signalled: number = Iir.None;

  constructor(options: Ns16550Options) {
    this.#irq = options.irq;
    this.#isMessageSignalled = options.isMessageSignalled ?? false;
    this.#backend = options.backend;
    this.#powerOn();
  }

  start(): void | Promise<void> {
    const backend = this.#backend;
    if (backend === undefined) return;
    backend.onReadable = () => this.#receive();
    backend.onRoom = () => this.#roomAgain();
    return backend.start();
  }

  stop(): void | Promise<void> {
    const backend = this.#backend;
    if (backend === undefined) return;
    backend.onReadable = undefined;
    backend.onRoom = undefined;
    return backend.stop();
  }

  /** The back end stays connected; what it holds is not lost. */
  reset(): void {
    this.#powerOn();
    this.#updateIrq();
  }

  #powerOn(): void {
    this.#fifo.fill(0);
    this.#fifoHead = 0;
    this.#fifoCount = 0;
    this.#divisorLow = DEFAULT_DIVISOR & 0xff;
    this.#divisorHigh = DEFAULT_DIVISOR >>> 8;
    this.#interruptEnable = 0;
    this.#fifoControl = 0;
    this.#lineControl = 0;
    this.#modemControl = 0;
    this.#modemStatus = this.#modemInputs();
    this.#scratch = 0;
    this.#hasOverrun = false;
    this.#isThrePending = true;
  }

  /** The registers are bytes: wider accesses are the owner's to split or refuse. Here they read the first register. */
  read(offset: number, _size: AccessSize = 1): number {
    const value = this.#readRegister(offset);
    this.#updateIrq();
    return value;
  }

  write(offset: number, _size: AccessSize, value: number): void {
    const isNews = !this.#isDlabSet() && (offset === Reg.RbrThr || offset === Reg.Ier);
    this.#writeRegister(offset, value & 0xff);
    this.#updateIrq(isNews);
  }

  #readRegister(offset: number): number {
    if (this.#isDlabSet() && offset === Reg.RbrThr) return this.#divisorLow;
    if (this.#isDlabSet() && offset === Reg.Ier) return this.#divisorHigh;
    switch (offset) {
      case Reg.RbrThr:
        return this.#takeByte();
      case Reg.Ier:
        return this.#interruptEnable;
      case Reg.IirFcr: {
        const reason = this.#pendingInterrupt();
        if (reason === Iir.ThrEmpty) this.#isThrePending = false;
        return reason | (this.#isFifoEnabled() ? Iir.FifosEnabled : 0);
      }
      case Reg.Lcr:
        return this.#lineControl;
      case Reg.Mcr:
        return this.#modemControl;
      case Reg.Lsr: {
        const overrun = this.#hasOverrun ? Lsr.Overrun : 0;
        this.#hasOverrun = false;
        const empty = this.#isTransmitterEmpty() ? Lsr.ThrEmpty | Lsr.TransmitterEmpty : 0;
        return empty | overrun | (this.#fifoCount > 0 ? Lsr.DataReady : 0);
      }
      case Reg.Msr: {
        const value = this.#modemStatus;
        this.#modemStatus &= ~Msr.Deltas;
        return value;
      }
      case Reg.Scr:
        return this.#scratch;
      default:
        return 0xff;
    }
  }

  #writeRegister(offset: number, value: number): void {
    if (this.#isDlabSet() && offset === Reg.RbrThr) {
      this.#divisorLow = value;
      return;
    }
    if (this.#isDlabSet() && offset === Reg.Ier) {
      this.#divisorHigh = value;
      return;
    }
    switch (offset) {
      case Reg.RbrThr:
        // THR is full for a moment: the interrupt line sees the condition go away and come back.
        this.#isThrePending = false;
        this.#updateIrq();
        this.#transmit(value);
        this.#isThrePending = this.#isTransmitterEmpty();
        return;
      case Reg.Ier:
        // Linux 8250 autodetection enables ETBEI while THR is empty and expects an interrupt for it.
        if ((value & ~this.#interruptEnable & Ier.ThrEmpty) !== 0 && this.#isTransmitterEmpty())
          this.#isThrePending = true;
        this.#interruptEnable = value & 0x0f;
        return;
      case Reg.IirFcr:
        this.#writeFifoControl(value);
        return;
      case Reg.Lcr:
        this.#lineControl = value;
        return;
      case Reg.Mcr:
        this.#writeModemControl(value);
        return;
      case Reg.Scr:
        this.#scratch = value;
        return;
      default:
        // LSR and MSR are read-only ("factory testing only").
        return;
    }
  }

  #writeFifoControl(value: number): void {
    const isEnabling = (value & Fcr.Enable) !== 0;
    // Both FIFOs are cleared when the mode changes; the other bits count only together with the enable bit.
    if (isEnabling !== this.#isFifoEnabled()) this.#clearReceiver();
    else if (isEnabling && (value & Fcr.ReceiverReset) !== 0) this.#clearReceiver();
    this.#fifoControl = isEnabling ? value & (Fcr.Enable | Fcr.DmaMode | Fcr.Trigger) : 0;
  }

  #writeModemControl(value: number): void {
    this.#modemControl = value & Mcr.Implemented;
    const before = this.#modemStatus;
    const after = this.#modemInputs();
    const changed = before ^ after;
    let deltas = before & Msr.Deltas;
    if ((changed & Msr.Cts) !== 0) deltas |= Msr.DeltaCts;
    if ((changed & Msr.Dsr) !== 0) deltas |= Msr.DeltaDsr;
    if ((changed & Msr.Dcd) !== 0) deltas |= Msr.DeltaDcd;
    if ((before & Msr.Ri) !== 0 && (after & Msr.Ri) === 0) deltas |= Msr.TrailingRi;
    this.#modemStatus = after | deltas;
  }

  /** The modem's lines: looped back from MCR, or a modem that is always there, so that opening the tty never waits. */
  #modemInputs(): number {
    const mcr = this.#modemControl;
    if ((mcr & Mcr.Loopback) === 0) return Msr.Dcd | Msr.Dsr;
    return (
      ((mcr & Mcr.Rts) !== 0 ? Msr.Cts : 0) |
      ((mcr & Mcr.Dtr) !== 0 ? Msr.Dsr : 0) |
      ((mcr & Mcr.Out1) !== 0 ? Msr.Ri : 0) |
      ((mcr & Mcr.Out2) !== 0 ? Msr.Dcd : 0)
    );
  }

  #transmit(byte: number): void {
    if (!this.#isLoopback()) this.#backend?.write(byte);
    else if (!this.#putByte(byte)) this.#hasOverrun = true;
  }

  /** Most back ends take every byte at once. */
  #isTransmitterEmpty(): boolean {
    return this.#isLoopback() || this.#backend?.hasRoom !== false;
  }

  #roomAgain(): void {
    this.#isThrePending = true;
    this.#updateIrq(true);
  }

  // Receiver.

  /** The back end has input. */
  #receive(): void {
    if (this.#isLoopback()) {
      // SIN is disconnected: what the other side sends is lost.
      this.#discardInput();
      return;
    }
    this.#fill();
    this.#updateIrq(true);
  }

  #fill(): void {
    const backend = this.#backend;
    if (backend === undefined || this.#isLoopback()) return;
    if (backend.takeOverrun?.() === true) this.#hasOverrun = true;
    while (this.#fifoCount < this.#capacity()) {
      const byte = backend.read();
      if (byte < 0) return;
      this.#putByte(byte);
    }
  }

  #takeByte(): number {
    if (this.#fifoCount === 0) return 0xff;
    const wasFull = this.#fifoCount >= this.#capacity();
    const byte = this.#fifo[this.#fifoHead] as number;
    this.#fifoHead = (this.#fifoHead + 1) % FIFO_BYTES;
    this.#fifoCount--;
    // The back end was left alone while there was no room.
    if (wasFull) this.#fill();
    return byte;
  }

  /** @returns false if there is no room. */
  #putByte(byte: number): boolean {
    if (this.#fifoCount >= this.#capacity()) return false;
    this.#fifo[(this.#fifoHead + this.#fifoCount) % FIFO_BYTES] = byte & 0xff;
    this.#fifoCount++;
    return true;
  }

  #clearReceiver(): void {
    this.#fifoHead = 0;
    this.#fifoCount = 0;
    // Compat: as the C device model, what waits on the host goes too; a real line would not have waited either.
    this.#discardInput();
  }

  #discardInput(): void {
    const backend = this.#backend;
    if (backend === undefined) return;
    for (let i = 0; i < FLUSH_BYTES && backend.read() >= 0; i++);
  }

  // Interrupts.

  /** Datasheet, table "Interrupt Control Functions": line status, receiver, THR, modem. */
  #pendingInterrupt(): number {
    const ier = this.#interruptEnable;
    if (this.#hasOverrun && (ier & Ier.LineStatus) !== 0) return Iir.LineStatus;
    // Compat: always as character time-out, which a driver serves the same way and needs no trigger level.
    if (this.#fifoCount > 0 && (ier & Ier.Received) !== 0) return Iir.CharTimeout;
    if (this.#isThrePending && (ier & Ier.ThrEmpty) !== 0) return Iir.ThrEmpty;
    if ((this.#modemStatus & Msr.Deltas) !== 0 && (ier & Ier.ModemStatus) !== 0) return Iir.ModemStatus;
    return Iir.None;
  }

  /** @param isNews something happened that a message has to be sent for, even if the reason is still the same. */
  #updateIrq(isNews = false): void {
    const reason = this.#pendingInterrupt();
    const isPending = reason !== Iir.None;
    if (this.#isMessageSignalled) {
      const isRaised = isPending && (isNews || reason !== this.#signalled);
      this.#signalled = reason;
      if (isPending && !isRaised) return;
    }
    this.#irq.set(isPending);
  }

  #isDlabSet(): boolean {
    return (this.#lineControl & Lcr.Dlab) !== 0;
  }
  #isLoopback(): boolean {
    return (this.#modemControl & Mcr.Loopback) !== 0;
  }
  #isFifoEnabled(): boolean {
    return (this.#fifoControl & Fcr.Enable) !== 0;
  }
  #capacity(): number {
    return this.#isFifoEnabled() ? FIFO_BYTES : 1;
  }
}
