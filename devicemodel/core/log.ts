/**
 * Logging. `error` and `warn` are for people, `info` for state changes that matter in production, `debug` for
 * everything else. A line a guest can provoke goes through `guest`, which is rate limited.
 */

/** Levels as acrn-dm numbers them in --logger_setting. */
export const LogLevel = { error: 1, warn: 2, notice: 3, info: 4, debug: 5 } as const;
export type LogLevelName = keyof typeof LogLevel;

/** Where lines go: console, /dev/kmsg, file. Must never throw. */
export interface LogSink {
  /** As --logger_setting has it; absent where nobody sets its level. */
  readonly name?: 'console' | 'kmsg' | 'disk';
  maxLevel: number;
  write(level: LogLevelName, line: string): void;
}

/** A line longer than this is cut; guests and files can put anything into messages. */
export const MAX_LINE_CHARS = 4000;

/** Control characters as `\xNN`: a guest must not move the reader's cursor or forge a second line. */
export function printable(line: string, maxChars = MAX_LINE_CHARS): string {
  const cut = line.length > maxChars ? `${line.slice(0, maxChars)}…` : line;
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what this is about
  return cut.replace(/[\x00-\x08\x0b-\x1f\x7f-\x9f]/g, (c) => `\\x${c.charCodeAt(0).toString(16).padStart(2, '0')}`);
}

/** Lines of guest-provoked trouble let through per scope in one window. */
const GUEST_BURST = 5;
/** The first window; each that was not enough makes the next twice as long, one with room to spare brings the first back. */
const GUEST_WINDOW_MS = 1000;
const MAX_GUEST_WINDOW_MS = 60_000;

/** What is left of a scope's lines in the present window. */
interface Ration {
  windowStartMs: number;
  windowMs: number;
  inWindow: number;
  suppressed: number;
}

export class Log {
  readonly #sinks: LogSink[];
  readonly #scope: string;
  readonly #rations: Map<string, Ration>;
  readonly #ration: Ration;

  /** @param rations of all scopes with these sinks: a guest that resets gets no new ones */
  constructor(sinks: LogSink[] = [], scope = '', rations = new Map<string, Ration>()) {
    this.#sinks = sinks;
    this.#scope = scope;
    this.#rations = rations;
    this.#ration = rations.get(scope) ?? { windowStartMs: 0, windowMs: GUEST_WINDOW_MS, inWindow: 0, suppressed: 0 };
    rations.set(scope, this.#ration);
  }

  /** A log for a part of the program: `pci.00:05.0`. Shares the sinks. */
  child(scope: string): Log {
    return new Log(this.#sinks, this.#scope === '' ? scope : `${this.#scope}.${scope}`, this.#rations);
  }

  /** Replace all sinks, also for children made earlier. */
  setSinks(sinks: readonly LogSink[]): void {
    this.#sinks.splice(0, this.#sinks.length, ...sinks);
  }

  /** One more sink, also for children made earlier. */
  addSink(sink: LogSink): void {
    this.#sinks.push(sink);
  }

  /** The sinks that have a name, and how much each takes. */
  get levels(): ReadonlyArray<{ readonly sink: string; readonly level: number }> {
    return this.#sinks.flatMap(({ name, maxLevel }) => (name === undefined ? [] : [{ sink: name, level: maxLevel }]));
  }

  /** @param sink undefined: all that have a name. @returns whether there is such a sink. */
  setLevel(level: number, sink?: string): boolean {
    const meant = this.#sinks.filter(({ name }) => name !== undefined && (sink === undefined || name === sink));
    for (const each of meant) each.maxLevel = level;
    return meant.length > 0;
  }

  error(text: string): void {
    this.#write('error', text);
  }
  warn(text: string): void {
    this.#write('warn', text);
  }
  notice(text: string): void {
    this.#write('notice', text);
  }
  info(text: string): void {
    this.#write('info', text);
  }
  /** @param text a function where the line comes with an access of the guest: one that nobody takes costs nothing. */
  debug(text: string | (() => string)): void {
    this.#write('debug', text);
  }

  /**
   * Something the guest did that no good guest does. At most {@link GUEST_BURST} lines a second and scope, and a minute
   * when it goes on; what was left out is counted in the next line. The text is a function so that a suppressed line costs nothing.
   */
  guest(text: () => string): void {
    this.rationed('info', () => `guest: ${text()}`);
  }

  /** Trouble of the host that a guest can bring about again and again: from the same ration as {@link guest}. */
  rationed(level: LogLevelName, text: () => string): void {
    const now = Date.now();
    const ration = this.#ration;
    if (now - ration.windowStartMs >= ration.windowMs) {
      ration.windowMs = ration.suppressed > 0 ? Math.min(2 * ration.windowMs, MAX_GUEST_WINDOW_MS) : GUEST_WINDOW_MS;
      ration.windowStartMs = now;
      ration.inWindow = 0;
    }
    if (ration.inWindow >= GUEST_BURST) {
      ration.suppressed++;
      return;
    }
    ration.inWindow++;
    const more = ration.suppressed > 0 ? ` (${ration.suppressed} similar lines left out)` : '';
    ration.suppressed = 0;
    this.#write(level, `${text()}${more}`);
  }

  #write(level: LogLevelName, text: string | (() => string)): void {
    const rank = LogLevel[level];
    for (const sink of this.#sinks) {
      if (rank > sink.maxLevel) continue;
      const line = typeof text === 'string' ? text : text();
      sink.write(level, this.#scope === '' ? line : `${this.#scope}: ${line}`);
    }
  }
}

/** A log that goes nowhere, for tests and defaults. */
export const silentLog = new Log();
