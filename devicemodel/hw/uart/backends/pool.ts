/**
 * Consoles outlive a full reset of the VM: the same pseudo terminal, socket and terminal settings before and after, and
 * nothing the user typed in between is lost. The board of each life asks here; the back ends end with the program.
 */
import type { CharBackend, LineTap, TappableLine } from '../../../core/char-backend.ts';
import { ConsoleCount, CounterBook, type CounterPage, tally } from '../../../core/counters.ts';
import { attributed, ConfigError } from '../../../core/errors.ts';
import { ByteQueue } from './byte-queue.ts';
import { openCharBackend } from './open.ts';
import { type CharBackendSpec, describeCharBackend, parseCharBackend } from './spec.ts';
import { StdioClaim } from './stdio.ts';
import type { CharBackendEnv } from './stream-backend.ts';

/** Output that is kept for those who come later, output of one turn, and what they typed and the guest has not read. */
const HISTORY_BYTES = 16 * 1024;
const TAP_BYTES = 64 * 1024;
const TYPED_BYTES = 4 * 1024;

/** One back end, started once however often its device is. Others may look on, and type. */
class KeptBackend implements CharBackend, TappableLine {
  readonly inner: CharBackend;
  readonly user: string;
  #started: Promise<void> | undefined;
  readonly #history = new ByteQueue(HISTORY_BYTES);
  readonly #taps = new Set<(data: Uint8Array) => void>();
  readonly #untold = new ByteQueue(TAP_BYTES);
  readonly #typed = new ByteQueue(TYPED_BYTES);
  readonly #counts: CounterPage;
  readonly #onOutput: () => void;

  /** @param onOutput something was written: it is to be flushed. */
  constructor(inner: CharBackend, user: string, counters: CounterBook, onOutput: () => void) {
    this.inner = inner;
    this.user = user;
    this.#counts = counters.of('console', this.id).own;
    this.#onOutput = onOutput;
  }

