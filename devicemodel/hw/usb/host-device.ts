/**
 * A USB device of the host as a device of the guest. What the guest asks for is passed on, but for requests that the host's
 * USB core has to know of: configurations, alternate settings, halts, addresses.
 *
 * Who owns what: from `open` to `close` the device is this VM's, its interfaces are claimed and the host's drivers are away.
 * It stays so while the guest resets it, its controller or itself, and goes back at the end of the VM or when it is
 * pulled out. A transfer is libusb's until it says that it is done; that is waited for before the device is closed. Work that
 * may block is done aside, one piece after the other; control requests have their turn between its calls.
 */
import type { UsbOutcome } from '../../core/host/libusb.ts';
import type { Log } from '../../core/log.ts';
import {
  DescriptorType,
  finish,
  requestKey,
  type SetupPacket,
  StandardRequest,
  type UsbDevice,
  type UsbSpeed,
  type UsbTransfer,
} from './device.ts';
import type { HostUsbDevice } from './host-tree.ts';
import { type RawUsbHandle, SerialHandle } from './serial-handle.ts';

const SETUP_BYTES = 8;
const USB3 = 0x300;
/** Interface protocol of USB Attached SCSI. */
const UAS_PROTOCOL = 0x62;
const INTERFACE_BYTES = 9;
/** enum libusb_error. NotFound of a reset: the device is another one now, or an interface could not be claimed again. */
const UsbError = { NotFound: -5, Busy: -6 } as const;

/** What a device of the host is reached by; other than the real one in tests. */
export interface UsbHost {
  open(node: string): Promise<RawUsbHandle>;
  /** Of the configuration it has now. */
  activeInterfaces(path: string): Promise<readonly number[]>;
}

export class HostDevice implements UsbDevice {
  readonly name: string;
  readonly speed: UsbSpeed;
  readonly isUsb3: boolean;
  readonly where: HostUsbDevice;
  onRemoteWake: (() => void) | undefined;
  readonly #host: UsbHost;
  readonly #log: Log;
  #handle: SerialHandle | undefined;
  #interfaces: readonly number[] = [];
  #isGone = false;
  /** The last piece of work that is done aside. */
  #work: Promise<unknown> = Promise.resolve();
  readonly #inFlight = new Map<UsbTransfer, number | undefined>();
  #whenIdle: Array<() => void> = [];

  /** Asked for and not done: whoever asks meanwhile gets the same answer. A guest may ask faster than a host does. */
  #opening: Promise<boolean> | undefined;
  #resetting: Promise<boolean> | undefined;
  readonly #survivesReset: boolean;
  #isResetting = false;
  #isLostByReset = false;

  /** @param survivesReset false: the one that was here before did not, and this one comes fresh from the host's own reset */
  constructor(where: HostUsbDevice, host: UsbHost, log: Log, survivesReset = true) {
    this.#survivesReset = survivesReset;
    this.where = where;
    this.name = `${where.path} (${where.id})`;
    this.speed = where.speed;
    this.isUsb3 = where.release >= USB3 && where.speed === 4;
    this.#host = host;
    this.#log = log;
  }

