/** The USB of a host that is not there: devices come and go, and do, as the test says. */
import type { UsbOutcome, UsbRequest } from '../../devicemodel/core/host/libusb.ts';
import type { HostUsbDevice } from '../../devicemodel/hw/usb/host-tree.ts';
import type { HostUsb } from '../../devicemodel/hw/usb/port-mapper.ts';

/** An open device. Everything it is asked is in `calls`; transfers stay until the test gives them back. */
export class FakeHandle {
  readonly calls: string[] = [];
  readonly requests: UsbRequest[] = [];
  refuses = false;
  /** What these calls answer; the others 0. */
  readonly results = new Map<string, number>();
  /** Calls that begin like this are not answered, until `goOn`. */
  hanging: string | undefined;
  #ids = 0n;
  readonly #hung: Array<() => void> = [];

  submit(request: UsbRequest): bigint | undefined {
    if (this.refuses) return undefined;
    if (request.type !== 'control') this.calls.push(`submit ${request.type} ${request.endpoint}`);
    this.requests.push(request);
    return ++this.#ids;
  }
  async cancel(): Promise<void> {
    await this.#call('cancel');
  }
  /** The oldest transfer comes back. */
  give(outcome: UsbOutcome, actualBytes = 0): void {
    const request = this.requests.shift();
    if (request === undefined) throw new Error('nothing is in flight');
    request.done(outcome, actualBytes);
  }

  attachDriver = (number: number) => this.#call(`attach ${number}`);
  claim = (number: number) => this.#call(`claim ${number}`);
  release = (number: number) => this.#call(`release ${number}`);
  setConfiguration = (value: number) => this.#call(`configure ${value}`);
  setAlternate = (number: number, alternate: number) => this.#call(`alternate ${number} ${alternate}`);
  clearHalt = (endpoint: number) => this.#call(`clear ${endpoint}`);
  reset = () => this.#call('reset');

  async close(): Promise<void> {
    this.calls.push('close');
  }
  /** What hangs is answered. */
  goOn(): void {
    this.hanging = undefined;
    for (const answer of this.#hung.splice(0)) answer();
  }

  #call(text: string): Promise<number> {
    this.calls.push(text);
    const result = this.results.get(text) ?? 0;
    if (this.hanging === undefined || !text.startsWith(this.hanging)) return Promise.resolve(result);
    return new Promise((resolve) => this.#hung.push(() => resolve(result)));
  }
}

export class FakeHostUsb implements HostUsb {
  readonly handles: FakeHandle[] = [];
  openFails = false;
  watchFails = false;
  /** What is there; {@link change} tells of it. */
  devices: readonly HostUsbDevice[];
  #onChange: (() => void) | undefined;

  constructor(devices: readonly HostUsbDevice[]) {
    this.devices = devices;
  }

  get isWatched(): boolean {
    return this.#onChange !== undefined;
  }

  /** Devices come and go, and the kernel says so. */
  change(devices: readonly HostUsbDevice[]): void {
    this.devices = devices;
    this.#onChange?.();
  }

  list(): readonly HostUsbDevice[] {
    return this.devices;
  }
  watch(onChange: () => void): () => void {
    if (this.watchFails) throw new Error('no such socket');
    this.#onChange = onChange;
    return () => {
      this.#onChange = undefined;
    };
  }
  async open(): Promise<FakeHandle> {
    if (this.openFails) throw new Error('permission denied');
    const handle = new FakeHandle();
    this.handles.push(handle);
    return handle;
  }
  async activeInterfaces(): Promise<readonly number[]> {
    return [0, 1];
  }
}
