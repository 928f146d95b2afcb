/**
 * What happens to a VM and is worth telling its manager: RTC changed, power-off, triple fault. Events come from the
 * hypervisor through a ring of shared memory (fork kernels) and from devices, and go to the command monitor's client
 * as JSON (C: core/vm_event.c, core/sbuf.c).
 */
import type { Clock, Timer } from './clock.ts';
import { SharedBuf } from './hsm/abi.ts';
import { initSharedBuffer } from './hsm/shared-buffer.ts';
import type { Log } from './log.ts';

export type VmEvent =
  /** The guest set its clock: what it was (seconds since 1970) and by how much it moved. */
  | { readonly type: 'rtc-change'; readonly lastTimeS: number; readonly deltaS: number }
  | { readonly type: 'poweroff' }
  | { readonly type: 'triple-fault' };

/** enum vm_event_type, acrn_common.h. */
const EventCode = { 'rtc-change': 0, poweroff: 1, 'triple-fault': 2 } as const satisfies Record<
  VmEvent['type'],
  number
>;

/** struct vm_event: u32 type, 28 bytes of data. */
const EVENT_BYTES = 32;
const EVENT_DATA = 4;
export const EVENT_PAGE_BYTES = 4096;

/** The consumer's side of the ring. The hypervisor writes elements and `tail`, we read them and write `head`. */
export class VmEventRing {
  readonly #words: Int32Array;
  readonly #view: DataView;
  readonly #log: Log;
  readonly #ringBytes: number;

  /** Formats the page. @param page at least one event long, 4-byte aligned; shared with the hypervisor from now on. */
  constructor(page: Uint8Array, log: Log) {
    this.#ringBytes = Math.floor((page.length - SharedBuf.size) / EVENT_BYTES) * EVENT_BYTES;
    this.#log = log;
    this.#words = new Int32Array(page.buffer, page.byteOffset, page.length >>> 2);
    this.#view = new DataView(page.buffer, page.byteOffset, page.length);
    initSharedBuffer(page, EVENT_BYTES);
  }

  /** Hand on everything that is there; at most one ring full, so that a wild producer cannot keep us here. */
  drain(onEvent: (event: VmEvent) => void): void {
    const headWord = SharedBuf.offsets.head >>> 2;
    const tail = Atomics.load(this.#words, SharedBuf.offsets.tail >>> 2) >>> 0;
    let head = Atomics.load(this.#words, headWord) >>> 0;
    if (tail >= this.#ringBytes || tail % EVENT_BYTES !== 0 || head >= this.#ringBytes || head % EVENT_BYTES !== 0) {
      this.#log.guest(() => `event ring is damaged (head ${head}, tail ${tail}), its events are dropped`);
      const start = tail < this.#ringBytes ? tail - (tail % EVENT_BYTES) : 0;
      Atomics.store(this.#words, headWord, start);
      return;
    }
    while (head !== tail) {
      const event = this.#decode(SharedBuf.size + head);
      head += EVENT_BYTES;
      if (head === this.#ringBytes) head = 0;
      // Released before the event is handled: whoever handles it may wait for the next one.
      Atomics.store(this.#words, headWord, head);
      if (event !== undefined) onEvent(event);
    }
  }

  #decode(at: number): VmEvent | undefined {
    const code = this.#view.getUint32(at, true);
    switch (code) {
      case EventCode['rtc-change']:
        return {
          type: 'rtc-change',
          lastTimeS: Number(this.#view.getBigInt64(at + EVENT_DATA, true)),
          deltaS: Number(this.#view.getBigInt64(at + EVENT_DATA + 8, true)),
        };
      case EventCode.poweroff:
        return { type: 'poweroff' };
      case EventCode['triple-fault']:
        return { type: 'triple-fault' };
      default:
        this.#log.guest(() => `event of unknown type ${code}`);
        return undefined;
    }
  }
}

/** A whole number as cJSON prints it: `%d` within 32 bits, else `%1.15g`, or `%1.17g` where that loses digits. */
export function cjsonNumber(value: number): string {
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return String(value);
  const general = (digits: number) => {
    const [mantissa = '', exponent = ''] = value.toExponential(digits - 1).split('e');
    const power = Number(exponent);
    if (power < digits) return String(BigInt(Math.trunc(value)));
    const short = mantissa.includes('.') ? mantissa.replace(/\.?0+$/, '') : mantissa;
    return `${short}e${power < 0 ? '-' : '+'}${String(Math.abs(power)).padStart(2, '0')}`;
  };
  const short = general(15);
  return Number(short) === value ? short : general(17);
}

/** The event as cJSON_Print writes it: tabs, one member a line, no final newline. */
export function vmEventText(event: VmEvent): string {
  const members = [`"vm_event":\t${EventCode[event.type]}`];
  if (event.type === 'rtc-change') {
    members.push(`"delta_time":\t${cjsonNumber(event.deltaS)}`, `"last_time":\t${cjsonNumber(event.lastTimeS)}`);
  }
  return `{\n\t${members.join(',\n\t')}\n}`;
}

const SECOND_NS = 1_000_000_000;

export interface VmEventPublisherOptions {
  readonly clock: Clock;
  readonly log: Log;
  readonly send: (text: string) => void;
}

/**
 * Throttles and words events. One event of a type is let through in each second counted from the start; the others of
 * that second are dropped. RTC changes come in bursts, one for each register the guest sets: they are summed up until
 * there was none for a second.
 */
export class VmEventPublisher {
  readonly #options: VmEventPublisherOptions;
  readonly #startNs: number;
  readonly #lastWindow = new Map<VmEvent['type'], number>();
  #dropped = 0;
  readonly #rtcTimer: Timer;
  #rtcChange: { lastTimeS: number; deltaS: number } | undefined;

  constructor(options: VmEventPublisherOptions) {
    this.#options = options;
    this.#startNs = options.clock.nowNs();
    this.#rtcTimer = options.clock.createTimer(() => this.#publishRtcChange());
  }

  publish(event: VmEvent): void {
    if (event.type !== 'rtc-change') {
      this.#send(event);
      return;
    }
    // The time before the first change of the burst is the one the manager knows.
    this.#rtcChange = {
      lastTimeS: this.#rtcChange?.lastTimeS ?? event.lastTimeS,
      deltaS: (this.#rtcChange?.deltaS ?? 0) + event.deltaS,
    };
    this.#rtcTimer.arm(this.#options.clock.nowNs() + SECOND_NS);
  }

  /** What was not sent by now is not sent any more. */
  stop(): void {
    this.#rtcTimer.cancel();
    this.#rtcChange = undefined;
  }

  #publishRtcChange(): void {
    const change = this.#rtcChange;
    this.#rtcChange = undefined;
    // Compat: C sends the sum with an uninitialised event type.
    if (change !== undefined) this.#send({ type: 'rtc-change', ...change });
  }

  #send(event: VmEvent): void {
    const window = Math.floor((this.#options.clock.nowNs() - this.#startNs) / SECOND_NS);
    if (this.#lastWindow.get(event.type) === window) {
      this.#dropped++;
      this.#options.log.guest(() => `${event.type} events come faster than one a second, ${this.#dropped} dropped`);
      return;
    }
    this.#lastWindow.set(event.type, window);
    this.#options.send(vmEventText(event));
  }
}