  /** It was pulled out: whatever is asked of it from now on fails. What is in flight comes back by itself. */
  unplugged(): void {
    this.#isGone = true;
    if (this.#isResetting) this.#isLostByReset = true;
  }

  /** The host took it for another device after a reset that was asked for here. */
  get isLostByReset(): boolean {
    return this.#isLostByReset;
  }

  open(): boolean | Promise<boolean> {
    if (this.#isGone) return false;
    if (this.#handle !== undefined && this.#opening === undefined) return true;
    this.#opening ??= this.#aside(() => this.#open(), false).finally(() => {
      this.#opening = undefined;
    });
    return this.#opening;
  }

  async #open(): Promise<boolean> {
    if (this.#handle !== undefined) return true;
    const handle = new SerialHandle(await this.#host.open(this.where.node));
    this.#handle = handle;
    await this.#claim(handle);
    // The guest expects a device as it is after a bus reset, and its driver on the host has used this one.
    if (await this.#resetBus(handle)) return true;
    await this.#giveBack();
    return false;
  }

  async #resetBus(handle: SerialHandle): Promise<boolean> {
    if (!this.#survivesReset) return true;
    this.#isResetting = true;
    const result = await handle.reset();
    this.#isResetting = false;
    if (result === 0) return true;
    // libusb lets go of the interfaces for the time of a reset, and a driver of the host may have come in between.
    if (result === UsbError.NotFound && (await this.#claim(handle))) return true;
    if (result === UsbError.NotFound) this.#isLostByReset = true;
    if (!this.#isGone) {
      this.#log.rationed('warn', () => `USB device ${this.name}: it does not come back from a reset (error ${result})`);
    }
    return false;
  }

  reset(): boolean | Promise<boolean> {
    if (this.#isGone) return false;
    if (this.#handle === undefined) return true;
    if (this.#resetting !== undefined) return this.#resetting;
    this.#resetting = this.#aside(async () => {
      await this.#idle();
      return this.#handle === undefined || this.#resetBus(this.#handle);
    }, false).finally(() => {
      this.#resetting = undefined;
    });
    // What is cancelled may have its driver ask for more, which a reset refuses.
    this.#cancelAll();
    return this.#resetting;
  }

  close(): Promise<void> {
    return this.#aside(async () => {
      this.#cancelAll();
      await this.#idle();
      await this.#giveBack();
    }, undefined);
  }

  /** One piece of work after the other. Never rejects: what goes wrong is said, and answered with `otherwise`. */
  #aside<T>(work: () => Promise<T>, otherwise: T): Promise<T> {
    const done = this.#work.then(work).catch((error: unknown) => {
      if (!this.#isGone) this.#log.rationed('warn', () => `USB device ${this.name}: ${(error as Error).message}`);
      return otherwise;
    });
    this.#work = done;
    return done;
  }

  /** @returns whether all interfaces are ours now */
  async #claim(handle: SerialHandle): Promise<boolean> {
    this.#interfaces = await this.#host.activeInterfaces(this.where.path);
    let isWhole = true;
    for (const number of this.#interfaces) {
      const result = await handle.claim(number);
      if (result === 0) continue;
      isWhole = false;
      if (this.#isGone) continue;
      const why = result === UsbError.Busy ? 'is in use on the host' : `cannot be claimed (error ${result})`;
      // The guest asks for it with every configuration it sets.
      this.#log.rationed('warn', () => `USB device ${this.name}: interface ${number} ${why}`);
    }
    return isWhole;
  }

  /** The host's drivers come back, unless the device is gone. */
  async #giveBack(): Promise<void> {
    const handle = this.#handle;
    if (handle === undefined) return;
    this.#handle = undefined;
    if (!this.#isGone) {
      for (const number of this.#interfaces) {
        await handle.release(number);
        await handle.attachDriver(number);
      }
    }
    await handle.close();
  }

  #idle(): Promise<void> {
    return this.#inFlight.size === 0 ? Promise.resolve() : new Promise((resolve) => this.#whenIdle.push(resolve));
  }

