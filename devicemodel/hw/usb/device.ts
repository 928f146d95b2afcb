/**
 * A USB device as its host controller sees it, emulated or of the host. Spec: Universal Serial Bus 2.0, chapters 5, 8, 9.
 *
 * Who owns what: the device belongs to the port it is plugged into. From `submit` until `done` a transfer and its buffer
 * are the device's, whatever happens to the endpoint, the slot or the port meanwhile; `cancel` asks for them earlier, and
 * `done` is the answer. Guest memory is never lent: the controller copies.
 */

/** Default values of the xHCI's Protocol Speed ID (xHCI 1.2 §7.2.2.1.1). */
export const UsbSpeed = { Full: 1, Low: 2, High: 3, Super: 4 } as const;
export type UsbSpeed = (typeof UsbSpeed)[keyof typeof UsbSpeed];

/** `completed` also with fewer bytes than there was room for; `gone`: the device is not there any more. */
export type TransferStatus = 'completed' | 'stall' | 'error' | 'babble' | 'timeout' | 'cancelled' | 'gone';

/** The 8 bytes of a setup packet (USB 2.0 §9.3). */
export interface SetupPacket {
  readonly requestType: number;
  readonly request: number;
  readonly value: number;
  readonly index: number;
  readonly length: number;
}

/** One packet of an isochronous transfer; packets follow each other in the buffer at their full length. */
export interface IsochronousPacket {
  readonly lengthBytes: number;
  actualBytes: number;
  status: TransferStatus;
}

export interface UsbTransfer {
  readonly type: 'control' | 'isochronous' | 'bulk' | 'interrupt';
  /** bEndpointAddress: number, and 0x80 for IN. 0 for the control pipe. */
  readonly endpoint: number;
  readonly isIn: boolean;
  /** 0 without streams. */
  readonly streamId: number;
  readonly setup: SetupPacket | undefined;
  /** What is sent, or room for what comes. */
  readonly buffer: Uint8Array;
  readonly packets: readonly IsochronousPacket[];
  status: TransferStatus;
  actualBytes: number;
  /** Called once, when `status` and `actualBytes` are final. May be called from within `submit` and `cancel`. */
  readonly done: () => void;
}

export interface UsbDevice {
  /** For people: `HID tablet`, `1-2 0781:5567`. */
  readonly name: string;
  readonly speed: UsbSpeed;
  /** Of a USB 3 bus; decides on the kind of its port. */
  readonly isUsb3: boolean;
  /** The device wants to be heard although its link sleeps. Set by the controller while it is plugged in. */
  onRemoteWake: (() => void) | undefined;
  /** A driver of the guest is about to give it an address. May be called again. @returns whether it can be had */
  open(): boolean | Promise<boolean>;
  /** Bus reset. What is in flight comes back before it answers. @returns whether the device is still there */
  reset(): boolean | Promise<boolean>;
  submit(transfer: UsbTransfer): void;
  cancel(transfer: UsbTransfer): void;
  /** Nobody needs it any more. All transfers came back before. Safe twice. */
  close(): void | Promise<void>;
}

/** bmRequestType and bRequest in one number, for tables of requests. */
export function requestKey(requestType: number, request: number): number {
  return (requestType << 8) | request;
}

/** Standard requests as {@link requestKey} (USB 2.0 §9.4). */
export const StandardRequest = {
  GetStatusOfDevice: 0x8000,
  GetStatusOfInterface: 0x8100,
  GetStatusOfEndpoint: 0x8200,
  ClearFeatureOfDevice: 0x0001,
  ClearFeatureOfEndpoint: 0x0201,
  SetFeatureOfDevice: 0x0003,
  SetAddress: 0x0005,
  GetDescriptor: 0x8006,
  GetDescriptorOfInterface: 0x8106,
  GetConfiguration: 0x8008,
  SetConfiguration: 0x0009,
  GetInterface: 0x810a,
  SetInterface: 0x010b,
  SetExitLatencies: 0x0030,
  SetIsochronousDelay: 0x0031,
} as const;

/** Descriptor types (USB 2.0 table 9-5, USB 3.2 table 9-6, HID 1.11 §7.1). */
export const DescriptorType = {
  Device: 1,
  Configuration: 2,
  String: 3,
  Interface: 4,
  Endpoint: 5,
  DeviceQualifier: 6,
  Hid: 0x21,
  HidReport: 0x22,
} as const;

/** Request features (USB 2.0 table 9-6). */
export const Feature = { EndpointHalt: 0, RemoteWakeup: 1 } as const;

export function finish(transfer: UsbTransfer, status: TransferStatus, actualBytes = 0): void {
  transfer.status = status;
  transfer.actualBytes = actualBytes;
  transfer.done();
}

/** Answer an IN transfer with as much of `bytes` as it has room for. */
export function finishWith(transfer: UsbTransfer, bytes: Uint8Array): void {
  const taken = bytes.subarray(0, transfer.buffer.length);
  transfer.buffer.set(taken);
  finish(transfer, 'completed', taken.length);
}
