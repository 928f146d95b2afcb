/** Frames from the drive to the host (SATA 3.2 §10.5), put where the guest wants them (AHCI 1.3.1 §4.2.1). */
import type { GuestRam } from '../../../core/guest-buffers.ts';
import { copyToGuest } from './command.ts';
import { AtaStatus, Fis, FisFlag, FisType, ReceivedFis } from './registers.ts';

const REGISTER_FIS_BYTES = 20;
const SET_DEVICE_BITS_BYTES = 8;
/** Registers of the command that a D2H frame gives back: LBA, device, count. */
const ECHO_FROM = Fis.Lba0;
const ECHO_TO = Fis.CountHigh;
/** Of the status these are a set device bits frame's. */
export const SDB_STATUS = 0x77;

export class FisReceiver {
  readonly #ram: GuestRam;
  readonly #frame = new Uint8Array(REGISTER_FIS_BYTES);
  /** Where frames go; undefined while none are received, or to an address that is not RAM. */
  #area: number | undefined;

  constructor(ram: GuestRam) {
    this.#ram = ram;
  }

  /** @param area guest address, undefined: frames are lost. */
  receiveAt(area: number | undefined): void {
    this.#area = area !== undefined && this.#ram.contains(area, ReceivedFis.Bytes) ? area : undefined;
  }

  get isReceiving(): boolean {
    return this.#area !== undefined;
  }

  /** Registers back to the host. @param command of which the frame gives registers back. */
  registers(status: number, error: number, command: Uint8Array | undefined, wantsInterrupt: boolean): void {
    const frame = this.#begin(FisType.RegisterD2h);
    frame[Fis.Flags] = wantsInterrupt ? FisFlag.Interrupt : 0;
    frame[Fis.Command] = status;
    frame[Fis.Features] = error;
    if (command !== undefined) for (let i = ECHO_FROM; i <= ECHO_TO; i++) frame[i] = command[i] as number;
    this.#put(ReceivedFis.RegisterD2h, REGISTER_FIS_BYTES);
  }

  /** The first frame of a drive after its reset (ACS-3 §9.2, device signature). */
  signature(isAtapi: boolean): void {
    const frame = this.#begin(FisType.RegisterD2h);
    frame[Fis.Features] = 1;
    frame[Fis.Lba0] = 1;
    if (isAtapi) {
      frame[Fis.Lba1] = 0x14;
      frame[Fis.Lba2] = 0xeb;
    }
    frame[Fis.Count] = 1;
    this.#put(ReceivedFis.RegisterD2h, REGISTER_FIS_BYTES);
  }

  /** @param done bits of queued commands that are over. */
  deviceBits(status: number, error: number, done: number, flags: number): void {
    const frame = this.#begin(FisType.SetDeviceBits);
    frame[Fis.Flags] = flags;
    frame[Fis.Command] = status & SDB_STATUS;
    frame[Fis.Features] = error;
    for (let i = 0; i < 4; i++) frame[4 + i] = (done >>> (8 * i)) & 0xff;
    this.#put(ReceivedFis.SetDeviceBits, SET_DEVICE_BITS_BYTES);
  }

  /** Compat: only the type is filled in, as by the C device model. */
  pioSetup(): void {
    this.#begin(FisType.PioSetup);
    this.#put(ReceivedFis.PioSetup, REGISTER_FIS_BYTES);
  }

  #begin(type: number): Uint8Array {
    this.#frame.fill(0);
    this.#frame[Fis.Type] = type;
    return this.#frame;
  }

  #put(offset: number, length: number): void {
    if (this.#area !== undefined) copyToGuest(this.#ram, this.#area + offset, this.#frame, length);
  }
}

/** Whether a status is that of a command that failed. */
export function isError(status: number): boolean {
  return (status & AtaStatus.Error) !== 0;
}
