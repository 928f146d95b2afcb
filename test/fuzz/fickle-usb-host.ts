/**
 * The USB of a host that does what it is asked when it likes, or not at all: opens and refuses, loses devices in the
 * middle of everything, gives transfers back late. What has to hold at its side: nobody uses what is closed, nothing is
 * closed that is in use, and in the end everything is the host's again.
 */
import type { UsbHandle, UsbOutcome, UsbRequest } from '../../devicemodel/core/host/libusb.ts';
import { UsbSpeed } from '../../devicemodel/hw/usb/device.ts';
import type { HostUsbDevice } from '../../devicemodel/hw/usb/host-tree.ts';
import type { HostUsb } from '../../devicemodel/hw/usb/port-mapper.ts';
import type { Random } from './random.ts';

const PORTS = ['1-1', '1-2', '1-3'] as const;
/** Calls that are not answered. A device has one at a time; it may have been plugged in anew while that is under way. */
const MAX_WAITING = 6 * PORTS.length;
const outcomes: readonly UsbOutcome[] = ['completed', 'completed', 'completed', 'stall', 'error', 'babble', 'timeout'];
/** LIBUSB_ERROR_NO_DEVICE. */
const NO_DEVICE = -4;

class FickleHandle implements Pick<UsbHandle, keyof UsbHandle> {
  readonly #host: FickleUsbHost;
  readonly requests = new Map<bigint, UsbRequest>();
  readonly cancelled = new Set<bigint>();
  readonly claimed = new Set<number>();
  isGone = false;
  isClosed = false;
  #isCalled = false;
  #ids = 0n;

  constructor(host: FickleUsbHost) {
    this.#host = host;
  }

  submit(request: UsbRequest): bigint | undefined {
    this.#use();
    // The kernel would have its caller wait.
    if (this.#isCalled) this.#host.fail('a transfer is submitted during a call');
    if (this.isGone || this.#host.random.oneIn(32)) return undefined;
    this.requests.set(++this.#ids, request);
    return this.#ids;
  }

  async cancel(id: bigint): Promise<void> {
    await this.#answered(() => {
      if (this.requests.has(id)) this.cancelled.add(id);
      return 0;
    });
  }

  give(id: bigint, outcome: UsbOutcome): void {
    const request = this.requests.get(id);
    if (request === undefined) return;
    this.requests.delete(id);
    this.cancelled.delete(id);
    const random = this.#host.random;
    for (const packet of request.packets) packet.actualBytes = random.below(packet.lengthBytes + 1);
    const roomBytes = request.buffer.length - (request.type === 'control' ? 8 : 0);
    request.done(outcome, random.below(roomBytes + 1));
  }

  attachDriver = () => this.#call();
  claim = (number: number) => this.#call(() => this.claimed.add(number));
  // What is claimed can be given back.
  release = (number: number) => this.#answered(() => (this.claimed.delete(number) ? 0 : -5));
  setConfiguration = () => this.#call();
  setAlternate = () => this.#call();
  clearHalt = () => this.#call();
  reset = () => this.#call();

  close(): Promise<void> {
    this.#use();
    if (this.requests.size > 0) this.#host.fail('a device is closed that has transfers');
    if (this.claimed.size > 0 && !this.isGone) this.#host.fail('a device is closed whose interfaces are claimed');
    this.isClosed = true;
    return Promise.resolve();
  }

  #call(done: () => void = () => {}): Promise<number> {
    return this.#answered(() => {
      if (this.isGone) return NO_DEVICE;
      if (this.#host.isFriendly || !this.#host.random.oneIn(8)) {
        done();
        return 0;
      }
      return this.#host.random.pick([-1, -5, -6, -99]);
    });
  }

  #answered(result: () => number): Promise<number> {
    this.#use();
    if (this.#isCalled) this.#host.fail('two calls of a device are under way');
    this.#isCalled = true;
    return this.#host.answered(() => {
      this.#isCalled = false;
      return result();
    });
  }

  #use(): void {
    if (this.isClosed) this.#host.fail('a device is used that is closed');
  }
}

