/** VM events as the command monitor's client gets them: worded as cJSON does, and throttled (C: core/vm_event.c). */
import type { Clock, Timer } from '../devicemodel/core/clock.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { type VmEvent, VmEventCode } from '../devicemodel/core/vm-events.ts';

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
  const members = [`"vm_event":\t${VmEventCode[event.type]}`];
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
