/**
 * What happened to a VM and its process, as one ordered stream: for the API's event streams, for `--event-monitor`, and
 * for whoever asks later, as far back as it is kept.
 */
import type { GuestReset, VmEvents } from '../devicemodel/core/vm-events.ts';

export interface StreamEvent {
  /** From 1 up, without gaps. */
  readonly seq: number;
  /** Milliseconds since 1970. */
  readonly timeMs: number;
  readonly source: 'vmm' | 'vm' | 'guest' | 'console' | 'disk' | 'net' | 'api';
  readonly event: string;
  readonly data?: Readonly<Record<string, unknown>>;
}

/** Kept for those who come later. */
const KEPT_EVENTS = 256;

export class EventStream {
  readonly #kept: StreamEvent[] = [];
  readonly #listeners = new Set<(event: StreamEvent) => void>();
  #seq = 0;

  emit(source: StreamEvent['source'], event: string, data?: StreamEvent['data']): void {
    const told: StreamEvent = {
      seq: ++this.#seq,
      timeMs: Date.now(),
      source,
      event,
      ...(data === undefined ? {} : { data }),
    };
    this.#kept.push(told);
    if (this.#kept.length > KEPT_EVENTS) this.#kept.shift();
    for (const listener of this.#listeners) listener(told);
  }

  /** Of the newest event; 0 before the first. */
  get seq(): number {
    return this.#seq;
  }

  /** As far back as they are kept. */
  get kept(): readonly StreamEvent[] {
    return this.#kept;
  }

  /**
   * @returns the events behind `seq`, or undefined when some of them are not kept any more, or `seq` is not of this stream:
   *   it was told by a process before this one.
   */
  since(seq: number): readonly StreamEvent[] | undefined {
    if (seq > this.#seq) return undefined;
    const first = this.#kept[0]?.seq ?? this.#seq + 1;
    if (seq + 1 < first) return undefined;
    return this.#kept.filter((event) => event.seq > seq);
  }

  /** @returns how to stop. */
  listen(listener: (event: StreamEvent) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }

  /** What a VM tells becomes part of the stream. @returns how to stop. */
  follow(vm: VmEvents): () => void {
    let isUp = false;
    let isResetting = false;
    const onState = (state: string) => {
      if (state === 'running') {
        this.emit('vm', isResetting ? 'rebooted' : isUp ? 'resumed' : 'booted');
        isUp = true;
        isResetting = false;
      } else if (state === 'ended') this.emit('vm', 'shutdown');
      // A guest that is being reset stands still, and nobody can make it go on.
      else if (state !== 'created' && !(isResetting && state === 'paused')) this.emit('vm', state);
    };
    const onReset = (reset: GuestReset) => {
      isResetting = true;
      this.emit('vm', 'rebooting', { ...reset });
    };
    const onEvent = ({ type, ...data }: { readonly type: string }) => {
      if (type === 'rtc-change') this.emit('guest', 'rtc-changed', data);
      else this.emit('guest', type);
    };
    vm.on('state', onState).on('reset', onReset).on('event', onEvent);
    return () => void vm.off('state', onState).off('reset', onReset).off('event', onEvent);
  }
}
