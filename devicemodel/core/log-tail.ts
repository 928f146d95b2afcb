/** The newest lines of a log, for those who come later. */
import { LogLevel, type LogLevelName, type LogSink, printable } from './log.ts';

export interface LogLine {
  /** From 1 up, without gaps. */
  readonly seq: number;
  /** Milliseconds since 1970. */
  readonly timeMs: number;
  readonly level: LogLevelName;
  readonly message: string;
}

const KEPT_LINES = 256;
const MAX_LINE_CHARS = 1000;

export class LogTail implements LogSink {
  maxLevel: number = LogLevel.info;
  readonly #lines: LogLine[] = [];
  readonly #listeners = new Set<(line: LogLine) => void>();
  #seq = 0;

  write(level: LogLevelName, message: string): void {
    const line = { seq: ++this.#seq, timeMs: Date.now(), level, message: printable(message, MAX_LINE_CHARS) };
    this.#lines.push(line);
    if (this.#lines.length > KEPT_LINES) this.#lines.shift();
    for (const listener of this.#listeners) listener(line);
  }

  get lines(): readonly LogLine[] {
    return this.#lines;
  }

  /** @param listener must not write to the log. @returns how to stop. */
  listen(listener: (line: LogLine) => void): () => void {
    this.#listeners.add(listener);
    return () => void this.#listeners.delete(listener);
  }
}