  get name(): string {
    return this.inner.name;
  }
  get onReadable(): (() => void) | undefined {
    return this.inner.onReadable;
  }
  set onReadable(listener: (() => void) | undefined) {
    this.inner.onReadable = listener;
  }
  read(): number {
    const byte = this.#typed.length === 0 ? this.inner.read() : this.#takeTyped();
    if (byte >= 0) tally(this.#counts, ConsoleCount.inBytes, 1);
    return byte;
  }
  #takeTyped(): number {
    const byte = this.#typed.peek(1)[0] as number;
    this.#typed.drop(1);
    return byte;
  }
  write(byte: number): void {
    this.inner.write(byte);
    tally(this.#counts, ConsoleCount.outBytes, 1);
    this.#history.push(byte);
    if (this.#taps.size > 0) this.#untold.push(byte);
    this.#onOutput();
  }
  flush(): void {
    this.inner.flush();
    if (this.#untold.length === 0) return;
    const data = takeAll(this.#untold);
    for (const tell of this.#taps) tell(data.slice());
  }

  get id(): string {
    return this.user.replace(/[^\w.:-]+/g, '-');
  }
  get backend(): string {
    return this.inner.name;
  }
  history(): Uint8Array {
    const copy = takeAll(this.#history);
    for (const byte of copy) this.#history.push(byte);
    return copy;
  }
  tap(onOutput: (data: Uint8Array) => void): LineTap {
    this.#taps.add(onOutput);
    return {
      type: (data) => {
        const taken = Math.min(data.length, TYPED_BYTES - this.#typed.length);
        for (const byte of data.subarray(0, taken)) this.#typed.push(byte);
        this.onReadable?.();
        return taken;
      },
      detach: () => void this.#taps.delete(onOutput),
    };
  }

  start(): Promise<void> {
    this.#started ??= this.#startInner();
    return this.#started;
  }
  async #startInner(): Promise<void> {
    try {
      await this.inner.start();
    } catch (error) {
      throw attributed(this.user, error);
    }
  }
  /** The device went, the line stays open: input waits until the next life reads it. */
  stop(): void {
    this.inner.onReadable = undefined;
    this.inner.flush();
  }
}

function takeAll(queue: ByteQueue): Uint8Array {
  const all = new Uint8Array(queue.length);
  for (let at = 0; at < all.length; ) {
    const piece = queue.peek(all.length - at);
    all.set(piece, at);
    at += piece.length;
    queue.drop(piece.length);
  }
  return all;
}

export interface PoolOptions extends Omit<CharBackendEnv, 'user'> {
  /** A back end that no option text describes. @returns undefined for all others. */
  /** What the lines count, for whoever looks. */
  readonly counters?: CounterBook;
  readonly ownBackend?: (user: string, text: string) => CharBackend | undefined;
}

/** What those who want the one stdio can have instead. */
function otherBackEnds(...users: readonly string[]): string {
  const isPort = (user: string) => user.startsWith('virtio-console');
  const ways = [
    ...(users.every(isPort) ? [] : ['give the serial port pty, tcp:PORT or unix:PATH']),
    ...(users.some(isPort) ? ['give the port of virtio-console pty:NAME or socket:NAME=PATH'] : []),
  ];
  return ways.join(', or ');
}

export class CharBackendPool {
  readonly #kept = new Map<string, KeptBackend>();
  /** Since the last flush, to whichever. */
  #hasOutput = false;
  readonly #env: Omit<CharBackendEnv, 'user'>;
  readonly #counters: CounterBook;
  readonly #ownBackend: (user: string, text: string) => CharBackend | undefined;

  constructor({ ownBackend, counters = new CounterBook(), ...env }: PoolOptions) {
    this.#counters = counters;
    this.#env = { stdioClaim: new StdioClaim(), ...env };
    this.#ownBackend = ownBackend ?? (() => undefined);
  }

  /**
   * @param user who it is for: `com1`, `uart at 00:07.0`; the same user gets the same back end again.
   * @throws ConfigError for text that is no back end, or a second user of stdio.
   */
  open(user: string, text: string | CharBackendSpec): CharBackend {
    if (typeof text !== 'string') return this.#openSpec(user, text);
    const known = this.#kept.get(`${user} ${text}`);
    if (known !== undefined) return known;
    const own = this.#ownBackend(user, text);
    return own === undefined ? this.#openSpec(user, parseCharBackend(text)) : this.#keep(`${user} ${text}`, user, own);
  }

  #openSpec(user: string, spec: CharBackendSpec): CharBackend {
    const key = `${user} ${describeCharBackend(spec)}`;
    const known = this.#kept.get(key);
    if (known !== undefined) return known;
    if (spec.kind === 'stdio') {
      const other = [...this.#kept.values()].find((k) => k.inner.name === 'stdio');
      if (other !== undefined) {
        throw new ConfigError(`${user}: stdio is in use by ${other.user}`, {
          hint: otherBackEnds(user, other.user),
        });
      }
    }
    return this.#keep(key, user, openCharBackend(spec, { ...this.#env, user }));
  }

  #keep(key: string, user: string, inner: CharBackend): CharBackend {
    const kept = new KeptBackend(inner, user, this.#counters, () => {
      this.#hasOutput = true;
    });
    this.#kept.set(key, kept);
    return kept;
  }

  /** All there are, in the order in which they were opened. */
  get lines(): readonly TappableLine[] {
    return [...this.#kept.values()];
  }

  /** What devices wrote in this turn goes out. Cheap enough for every request of the guest. */
  flush(): void {
    if (!this.#hasOutput) return;
    this.#hasOutput = false;
    for (const kept of this.#kept.values()) kept.flush();
  }

  async dispose(): Promise<void> {
    for (const kept of this.#kept.values()) await kept.inner.stop();
    this.#kept.clear();
  }
}
