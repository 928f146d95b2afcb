/**
 * A USB tablet: an absolute pointer with three buttons and a wheel, fed by the display. Ids, strings and reports are those
 * of the C device model. Spec: HID 1.11; USB 2.0 §9.6.
 *
 * Compat: in the C device model it is a USB 3.0 device that claims high speed, and it is destroyed by the controller's own
 * reset before a guest could see it. Here it is a USB 2.0 device, on a USB 2 port.
 */
import { type InputHub, InputRank, PointerButton, type PointerEvent, type PointerSink } from '../input/input-hub.ts';
import {
  DescriptorType,
  Feature,
  finish,
  finishWith,
  requestKey,
  StandardRequest,
  type UsbDevice,
  UsbSpeed,
  type UsbTransfer,
} from './device.ts';

const VENDOR_ID = 0xfb5d;
const PRODUCT_ID = 0x0001;
const Strings = { Manufacturer: 1, Product: 2, Serial: 3, Configuration: 4 } as const;
const STRINGS = ['', 'ACRN-DM', 'HID Tablet', '01', 'HID Tablet Device'];
const LANGUAGE_US_ENGLISH = 0x0409;
const INPUT_ENDPOINT = 0x81;
const CONFIGURATION = 1;

/** Generic desktop / mouse / pointer: 3 buttons and 5 bits of padding, x and y of 0 to 0x7fff, a relative wheel. */
const REPORT_DESCRIPTOR = Uint8Array.from([
  // Application collection "mouse", in it a physical one "pointer".
  ...[0x05, 0x01, 0x09, 0x02, 0xa1, 0x01, 0x09, 0x01, 0xa1, 0x00],
  // Buttons 1 to 3, one bit each.
  ...[0x05, 0x09, 0x19, 0x01, 0x29, 0x03, 0x15, 0x00, 0x25, 0x01, 0x75, 0x01, 0x95, 0x03, 0x81, 0x02],
  // Five bits that say nothing.
  ...[0x75, 0x05, 0x95, 0x01, 0x81, 0x03],
  // x and y: absolute, 16 bits each.
  ...[0x05, 0x01, 0x09, 0x30, 0x09, 0x31, 0x35, 0x00, 0x46, 0xff, 0x7f, 0x15, 0x00, 0x26, 0xff, 0x7f],
  ...[0x75, 0x10, 0x95, 0x02, 0x81, 0x02],
  // Wheel: relative, -127 to 127.
  ...[0x05, 0x01, 0x09, 0x38, 0x35, 0x00, 0x45, 0x00, 0x15, 0x81, 0x25, 0x7f, 0x75, 0x08, 0x95, 0x01, 0x81, 0x06],
  // Both collections end.
  ...[0xc0, 0xc0],
]);
const REPORT_BYTES = 6;

const word = (value: number) => [value & 0xff, value >>> 8];

/** USB 2.0 §9.6.1. */
const DEVICE_DESCRIPTOR = Uint8Array.from([
  18,
  DescriptorType.Device,
  ...word(0x0200), // bcdUSB
  0, // class: of the interface
  0,
  0,
  64, // largest packet of endpoint 0
  ...word(VENDOR_ID),
  ...word(PRODUCT_ID),
  ...word(0),
  Strings.Manufacturer,
  Strings.Product,
  Strings.Serial,
  1,
]);

/** Boot interface subclass, mouse protocol (HID 1.11 §4.2 and §4.3). */
const INTERFACE = [9, DescriptorType.Interface, 0, 0, 1, 3, 1, 2, 0];
const HID_DESCRIPTOR = [
  9,
  DescriptorType.Hid,
  ...word(0x0110), // bcdHID
  0,
  1,
  DescriptorType.HidReport,
  ...word(REPORT_DESCRIPTOR.length),
];
/** Interrupt, packets of 8 bytes; at high speed 7 stands for 2^6 microframes, 8 ms. */
const ENDPOINT = [7, DescriptorType.Endpoint, INPUT_ENDPOINT, 3, ...word(8), 7];
const CONFIGURATION_BODY = [...INTERFACE, ...HID_DESCRIPTOR, ...ENDPOINT];
/** Bus powered, can wake its host; 100 mA. */
const CONFIGURATION_DESCRIPTOR = Uint8Array.from([
  9,
  DescriptorType.Configuration,
  ...word(9 + CONFIGURATION_BODY.length),
  1,
  CONFIGURATION,
  Strings.Configuration,
  0xa0,
  50,
  ...CONFIGURATION_BODY,
]);
/** USB 2.0 §9.6.2: at full speed it would be the same. */
const QUALIFIER_DESCRIPTOR = Uint8Array.from([10, DescriptorType.DeviceQualifier, ...word(0x0200), 0, 0, 0, 64, 1, 0]);

