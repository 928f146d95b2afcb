/**
 * USB devices of the host by libusb-1.0, which is loaded when a VM is given one. Spec: libusb 1.0.24 (libusb.h).
 *
 * Transfers are asynchronous: libusb's descriptors are watched by the event loop, and its events are handled on this
 * thread, so that `done` of a transfer is called on it, too. Whatever may block (opening, resets, configurations, drivers of
 * the host, and cancelling, for which the kernel waits) runs on a thread of Node's pool. libusb neither looks for
 * devices nor for udev: a device is opened by its node.
 *
 * Each device has a libusb context of its own, since handling the events of one asks the kernel about all its devices,
 * under a lock of the context and under that lock of the device which the kernel keeps for the time of a call. So while a
 * call is under way nobody looks at what its device has to tell, and the others go on.
 */
import { close as closeCallback, open as openCallback } from 'node:fs';
import { promisify } from 'node:util';
import koffi from 'koffi';
import { Disposer } from '../disposer.ts';
import { HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { watchFdFor } from './fd-watch.ts';
import { OpenFlag } from './files.ts';
import { type Mapping, map, viewOf } from './mapping.ts';

const LIBRARY = 'libusb-1.0.so.0';
/** enum libusb_option: no enumeration, so that neither udev nor rights to all devices are needed. */
const OPTION_NO_DEVICE_DISCOVERY = 2;
const openFileAside = promisify(openCallback);
/** The kernel takes the device's lock for that, too. */
const closeFileAside = promisify(closeCallback);

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
const CLOSE = 'void libusb_close(uintptr_t)';
const EXIT = 'void libusb_exit(uintptr_t)';
/** Between two tries to watch a device: what the host has too little of may be there again. */
const WATCH_AGAIN_MS = 1000;

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
export function loadLibusb(): void {
  if (library !== undefined) return;
  try {
    library = koffi.load(LIBRARY);
    native('int libusb_wrap_sys_device(uintptr_t, intptr_t, void *)');
    native('int libusb_set_option(uintptr_t, int)')(0, OPTION_NO_DEVICE_DISCOVERY);
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
}

/** @param node `/dev/bus/usb/001/002`. @throws HostError, and then nothing of it stays */
export async function openUsbDevice(node: string): Promise<UsbHandle> {
  loadLibusb();
  const undo = new Disposer();
  try {
    return await openWith(undo, node);
  } catch (error) {
    // What went wrong first is what is to be known.
    await undo.run().catch(() => {});
    throw error;
  }
}

async function openWith(undo: Disposer, node: string): Promise<UsbHandle> {
  const must = (result: number, call: string) => {
    if (result !== 0) throw new HostError(`${node}: ${call}: ${errorName(result)}`, Errno.EIO);
  };
  const fd = await openFileAside(node, OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  undo.defer(() => closeFileAside(fd));
  const context = new BigUint64Array(1);
  must(Number(native('int libusb_init(void *)')(context)), 'libusb_init');
  undo.defer(() => void native(EXIT)(context[0]));
  const handle = new BigUint64Array(1);
  must(
    await aside('int libusb_wrap_sys_device(uintptr_t, intptr_t, void *)', context[0], fd, handle),
    'libusb_wrap_sys_device',
  );
  undo.defer(async () => void (await aside(CLOSE, handle[0])));
  return new UsbHandle(context[0] as bigint, handle[0] as bigint, fd);
}

/**
 * One open device, and the libusb context that it has for itself: owned by whoever opened it, until `close`. Calls that may
 * block run aside, one at a time, `submit` not meanwhile: the caller sees to that.
 */
export class UsbHandle {
  readonly #context: bigint;
  readonly #handle: bigint;
  readonly #fd: number;
  /** Transfers that libusb has, by the address of their struct. */
  readonly #submitted = new Map<bigint, Submitted>();
  /** Transfers that libusb is done with, while it is still at its events. */
  readonly #finished: bigint[] = [];
  readonly #callback: bigint;
  readonly #unregisterCallback: () => void;
  readonly #timeval = new BigInt64Array(2);
  readonly #watches: Array<() => void> = [];
  #watched = '';
  #watchAgain: NodeJS.Timeout | undefined;
  #calls = 0;

  /** @internal by openUsbDevice */
  constructor(context: bigint, handle: bigint, fd: number) {
    this.#context = context;
    this.#handle = handle;
    this.#fd = fd;
    const registered = koffi.register(
      (transfer: number | bigint) => void this.#finished.push(BigInt(transfer)),
      koffi.pointer(koffi.proto('void(uintptr_t transfer)')),
    );
    this.#callback = BigInt(koffi.address(registered));
    this.#unregisterCallback = () => koffi.unregister(registered);
    try {
      this.#watch();
    } catch (error) {
      this.#unregisterCallback();
      throw error;
    }
  }

  // Events.

  /** Watch the descriptors that libusb has now. @throws HostError, and then none is watched */
  #watch(): void {
    const fds = this.#descriptors();
    const key = JSON.stringify(fds);
    if (key === this.#watched) return;
    this.#unwatch();
    try {
      for (const { fd, isWritable } of fds) {
        this.#watches.push(watchFdFor(fd, isWritable ? 'writable' : 'readable', () => this.#handleEvents()));
      }
    } catch (error) {
      this.#unwatch();
      throw error;
    }
    this.#watched = key;
  }

  /** As `#watch`, for when nobody could be told that it fails: it is tried until it does not. */
  #watchSometime(): void {
    try {
      this.#watch();
    } catch {
      this.#unwatch();
      this.#watchAgain = setTimeout(() => this.#watchSometime(), WATCH_AGAIN_MS);
    }
  }

  #descriptors(): Array<{ readonly fd: number; readonly isWritable: boolean }> {
    const list = BigInt(native('uintptr_t libusb_get_pollfds(uintptr_t)')(this.#context));
    if (list === 0n) throw new HostError('libusb_get_pollfds: no memory', Errno.ENOMEM);
    const pointers = new BigUint64Array(viewOf(list, 8 * MAX_POLLFDS).buffer, 0, MAX_POLLFDS);
    const fds: Array<{ fd: number; isWritable: boolean }> = [];
    for (const pointer of pointers) {
      if (pointer === 0n) break;
      const bytes = viewOf(pointer, POLLFD_BYTES);
      const view = new DataView(bytes.buffer, bytes.byteOffset, POLLFD_BYTES);
      fds.push({ fd: view.getInt32(0, true), isWritable: (view.getInt16(4, true) & POLLOUT) !== 0 });
    }
    native('void libusb_free_pollfds(uintptr_t)')(list);
    return fds;
  }

  #unwatch(): void {
    clearTimeout(this.#watchAgain);
    this.#watched = '';
    for (const stop of this.#watches.splice(0)) stop();
  }

  #handleEvents(): void {
    // Told of before a call began.
    if (this.#calls > 0) return;
    native('int libusb_handle_events_timeout_completed(uintptr_t, void *, uintptr_t)')(this.#context, this.#timeval, 0);
    const finished = this.#finished.splice(0);
    // A device that was pulled out is dropped by libusb, and its descriptor would be ready for ever.
    if (finished.length === 0) this.#watchSometime();
    // Only now: it may begin a call, and libusb would go on asking the kernel for the next one meanwhile.
    for (const transfer of finished) this.#finish(transfer);
  }

  #finish(transfer: bigint): void {
    const submitted = this.#submitted.get(transfer);
    if (submitted === undefined) return;
    this.#submitted.delete(transfer);
    const { request, memory } = submitted;
    const { type, isIn, buffer, packets } = request;
    const view = structOf(transfer, packets.length);
    const headBytes = type === 'control' ? 8 : 0;
    let actualBytes = view.getInt32(Transfer.actualLength, true);
    const outcome = outcomes[view.getInt32(Transfer.status, true)] ?? 'error';
    if (type === 'isochronous') actualBytes = takePackets(view, packets);
    if (isIn && type === 'isochronous') buffer.set(memory.bytes.subarray(0, buffer.length));
    else if (isIn) buffer.set(memory.bytes.subarray(headBytes, headBytes + actualBytes), headBytes);
    free(transfer, memory);
    request.done(outcome, actualBytes);
  }

  // Transfers.

  /** @returns what `cancel` takes; undefined: it was refused, and `done` is not called. */
  submit(request: UsbRequest): bigint | undefined {
    const { type, endpoint, buffer, packets } = request;
    const transfer = BigInt(native('uintptr_t libusb_alloc_transfer(int)')(packets.length));
    if (transfer === 0n) return undefined;
    const memory = map(Math.max(1, buffer.length), 'USB transfer');
    memory.bytes.set(buffer);
    const view = structOf(transfer, packets.length);
    view.setBigUint64(Transfer.handle, this.#handle, true);
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
    this.#submitted.set(transfer, { request, memory });
    const result = native('int libusb_submit_transfer(uintptr_t)')(transfer);
    if (result === 0) return transfer;
    this.#submitted.delete(transfer);
    free(transfer, memory);
    return undefined;
  }

  /** Ask for a transfer, once; `done` is the answer. Nothing happens when it is done already. @returns when that was asked */
  async cancel(transfer: bigint): Promise<void> {
    // Events are not handled meanwhile, so that its struct stays.
    if (this.#submitted.has(transfer)) await this.#aside('int libusb_cancel_transfer(uintptr_t)', transfer);
  }

  // Calls.

  /** Each answers 0 or a negative `enum libusb_error`. */
  attachDriver(number: number): Promise<number> {
    return this.#aside('int libusb_attach_kernel_driver(uintptr_t, int)', this.#handle, number);
  }
  /** It is taken from a driver of the host in the same step: none can come in between. */
  async claim(number: number): Promise<number> {
    const setAutoDetach = native('int libusb_set_auto_detach_kernel_driver(uintptr_t, int)');
    setAutoDetach(this.#handle, 1);
    try {
      return await this.#aside('int libusb_claim_interface(uintptr_t, int)', this.#handle, number);
    } finally {
      // When it is released the driver stays away, unless it is attached.
      setAutoDetach(this.#handle, 0);
    }
  }
  release(number: number): Promise<number> {
    return this.#aside('int libusb_release_interface(uintptr_t, int)', this.#handle, number);
  }
  /** @param value -1: none. */
  setConfiguration(value: number): Promise<number> {
    return this.#aside('int libusb_set_configuration(uintptr_t, int)', this.#handle, value);
  }
  setAlternate(number: number, alternate: number): Promise<number> {
    return this.#aside('int libusb_set_interface_alt_setting(uintptr_t, int, int)', this.#handle, number, alternate);
  }
  clearHalt(endpoint: number): Promise<number> {
    return this.#aside('int libusb_clear_halt(uintptr_t, uint8_t)', this.#handle, endpoint);
  }
  reset(): Promise<number> {
    return this.#aside('int libusb_reset_device(uintptr_t)', this.#handle);
  }

  /** After all transfers are done. Once. */
  async close(): Promise<void> {
    this.#pause();
    await aside(CLOSE, this.#handle);
    native(EXIT)(this.#context);
    this.#unregisterCallback();
    await closeFileAside(this.#fd);
  }

  async #aside(prototype: string, ...args: unknown[]): Promise<number> {
    this.#pause();
    try {
      return await aside(prototype, ...args);
    } finally {
      this.#calls--;
      if (this.#calls === 0) this.#watchSometime();
    }
  }

  #pause(): void {
    this.#calls++;
    this.#unwatch();
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
