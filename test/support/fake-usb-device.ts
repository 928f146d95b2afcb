/** A USB device that does what the test says, when it says so. */
import {
  finish,
  type TransferStatus,
  type UsbDevice,
  UsbSpeed,
  type UsbTransfer,
} from '../../devicemodel/hw/usb/device.ts';

export class FakeUsbDevice implements UsbDevice {
  readonly name = 'fake';
  readonly speed: UsbDevice['speed'];
  readonly isUsb3: boolean;
  onRemoteWake: (() => void) | undefined;
  /** What the device has now. */
  readonly inFlight: UsbTransfer[] = [];
  /** What was cancelled and is not given back yet, while `isSlow`. */
  readonly cancelled: UsbTransfer[] = [];
  /** Cancelled transfers come back when the test says so. */
  isSlow = false;
  opens = 0;
  resets = 0;
  closes = 0;
  /** Answer of `open`; a promise for a device that takes its time. */
  opening: boolean | Promise<boolean> = true;
  resetting: boolean | Promise<boolean> = true;

  constructor(speed: UsbDevice['speed'] = UsbSpeed.High) {
    this.speed = speed;
    this.isUsb3 = speed === UsbSpeed.Super;
  }

  open(): boolean | Promise<boolean> {
    this.opens++;
    return this.opening;
  }
  reset(): boolean | Promise<boolean> {
    this.resets++;
    return this.resetting;
  }
  submit(transfer: UsbTransfer): void {
    this.inFlight.push(transfer);
  }
  cancel(transfer: UsbTransfer): void {
    if (this.isSlow) this.cancelled.push(transfer);
    else this.give(transfer, 'cancelled');
  }
  close(): void {
    this.closes++;
  }

  /** Give a transfer back. */
  give(transfer: UsbTransfer, status: TransferStatus, actualBytes = 0): void {
    const at = this.inFlight.indexOf(transfer);
    if (at < 0) throw new Error('the device does not have this transfer');
    this.inFlight.splice(at, 1);
    finish(transfer, status, actualBytes);
  }

  /** Complete the oldest transfer. @param bytes what came in, or how much went out; default: all of it. */
  complete(bytes?: Uint8Array | number): void {
    const [transfer] = this.inFlight;
    if (transfer === undefined) throw new Error('nothing is in flight');
    if (bytes instanceof Uint8Array) transfer.buffer.set(bytes);
    this.give(transfer, 'completed', bytes instanceof Uint8Array ? bytes.length : (bytes ?? transfer.buffer.length));
  }
}