/** HID class requests as `requestKey` (HID 1.11 §7.2). */
const HidRequest = {
  GetReport: 0xa101,
  GetIdle: 0xa102,
  GetProtocol: 0xa103,
  SetReport: 0x2109,
  SetIdle: 0x210a,
  SetProtocol: 0x210b,
} as const;
const INPUT_REPORT = 1;
const REPORT_PROTOCOL = 1;
/** Reports that wait for the guest to ask: presses of buttons are kept, movements between them are merged. */
const MAX_QUEUED = 16;

interface Report {
  buttons: number;
  x: number;
  y: number;
  wheel: number;
}

export class UsbTablet implements UsbDevice, PointerSink {
  readonly name = 'HID tablet';
  readonly speed = UsbSpeed.High;
  readonly isUsb3 = false;
  readonly rank = InputRank.Usb;
  onRemoteWake: (() => void) | undefined;
  #configuration = 0;
  #canWake = false;
  /** A driver asked for reports, and did not take that back. */
  #isPolled = false;
  #idle = 0;
  #protocol = REPORT_PROTOCOL;
  #report: Report = { buttons: 0, x: 0, y: 0, wheel: 0 };
  readonly #queue: Report[] = [];
  /** Interrupt transfers that have no report yet, oldest first. */
  readonly #asked: UsbTransfer[] = [];
  readonly #hub: InputHub | undefined;
  #unplug: (() => void) | undefined;

  constructor(hub: InputHub | undefined) {
    this.#hub = hub;
  }

  /** The display is told of the tablet as long as it is plugged in. */
  plugIn(): void {
    const registration = this.#hub?.addPointerSink(this);
    this.#unplug = registration === undefined ? undefined : () => void registration.dispose();
  }

  close(): void {
    this.#unplug?.();
    this.#unplug = undefined;
    this.reset();
  }

  /** Until a driver of the guest asks for reports the display had better tell another device. */
  get isReady(): boolean {
    return this.#isPolled || this.#canWake;
  }

