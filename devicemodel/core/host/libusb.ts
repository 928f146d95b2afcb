/**
 * USB devices of the host by libusb-1.0, which is loaded when a VM is given one. Spec: libusb 1.0.24 (libusb.h).
 *
 * Transfers are asynchronous: libusb's descriptors are watched by the event loop, and its events are handled on this
 * thread, so that `done` of a transfer is called on it, too. Whatever may block (opening, resets, configurations, drivers of
 * the host, and cancelling, for which the kernel waits) runs on a thread of Node's pool. libusb neither looks for
 * devices nor for udev: a device is opened by its node.
 */
import { open as openCallback } from 'node:fs';
import { promisify } from 'node:util';
import koffi from 'koffi';
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { watchFdFor } from './fd-watch.ts';
import { closeFd, OpenFlag } from './files.ts';
import { type Mapping, map, viewOf } from './mapping.ts';

const LIBRARY = 'libusb-1.0.so.0';
/** enum libusb_option: no enumeration, so that neither udev nor rights to all devices are needed. */
const OPTION_NO_DEVICE_DISCOVERY = 2;
const openFileAside = promisify(openCallback);

/** struct libusb_transfer, x86-64. */
const Transfer = {
  handle: 0,
  endpoint: 9,
  type: 10,
  timeout: 12,
  status: 16,
  length: 20,
  actualLength: 24,
  callback: 32,
  buffer: 48,
  packetCount: 56,
  packets: 60,
} as const;
/** struct libusb_iso_packet_descriptor. */
const Packet = { length: 0, actualLength: 4, status: 8, size: 12 } as const;
/** enum libusb_transfer_type. */
const transferTypes = { control: 0, isochronous: 1, bulk: 2, interrupt: 3 } as const;
/** struct libusb_pollfd: int fd, short events. */
const POLLFD_BYTES = 8;
const POLLOUT = 4;
const MAX_POLLFDS = 256;

/** enum libusb_transfer_status, in order. */
const outcomes = ['completed', 'error', 'timeout', 'cancelled', 'stall', 'gone', 'babble'] as const;
export type UsbOutcome = (typeof outcomes)[number];

type Native = (...args: unknown[]) => number | bigint;
type AsyncNative = Native & { async(...args: unknown[]): void };

/** Loaded once; what is declared stays. */
let library: ReturnType<typeof koffi.load> | undefined;
const declared = new Map<string, AsyncNative>();

function native(prototype: string): AsyncNative {
  let fn = declared.get(prototype);
  if (fn === undefined) {
    fn = (library as ReturnType<typeof koffi.load>).func(prototype) as unknown as AsyncNative;
    declared.set(prototype, fn);
  }
  return fn;
}

/** A call on a thread of the pool. */
function aside(prototype: string, ...args: unknown[]): Promise<number> {
  return new Promise((resolve, reject) => {
    native(prototype).async(...args, (error: unknown, result: number) => (error ? reject(error) : resolve(result)));
  });
}

/** @throws HostError with the package that has it. */
function loadLibrary(): void {
  if (library !== undefined) return;
  try {
    library = koffi.load(LIBRARY);
    native('int libusb_wrap_sys_device(uintptr_t, intptr_t, void *)');
  } catch (error) {
    library = undefined;
    throw new HostError(`USB devices of the host need ${LIBRARY} 1.0.24 or newer`, Errno.ENOENT, {
      cause: error,
      hint: 'install libusb: apt install libusb-1.0-0',
    });
  }
}

/** What is asked of a device. The buffer is copied: into native memory at `submit`, and out of it when it is done. */
export interface UsbRequest {
  readonly type: keyof typeof transferTypes;
  readonly endpoint: number;
  readonly isIn: boolean;
  /** Of a control transfer: 8 bytes of setup packet in front. */
  readonly buffer: Uint8Array;
  readonly packets: readonly { readonly lengthBytes: number; actualBytes: number; status: string }[];
  done(outcome: UsbOutcome, actualBytes: number): void;
}

interface Submitted {
  readonly request: UsbRequest;
  readonly memory: Mapping;
  /** It is being cancelled, which needs its struct whether it is done meanwhile or not. */
  isHeld: boolean;
}

/** libusb for one VM. Whoever made it disposes of it, after all its devices were closed. */
export class Libusb {
  readonly #context: bigint;
  /** Transfers that libusb has, by the address of their struct. */
  readonly #submitted = new Map<bigint, Submitted>();
  readonly #callback: bigint;
  readonly #release: () => void;
  readonly #timeval = new BigInt64Array(2);
  #watches: Array<() => void> = [];
  #watched = '';
  #isLive = true;

