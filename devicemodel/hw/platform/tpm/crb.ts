/**
 * The command response buffer of a TPM 2.0, locality 0 only. Spec: TCG PC Client Platform TPM Profile 1.05 §6.5.
 * Commands run elsewhere: START reads 1 until the response is in the buffer, there is no interrupt.
 */
import type { AccessSize, Gpa } from '../../../core/address.ts';
import type { IoRegion } from '../../../core/device.ts';
import { HEADER_BYTES, plainResponse, ResponseCode, sizeOf, type TpmBackend } from './backend.ts';

/** Offsets of registers (§6.5.3.2, table 25). */
const Reg = {
  LocState: 0x00,
  LocCtrl: 0x08,
  LocSts: 0x0c,
  IntfIdLow: 0x30,
  IntfIdHigh: 0x34,
  CtrlReq: 0x40,
  CtrlSts: 0x44,
  CtrlCancel: 0x48,
  CtrlStart: 0x4c,
  CmdSize: 0x58,
  CmdAddressLow: 0x5c,
  CmdAddressHigh: 0x60,
  RspSize: 0x64,
  RspAddressLow: 0x68,
  RspAddressHigh: 0x6c,
} as const;

const LocState = { NotEstablished: 1 << 0, Assigned: 1 << 1, Valid: 1 << 7 } as const;
const LocCtrl = { Request: 1 << 0, Relinquish: 1 << 1 } as const;
const LocSts = { Granted: 1 << 0 } as const;
const CtrlReq = { CommandReady: 1 << 0, GoIdle: 1 << 1 } as const;
const CtrlSts = { Idle: 1 << 1 } as const;
/** CRB active, version 1, locality 0 only, transfers of 64 bytes, CRB selected; vendor 8086, device 0. */
const INTF_ID_LOW = 0x0002_5811;
const INTF_ID_HIGH = 0x0000_8086;

const BUFFER_AT = 0x80;
const DWORD_MASK = ~3;
/** Registers and buffer. [TPM_CRB_MMIO_SIZE] */
export const CRB_BYTES = 0x5000;
export const CRB_BUFFER_BYTES = CRB_BYTES - BUFFER_AT;

export class Crb implements IoRegion {
  readonly #bufferGpa: Gpa;
  readonly #backend: TpmBackend;
  /** Of commands and of their responses. */
  readonly #buffer = new Uint8Array(CRB_BUFFER_BYTES);
  readonly #view = new DataView(this.#buffer.buffer);
  #isAssigned = false;
  #isIdle = true;
  #isBusy = false;
  /** Counts resets: what a command of before answers is nobody's. */
  #era = 0;

  constructor(base: Gpa, backend: TpmBackend) {
    this.#bufferGpa = base + BUFFER_AT;
    this.#backend = backend;
  }

  /** Registers and buffer as after power-on; the TPM behind it is somebody else's. */
  reset(): void {
    this.#buffer.fill(0);
    this.#isAssigned = false;
    this.#isIdle = true;
    this.#isBusy = false;
    this.#era++;
  }

  /** Compat: C gives the lowest bytes of the dword for what is within it. */
  read(offset: number, size: AccessSize): number {
    if (offset >= BUFFER_AT) return this.#readBuffer(offset - BUFFER_AT, size);
    let value = 0;
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const byte =
        at >= BUFFER_AT ? this.#readBuffer(at - BUFFER_AT, 1) : this.#register(at & DWORD_MASK) >>> (8 * (at & 3));
      value |= (byte & 0xff) << (8 * i);
    }
    return value >>> 0;
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset >= BUFFER_AT) this.#writeBuffer(offset - BUFFER_AT, size, value);
    else this.#writeRegister(offset, value);
  }

  #register(offset: number): number {
    switch (offset) {
      case Reg.LocState:
        return (
          LocState.Valid |
          (this.#isAssigned ? LocState.Assigned : 0) |
          (this.#backend.isEstablished ? 0 : LocState.NotEstablished)
        );
      case Reg.LocSts:
        return this.#isAssigned ? LocSts.Granted : 0;
      case Reg.IntfIdLow:
        return INTF_ID_LOW;
      case Reg.IntfIdHigh:
        return INTF_ID_HIGH;
      case Reg.CtrlSts:
        return this.#isIdle ? CtrlSts.Idle : 0;
      case Reg.CtrlStart:
        return this.#isBusy ? 1 : 0;
      case Reg.CmdSize:
      case Reg.RspSize:
        return CRB_BUFFER_BYTES;
      case Reg.CmdAddressLow:
      case Reg.RspAddressLow:
        // Compat: C has the offset here, and Linux, which takes it for the address that it should be, finds no TPM.
        return this.#bufferGpa >>> 0;
      case Reg.CmdAddressHigh:
      case Reg.RspAddressHigh:
        return Math.floor(this.#bufferGpa / 2 ** 32);
      default:
        return 0;
    }
  }

  #writeRegister(offset: number, value: number): void {
    switch (offset) {
      case Reg.LocCtrl:
        // Locality 0 may not seize, nor take back that a launch was measured.
        if (value === LocCtrl.Request) this.#isAssigned = true;
        else if (value === LocCtrl.Relinquish) this.#isAssigned = false;
        break;
      case Reg.CtrlReq:
        if (this.#isBusy) break;
        if (value === CtrlReq.CommandReady) this.#isIdle = false;
        else if (value === CtrlReq.GoIdle) {
          this.#buffer.fill(0);
          this.#isIdle = true;
        }
        break;
      case Reg.CtrlCancel:
        if (value === 1 && this.#isBusy) this.#backend.cancel();
        break;
      case Reg.CtrlStart:
        if (value === 1 && !this.#isBusy && !this.#isIdle && this.#isAssigned) this.#start();
        break;
      default:
    }
  }

  #start(): void {
    const sizeBytes = sizeOf(this.#buffer);
    if (sizeBytes < HEADER_BYTES || sizeBytes > CRB_BUFFER_BYTES) {
      // Compat: C hands over as many bytes as it has; what follows is then taken for the rest of this command.
      this.#buffer.set(plainResponse(ResponseCode.CommandSize));
      return;
    }
    this.#isBusy = true;
    const era = this.#era;
    void this.#backend.execute(this.#buffer.slice(0, sizeBytes)).then((response) => {
      if (era !== this.#era) return;
      this.#buffer.set(response.subarray(0, CRB_BUFFER_BYTES));
      this.#isBusy = false;
    });
  }

  /** Idle it is empty: going idle has cleared it. */
  #readBuffer(at: number, size: AccessSize): number {
    if (size === 1) return this.#view.getUint8(at);
    return size === 2 ? this.#view.getUint16(at, true) : this.#view.getUint32(at, true);
  }

  /** Not while the TPM has it. */
  #writeBuffer(at: number, size: AccessSize, value: number): void {
    if (this.#isIdle || this.#isBusy) return;
    if (size === 1) this.#view.setUint8(at, value);
    else if (size === 2) this.#view.setUint16(at, value, true);
    else this.#view.setUint32(at, value, true);
  }
}