  pointer(event: PointerEvent): void {
    const report: Report = {
      buttons: tabletButtons(event.buttons),
      x: event.x,
      y: event.y,
      wheel: Math.max(-127, Math.min(127, event.wheel)),
    };
    this.#report = report;
    const last = this.#queue.at(-1);
    if (last !== undefined && last.buttons === report.buttons) {
      last.x = report.x;
      last.y = report.y;
      last.wheel = Math.max(-127, Math.min(127, last.wheel + report.wheel));
    } else if (this.#queue.length < MAX_QUEUED) {
      this.#queue.push({ ...report });
    } else if (last !== undefined) {
      Object.assign(last, report);
    }
    this.#answer();
    if (this.#queue.length > 0 && this.#canWake) this.onRemoteWake?.();
  }

  #answer(): void {
    while (this.#queue.length > 0) {
      const transfer = this.#asked.shift();
      if (transfer === undefined) return;
      finishWith(transfer, reportBytes(this.#queue.shift() as Report));
    }
  }

  open(): boolean {
    return true;
  }

  reset(): boolean {
    this.#configuration = 0;
    this.#canWake = false;
    this.#isPolled = false;
    this.#idle = 0;
    this.#protocol = REPORT_PROTOCOL;
    this.#report = { buttons: 0, x: 0, y: 0, wheel: 0 };
    this.#queue.length = 0;
    for (const transfer of this.#asked.splice(0)) finish(transfer, 'error');
    return true;
  }

  submit(transfer: UsbTransfer): void {
    if (transfer.type === 'control') {
      this.#control(transfer);
    } else if (transfer.endpoint === INPUT_ENDPOINT && transfer.type === 'interrupt' && this.#configuration !== 0) {
      this.#isPolled = true;
      this.#asked.push(transfer);
      this.#answer();
    } else {
      finish(transfer, 'stall');
    }
  }

  cancel(transfer: UsbTransfer): void {
    const at = this.#asked.indexOf(transfer);
    if (at < 0) return;
    this.#asked.splice(at, 1);
    this.#isPolled = this.#asked.length > 0;
    finish(transfer, 'cancelled');
  }

  #control(transfer: UsbTransfer): void {
    const { setup, isIn } = transfer;
    if (setup === undefined) {
      finish(transfer, 'stall');
    } else if (isIn) {
      const answer = this.#tell(setup.requestType, setup.request, setup.value);
      if (answer === undefined) finish(transfer, 'stall');
      else finishWith(transfer, answer.subarray(0, setup.length));
    } else {
      finish(transfer, this.#take(setup.requestType, setup.request, setup.value));
    }
  }

  /** What a request for data is answered with; undefined for one that is not known. */
  #tell(requestType: number, request: number, value: number): Uint8Array | undefined {
    switch (requestKey(requestType, request)) {
      case StandardRequest.GetDescriptor:
      case StandardRequest.GetDescriptorOfInterface:
        return descriptor(value >>> 8, value & 0xff);
      case StandardRequest.GetConfiguration:
        return Uint8Array.of(this.#configuration);
      case StandardRequest.GetInterface:
        return Uint8Array.of(0);
      case StandardRequest.GetStatusOfDevice:
        return Uint8Array.of(this.#canWake ? 1 << Feature.RemoteWakeup : 0, 0);
      case StandardRequest.GetStatusOfInterface:
      case StandardRequest.GetStatusOfEndpoint:
        return Uint8Array.of(0, 0);
      case HidRequest.GetReport:
        return value >>> 8 === INPUT_REPORT ? reportBytes(this.#report) : undefined;
      case HidRequest.GetIdle:
        return Uint8Array.of(this.#idle);
      case HidRequest.GetProtocol:
        return Uint8Array.of(this.#protocol);
      default:
        return undefined;
    }
  }

  #take(requestType: number, request: number, value: number): 'completed' | 'stall' {
    switch (requestKey(requestType, request)) {
      case StandardRequest.SetConfiguration:
        if (value !== 0 && value !== CONFIGURATION) return 'stall';
        this.#configuration = value;
        return 'completed';
      case StandardRequest.SetInterface:
        return value === 0 ? 'completed' : 'stall';
      case StandardRequest.SetFeatureOfDevice:
      case StandardRequest.ClearFeatureOfDevice:
        if (value !== Feature.RemoteWakeup) return 'stall';
        this.#canWake = requestKey(requestType, request) === StandardRequest.SetFeatureOfDevice;
        return 'completed';
      case StandardRequest.ClearFeatureOfEndpoint:
        return value === Feature.EndpointHalt ? 'completed' : 'stall';
      case HidRequest.SetIdle:
        this.#idle = value >>> 8;
        return 'completed';
      case HidRequest.SetProtocol:
        this.#protocol = value & 0xff;
        return 'completed';
      case StandardRequest.SetAddress:
      case HidRequest.SetReport:
        return 'completed';
      default:
        return 'stall';
    }
  }
}

function descriptor(type: number, index: number): Uint8Array | undefined {
  switch (type) {
    case DescriptorType.Device:
      return DEVICE_DESCRIPTOR;
    case DescriptorType.Configuration:
      return index === 0 ? CONFIGURATION_DESCRIPTOR : undefined;
    case DescriptorType.DeviceQualifier:
      return QUALIFIER_DESCRIPTOR;
    case DescriptorType.String:
      return stringDescriptor(index);
    case DescriptorType.Hid:
      return Uint8Array.from(HID_DESCRIPTOR);
    case DescriptorType.HidReport:
      return REPORT_DESCRIPTOR;
    default:
      return undefined;
  }
}

function stringDescriptor(index: number): Uint8Array | undefined {
  if (index === 0) return Uint8Array.of(4, DescriptorType.String, ...word(LANGUAGE_US_ENGLISH));
  const text = STRINGS[index];
  if (text === undefined) return undefined;
  const units = [...text].flatMap((letter) => word(letter.charCodeAt(0)));
  return Uint8Array.of(2 + units.length, DescriptorType.String, ...units);
}

/** In a report the right button is bit 1 and the middle one bit 2. */
function tabletButtons(buttons: number): number {
  return (
    ((buttons & PointerButton.Left) !== 0 ? 1 << 0 : 0) |
    ((buttons & PointerButton.Right) !== 0 ? 1 << 1 : 0) |
    ((buttons & PointerButton.Middle) !== 0 ? 1 << 2 : 0)
  );
}

function reportBytes({ buttons, x, y, wheel }: Report): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(REPORT_BYTES));
  bytes.setUint8(0, buttons);
  bytes.setUint16(1, x, true);
  bytes.setUint16(3, y, true);
  bytes.setInt8(5, wheel);
  return new Uint8Array(bytes.buffer);
}