  #cancelAll(): void {
    for (const id of [...this.#inFlight.values()]) if (id !== undefined) this.#handle?.cancel(id);
  }

  // Transfers.

  submit(transfer: UsbTransfer): void {
    const handle = this.#handle;
    if (handle === undefined || this.#isGone) {
      finish(transfer, 'gone');
    } else if (this.#resetting !== undefined) {
      // A bus that is being reset carries nothing, and the reset waits for what is in flight.
      finish(transfer, 'error');
    } else if (transfer.type === 'control') {
      this.#control(handle, transfer);
    } else if (transfer.streamId !== 0) {
      // UAS, which is what streams are for, is hidden from the guest.
      finish(transfer, 'stall');
    } else {
      this.#pass(handle, transfer, transfer.buffer, (outcome, actualBytes) => finish(transfer, outcome, actualBytes));
    }
  }

  cancel(transfer: UsbTransfer): void {
    const id = this.#inFlight.get(transfer);
    if (id !== undefined) this.#handle?.cancel(id);
  }

  #pass(
    handle: SerialHandle,
    transfer: UsbTransfer,
    buffer: Uint8Array,
    done: (outcome: UsbOutcome, actualBytes: number) => void,
  ): void {
    const { type, endpoint, isIn, packets } = transfer;
    this.#inFlight.set(transfer, undefined);
    const id = handle.submit({
      type,
      endpoint,
      isIn,
      buffer,
      packets,
      done: (outcome, actualBytes) => {
        this.#over(transfer);
        done(this.#isGone && outcome !== 'completed' ? 'gone' : outcome, actualBytes);
      },
    });
    if (id !== undefined) {
      this.#inFlight.set(transfer, id);
      return;
    }
    this.#over(transfer);
    done(this.#isGone ? 'gone' : 'error', 0);
  }

  #over(transfer: UsbTransfer): void {
    this.#inFlight.delete(transfer);
    if (this.#inFlight.size > 0) return;
    for (const resolve of this.#whenIdle.splice(0)) resolve();
  }

  #control(handle: SerialHandle, transfer: UsbTransfer): void {
    const { setup, isIn } = transfer;
    if (setup === undefined) {
      finish(transfer, 'stall');
      return;
    }
    const work = this.#hostWork(handle, setup);
    if (work !== undefined) {
      this.#inFlight.set(transfer, undefined);
      void work.then((isDone) => {
        this.#over(transfer);
        finish(transfer, isDone ? 'completed' : this.#isGone ? 'gone' : 'stall');
      });
      return;
    }
    const sizeBytes = setup.length;
    const buffer = new Uint8Array(SETUP_BYTES + sizeBytes);
    buffer.set(setupBytes(setup));
    if (!isIn) buffer.set(transfer.buffer.subarray(0, sizeBytes), SETUP_BYTES);
    this.#pass(handle, transfer, buffer, (outcome, actualBytes) => {
      const taken = Math.min(actualBytes, transfer.buffer.length);
      const data = buffer.subarray(SETUP_BYTES, SETUP_BYTES + taken);
      if (isIn) {
        if (isConfigurationRequest(setup)) hideUas(data);
        transfer.buffer.set(data);
      }
      finish(transfer, outcome, taken);
    });
  }

  /** Requests that the host's USB core carries out. undefined: the device does. */
  #hostWork(handle: SerialHandle, { requestType, request, value, index }: SetupPacket): Promise<boolean> | undefined {
    switch (requestKey(requestType, request)) {
      case StandardRequest.SetAddress:
        return Promise.resolve(true);
      case StandardRequest.SetConfiguration:
        return this.#asideNow(() => this.#configure(handle, value & 0xff));
      case StandardRequest.SetInterface:
        return this.#asideNow(async () => (await handle.setAlternate(index, value)) === 0);
      case StandardRequest.ClearFeatureOfEndpoint:
        return value === 0 ? this.#asideNow(async () => (await handle.clearHalt(index & 0xff)) === 0) : undefined;
      default:
        return undefined;
    }
  }

  /** Does not wait for what `reset` and `close` wait for, which may be the very transfer it is done for. */
  async #asideNow(work: () => Promise<boolean>): Promise<boolean> {
    try {
      return await work();
    } catch (error) {
      this.#log.rationed('warn', () => `USB device ${this.name}: ${(error as Error).message}`);
      return false;
    }
  }

  /** The interfaces of another configuration may come with drivers of the host. */
  async #configure(handle: SerialHandle, value: number): Promise<boolean> {
    for (const number of this.#interfaces) await handle.release(number);
    const result = await handle.setConfiguration(value === 0 ? -1 : value);
    await this.#claim(handle);
    return result === 0;
  }
}

function setupBytes({ requestType, request, value, index, length }: SetupPacket): Uint8Array {
  const bytes = new DataView(new ArrayBuffer(SETUP_BYTES));
  bytes.setUint8(0, requestType);
  bytes.setUint8(1, request);
  bytes.setUint16(2, value, true);
  bytes.setUint16(4, index, true);
  bytes.setUint16(6, length, true);
  return new Uint8Array(bytes.buffer);
}

function isConfigurationRequest({ requestType, request, value }: SetupPacket): boolean {
  const key = requestKey(requestType, request);
  return key === StandardRequest.GetDescriptor && value >>> 8 === DescriptorType.Configuration;
}

/** Compat: as with C the guest sees no USB Attached SCSI and takes the bulk-only interface beside it. */
export function hideUas(descriptors: Uint8Array): void {
  for (let at = 0; at + 1 < descriptors.length; ) {
    const length = descriptors[at] ?? 0;
    if (length < 2) return;
    const isInterface = length === INTERFACE_BYTES && descriptors[at + 1] === DescriptorType.Interface;
    if (isInterface && descriptors[at + 7] === UAS_PROTOCOL) descriptors[at + 7] = 0;
    at += length;
  }
}