  /** @throws HostError */
  constructor() {
    loadLibrary();
    native('int libusb_set_option(uintptr_t, int)')(0, OPTION_NO_DEVICE_DISCOVERY);
    const context = new BigUint64Array(1);
    const result = native('int libusb_init(void *)')(context);
    if (result !== 0) throw new HostError(`libusb_init: ${errorName(Number(result))}`, Errno.EIO);
    this.#context = context[0] as bigint;
    const registered = koffi.register(
      (transfer: number | bigint) => this.#finished(BigInt(transfer)),
      koffi.pointer(koffi.proto('void(uintptr_t transfer)')),
    );
    this.#callback = BigInt(koffi.address(registered));
    this.#release = () => koffi.unregister(registered);
    this.#watch();
  }

  dispose(): void {
    if (!this.#isLive) return;
    this.#isLive = false;
    for (const stop of this.#watches.splice(0)) stop();
    native('void libusb_exit(uintptr_t)')(this.#context);
    this.#release();
  }

  /** @param node `/dev/bus/usb/001/002`. @throws HostError */
  async open(node: string): Promise<UsbHandle> {
    const fd = await openFileAside(node, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
    const handle = new BigUint64Array(1);
    const prototype = 'int libusb_wrap_sys_device(uintptr_t, intptr_t, void *)';
    const result = await aside(prototype, this.#context, fd, handle);
    if (result !== 0) {
      closeFd(fd);
      throw new HostError(`${node}: libusb_wrap_sys_device: ${errorName(result)}`, Errno.EIO);
    }
    this.#watch();
    return new UsbHandle(this, handle[0] as bigint, () => {
      // Not watched any more before its number is another file's.
      if (this.#isLive) this.#watch();
      closeFd(fd);
    });
  }

  // Events.

  /** The descriptors that libusb has now. */
  #watch(): void {
    const list = BigInt(native('uintptr_t libusb_get_pollfds(uintptr_t)')(this.#context));
    if (list === 0n) return;
    const pointers = new BigUint64Array(viewOf(list, 8 * MAX_POLLFDS).buffer, 0, MAX_POLLFDS);
    const fds: Array<{ fd: number; isWritable: boolean }> = [];
    for (const pointer of pointers) {
      if (pointer === 0n) break;
      const bytes = viewOf(pointer, POLLFD_BYTES);
      const view = new DataView(bytes.buffer, bytes.byteOffset, POLLFD_BYTES);
      fds.push({ fd: view.getInt32(0, true), isWritable: (view.getInt16(4, true) & POLLOUT) !== 0 });
    }
    native('void libusb_free_pollfds(uintptr_t)')(list);
    const key = JSON.stringify(fds);
    if (key === this.#watched) return;
    this.#watched = key;
    for (const stop of this.#watches.splice(0)) stop();
    const events = (isWritable: boolean) => (isWritable ? ('writable' as const) : ('readable' as const));
    this.#watches = fds.map(({ fd, isWritable }) => watchFdFor(fd, events(isWritable), () => this.#handleEvents()));
  }

  #handleEvents(): void {
    if (!this.#isLive) return;
    const before = this.#submitted.size;
    native('int libusb_handle_events_timeout_completed(uintptr_t, void *, uintptr_t)')(this.#context, this.#timeval, 0);
    // A device that was pulled out is dropped by libusb, and its descriptor would be ready for ever.
    if (this.#submitted.size === before) this.#watch();
  }

  #finished(transfer: bigint): void {
    const submitted = this.#submitted.get(transfer);
    if (submitted === undefined) return;
    this.#submitted.delete(transfer);
    const { request, memory, isHeld } = submitted;
    const { type, isIn, buffer, packets } = request;
    const view = structOf(transfer, packets.length);
    const headBytes = type === 'control' ? 8 : 0;
    let actualBytes = view.getInt32(Transfer.actualLength, true);
    const outcome = outcomes[view.getInt32(Transfer.status, true)] ?? 'error';
    if (type === 'isochronous') actualBytes = takePackets(view, packets);
    if (isIn && type === 'isochronous') buffer.set(memory.bytes.subarray(0, buffer.length));
    else if (isIn) buffer.set(memory.bytes.subarray(headBytes, headBytes + actualBytes), headBytes);
    if (!isHeld) free(transfer, memory);
    request.done(outcome, actualBytes);
  }

  // Used by UsbHandle.

  /** @returns what `cancel` takes; undefined: it was refused, and `done` is not called. */
  submit(handle: bigint, request: UsbRequest): bigint | undefined {
    const { type, endpoint, buffer, packets } = request;
    const transfer = BigInt(native('uintptr_t libusb_alloc_transfer(int)')(packets.length));
    if (transfer === 0n) return undefined;
    const memory = map(Math.max(1, buffer.length), 'USB transfer');
    memory.bytes.set(buffer);
    const view = structOf(transfer, packets.length);
    view.setBigUint64(Transfer.handle, handle, true);
    view.setUint8(Transfer.endpoint, endpoint);
    view.setUint8(Transfer.type, transferTypes[type]);
    view.setUint32(Transfer.timeout, 0, true);
    view.setInt32(Transfer.length, buffer.length, true);
    view.setBigUint64(Transfer.callback, this.#callback, true);
    view.setBigUint64(Transfer.buffer, memory.address, true);
    view.setInt32(Transfer.packetCount, packets.length, true);
    packets.forEach(({ lengthBytes }, i) => {
      view.setUint32(Transfer.packets + Packet.size * i + Packet.length, lengthBytes, true);
    });
    this.#submitted.set(transfer, { request, memory, isHeld: false });
    const result = native('int libusb_submit_transfer(uintptr_t)')(transfer);
    if (result === 0) return transfer;
    this.#submitted.delete(transfer);
    free(transfer, memory);
    return undefined;
  }

  /** Once for each transfer. */
  async cancel(transfer: bigint): Promise<void> {
    const submitted = this.#submitted.get(transfer);
    if (submitted === undefined) return;
    submitted.isHeld = true;
    await aside('int libusb_cancel_transfer(uintptr_t)', transfer);
    submitted.isHeld = false;
    if (!this.#submitted.has(transfer)) free(transfer, submitted.memory);
  }
}

/** One open device. Calls that may block run aside, one at a time, `submit` not meanwhile: the caller sees to that. */
export class UsbHandle {
  readonly #libusb: Libusb;
  readonly #handle: bigint;
  readonly #closed: () => void;

  /** @internal by Libusb.open */
  constructor(libusb: Libusb, handle: bigint, closed: () => void) {
    this.#libusb = libusb;
    this.#handle = handle;
    this.#closed = closed;
  }

  submit(request: UsbRequest): bigint | undefined {
    return this.#libusb.submit(this.#handle, request);
  }
  /** Ask for a transfer, once; `done` is the answer. Nothing happens when it is done already. @returns when that was asked */
  cancel(transfer: bigint): Promise<void> {
    return this.#libusb.cancel(transfer);
  }

  /** Each answers 0 or a negative `enum libusb_error`. */
  attachDriver(number: number): Promise<number> {
    return aside('int libusb_attach_kernel_driver(uintptr_t, int)', this.#handle, number);
  }
  /** It is taken from a driver of the host in the same step: none can come in between. */
  async claim(number: number): Promise<number> {
    const setAutoDetach = native('int libusb_set_auto_detach_kernel_driver(uintptr_t, int)');
    setAutoDetach(this.#handle, 1);
    try {
      return await aside('int libusb_claim_interface(uintptr_t, int)', this.#handle, number);
    } finally {
      // When it is released the driver stays away, unless it is attached.
      setAutoDetach(this.#handle, 0);
    }
  }
  release(number: number): Promise<number> {
    return aside('int libusb_release_interface(uintptr_t, int)', this.#handle, number);
  }
  /** @param value -1: none. */
  setConfiguration(value: number): Promise<number> {
    return aside('int libusb_set_configuration(uintptr_t, int)', this.#handle, value);
  }
  setAlternate(number: number, alternate: number): Promise<number> {
    return aside('int libusb_set_interface_alt_setting(uintptr_t, int, int)', this.#handle, number, alternate);
  }
  clearHalt(endpoint: number): Promise<number> {
    return aside('int libusb_clear_halt(uintptr_t, uint8_t)', this.#handle, endpoint);
  }
  reset(): Promise<number> {
    return aside('int libusb_reset_device(uintptr_t)', this.#handle);
  }

  /** After all transfers are done. Once. */
  async close(): Promise<void> {
    await aside('void libusb_close(uintptr_t)', this.#handle);
    this.#closed();
  }
}

function free(transfer: bigint, memory: Mapping): void {
  native('void libusb_free_transfer(uintptr_t)')(transfer);
  memory.dispose();
}

function structOf(transfer: bigint, packets: number): DataView {
  const bytes = viewOf(transfer, Transfer.packets + Packet.size * packets);
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** @returns bytes moved by all packets. */
function takePackets(view: DataView, packets: UsbRequest['packets']): number {
  let sum = 0;
  packets.forEach((packet, i) => {
    const at = Transfer.packets + Packet.size * i;
    packet.actualBytes = view.getUint32(at + Packet.actualLength, true);
    packet.status = outcomes[view.getInt32(at + Packet.status, true)] ?? 'error';
    sum += packet.actualBytes;
  });
  return sum;
}

/** As libusb says it: `LIBUSB_ERROR_ACCESS`. */
function errorName(code: number): string {
  const name: unknown = library?.func('const char *libusb_error_name(int)')(code);
  return typeof name === 'string' ? name : `error ${code}`;
}
