/** A line on the terminal about what takes long, while it does; gone when it is over. Where there is no terminal: nothing. */
import { writeSync } from 'node:fs';
import { isTerminal } from './terminal-state.ts';
import { formatSize } from './units.ts';

const STANDARD_ERROR = 2;
/** What is over by then was not worth a line. */
const PATIENCE_MS = 500;
const BETWEEN_MS = 100;
const CLEAR_LINE = '\r\x1b[K';

export interface ProgressTerminal {
  readonly nowMs: () => number;
  readonly write: (text: string) => void;
}

function terminalOfProcess(): ProgressTerminal | undefined {
  if (!isTerminal(STANDARD_ERROR)) return undefined;
  return {
    nowMs: () => performance.now(),
    write: (text) => {
      try {
        writeSync(STANDARD_ERROR, text);
      } catch {
        // A terminal that takes nothing now is no reason to stop.
      }
    },
  };
}

export class Progress {
  readonly #what: string;
  readonly #totalBytes: number;
  readonly #terminal: ProgressTerminal | undefined;
  #nextMs: number;
  #isShown = false;

  /** @param what `huge pages`. @param terminal that of the process unless a test has its own. */
  constructor(what: string, totalBytes: number, terminal = terminalOfProcess()) {
    this.#what = what;
    this.#totalBytes = totalBytes;
    this.#terminal = terminal;
    this.#nextMs = (terminal?.nowMs() ?? 0) + PATIENCE_MS;
  }

  at(doneBytes: number): void {
    const terminal = this.#terminal;
    if (terminal === undefined || terminal.nowMs() < this.#nextMs) return;
    this.#nextMs = terminal.nowMs() + BETWEEN_MS;
    this.#isShown = true;
    const percent = Math.floor((100 * doneBytes) / this.#totalBytes);
    terminal.write(`${CLEAR_LINE}acrn-dm: ${this.#what}: ${percent} % of ${formatSize(this.#totalBytes)}`);
  }

  /** Before anything else is written. */
  end(): void {
    if (this.#isShown) this.#terminal?.write(CLEAR_LINE);
    this.#isShown = false;
  }
}
