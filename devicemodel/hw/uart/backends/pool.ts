/**
 * Consoles outlive a full reset of the VM: the same pseudo terminal, socket and terminal settings before and after, and
 * nothing the user typed in between is lost. The board of each life asks here; the back ends end with the program.
 */

import type { CharBackend } from '../../../core/char-backend.ts';
import { attributed, ConfigError } from '../../../core/errors.ts';
import { openCharBackend } from './open.ts';
import { type CharBackendSpec, describeCharBackend, parseCharBackend } from './spec.ts';
import { StdioClaim } from './stdio.ts';
import type { CharBackendEnv } from './stream-backend.ts';

/** One back end, started once however often its device is. */
class KeptBackend implements CharBackend {
  readonly inner: CharBackend;
  readonly user: string;
  #started: Promise<void> | undefined;

  constructor(inner: CharBackend, user: string) {
    this.inner = inner;
    this.user = user;
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
    return this.inner.read();
  }
  write(byte: number): void {
    this.inner.write(byte);
  }
  flush(): void {
    this.inner.flush();
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

export interface PoolOptions extends Omit<CharBackendEnv, 'user'> {
  /** A back end that no option text describes. @returns undefined for all others. */
  readonly ownBackend?: (user: string, text: string) => CharBackend | undefined;
}

export class CharBackendPool {
  readonly #kept = new Map<string, KeptBackend>();
  readonly #env: Omit<CharBackendEnv, 'user'>;
  readonly #ownBackend: (user: string, text: string) => CharBackend | undefined;

  constructor({ ownBackend, ...env }: PoolOptions) {
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
          hint: 'give one of them pty, tcp:PORT or unix:PATH',
        });
      }
    }
    return this.#keep(key, user, openCharBackend(spec, { ...this.#env, user }));
  }

  #keep(key: string, user: string, inner: CharBackend): CharBackend {
    const kept = new KeptBackend(inner, user);
    this.#kept.set(key, kept);
    return kept;
  }

  /** What devices wrote in this turn goes out. */
  flush(): void {
    for (const kept of this.#kept.values()) kept.inner.flush();
  }

  async dispose(): Promise<void> {
    for (const kept of this.#kept.values()) await kept.inner.stop();
    this.#kept.clear();
  }
}
