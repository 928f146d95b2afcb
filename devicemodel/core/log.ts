/**
 * Logging. `error` and `warn` are for people, `info` for state changes that matter in production, `debug` for
 * everything else. A line a guest can provoke goes through `guest`, which is rate limited.
 */

/** Levels as acrn-dm numbers them in --logger_setting. */
export const LogLevel = { error: 1, warn: 2, notice: 3, info: 4, debug: 5 } as const;
export type LogLevelName = keyof typeof LogLevel;

/** Where lines go: console, /dev/kmsg, file. Must never throw. */
export interface LogSink {
  readonly maxLevel: number;
  write(level: LogLevelName, line: string): void;
}

/** Lines of guest-provoked trouble let through per scope in one window. */
const GUEST_BURST = 5;
const GUEST_WINDOW_MS = 1000;

export class Log {
  readonly #sinks: LogSink[];
  readonly #scope: string;
  #windowStartMs = 0;
  #inWindow = 0;
  #suppressed = 0;

  constructor(sinks: LogSink[] = [], scope = '') {
    this.#sinks = sinks;
    this.#scope = scope;
  }

  /** A log for a part of the program: `pci.00:05.0`. Shares the sinks. */
  child(scope: string): Log {
    return new Log(this.#sinks, this.#scope === '' ? scope : `${this.#scope}.${scope}`);
  }

  /** Replace all sinks, also for children made earlier. */
  setSinks(sinks: readonly LogSink[]): void {
    this.#sinks.splice(0, this.#sinks.length, ...sinks);
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
  debug(text: string): void {
    this.#write('debug', text);
  }

  /**
   * Something the guest did that no good guest does. At most {@link GUEST_BURST} lines a second and scope; what was
   * left out is counted in the next line. The text is a function so that a suppressed line costs nothing.
   */
  guest(text: () => string): void {
    const now = Date.now();
    if (now - this.#windowStartMs >= GUEST_WINDOW_MS) {
      this.#windowStartMs = now;
      this.#inWindow = 0;
    }
    if (this.#inWindow >= GUEST_BURST) {
      this.#suppressed++;
      return;
    }
    this.#inWindow++;
    const more = this.#suppressed > 0 ? ` (${this.#suppressed} similar lines left out)` : '';
    this.#suppressed = 0;
    this.#write('info', `guest: ${text()}${more}`);
  }

  #write(level: LogLevelName, text: string): void {
    const rank = LogLevel[level];
    for (const sink of this.#sinks) {
      if (rank <= sink.maxLevel) sink.write(level, this.#scope === '' ? text : `${this.#scope}: ${text}`);
    }
  }
}

/** A log that goes nowhere, for tests and defaults. */
export const silentLog = new Log();