export class FickleUsbHost implements HostUsb {
  static readonly ports = PORTS;
  readonly random: Random;
  readonly #handles = new Map<string, FickleHandle[]>();
  readonly #waiting: Array<() => void> = [];
  readonly #devices = new Map<string, HostUsbDevice>();
  #onChange: (() => void) | undefined;
  #numbers = 1;
  /** At the end nothing fails any more. */
  isFriendly = false;
  /** Kept, since whoever is at fault may catch it. */
  #failure: Error | undefined;

  constructor(random: Random) {
    this.random = random;
    for (const path of PORTS) this.#plug(path);
  }

  #plug(path: string): void {
    const { random } = this;
    const deviceNumber = ++this.#numbers;
    this.#devices.set(path, {
      path,
      deviceNumber,
      node: `/dev/bus/usb/001/${deviceNumber}`,
      speed: random.pick(Object.values(UsbSpeed)),
      release: random.pick([0x110, 0x200, 0x300]),
      id: random.pick(['0781:5567', '1234:5678']),
      isHub: random.oneIn(16),
    });
  }

  list(): readonly HostUsbDevice[] {
    return [...this.#devices.values()];
  }

  watch(onChange: () => void): () => void {
    this.#onChange = onChange;
    return () => {
      this.#onChange = undefined;
    };
  }

  async open(node: string): Promise<FickleHandle> {
    await this.answered(() => 0);
    if (!this.isFriendly && this.random.oneIn(8)) throw new Error('refused');
    const handle = new FickleHandle(this);
    handle.isGone = !this.list().some((device) => device.node === node);
    this.#handles.set(node, [...(this.#handles.get(node) ?? []), handle]);
    return handle;
  }

  async activeInterfaces(): Promise<readonly number[]> {
    await this.answered(() => 0);
    if (!this.isFriendly && this.random.oneIn(16)) throw new Error('not there any more');
    return [0, 1];
  }

  /** A call that takes its time. */
  answered(result: () => number): Promise<number> {
    return new Promise((resolve) => {
      this.#waiting.push(() => resolve(result()));
    });
  }

  get #all(): FickleHandle[] {
    return [...this.#handles.values()].flat();
  }

  /** Something happens. */
  step(): void {
    const { random } = this;
    switch (random.below(8)) {
      case 0:
      case 1:
      case 2:
        this.#waiting.splice(random.below(this.#waiting.length || 1), 1)[0]?.();
        return;
      case 3:
        if (random.oneIn(32)) this.#change();
        return;
      default: {
        const handle = random.pick(this.#all);
        const id = random.pick([...(handle?.requests.keys() ?? [])]);
        if (handle === undefined || id === undefined) return;
        handle.give(id, handle.isGone ? 'gone' : handle.cancelled.has(id) ? 'cancelled' : random.pick(outcomes));
      }
    }
  }

  #change(): void {
    const path = this.random.pick(PORTS);
    const device = this.#devices.get(path);
    if (device === undefined) this.#plug(path);
    else {
      this.#devices.delete(path);
      for (const handle of this.#handles.get(device.node) ?? []) handle.isGone = true;
      if (this.random.oneIn(2)) this.#plug(path);
    }
    this.#onChange?.();
  }

  fail(message: string): never {
    this.#failure ??= new Error(message);
    throw this.#failure;
  }

  /** All that was asked for is done: calls are answered, cancelled transfers come back. */
  finish(): void {
    this.isFriendly = true;
    for (const answer of this.#waiting.splice(0)) answer();
    for (const handle of this.#all) {
      for (const id of handle.isGone ? handle.requests.keys() : handle.cancelled) {
        handle.give(id, handle.isGone ? 'gone' : 'cancelled');
      }
    }
  }

  /** @throws Error */
  check(): void {
    if (this.#failure !== undefined) throw this.#failure;
    if (this.#waiting.length > MAX_WAITING) throw new Error(`${this.#waiting.length} calls of the host are under way`);
  }

  /** Of a VM that is over. @throws Error */
  checkEnd(): void {
    this.check();
    const open = this.#all.filter(({ isClosed }) => !isClosed);
    if (open.length > 0) throw new Error(`${open.length} devices were not given back`);
    if (this.#onChange !== undefined) throw new Error('the host is still watched');
  }
}
