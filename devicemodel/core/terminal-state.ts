/** What those who write to a terminal ask about it. Kept apart from host/tty.ts, which needs the FFI library. */
import { fstatSync } from 'node:fs';
import { isatty } from 'node:tty';

let rawUsers = 0;

/**
 * Whether the user's terminal is in raw mode now. Raw mode switches off the terminal's newline translation, so that
 * everything else that writes to it (log lines) has to send a carriage return of its own.
 */
export function isTerminalRaw(): boolean {
  return rawUsers > 0;
}

/** For host/tty.ts alone. */
export function countRawTerminal(delta: 1 | -1): void {
  rawUsers = Math.max(0, rawUsers + delta);
}

/** Major number of /dev/null and its like. */
const MEMORY_DEVICES = 1;

/** As isatty of node:tty, which takes 3 ms to load: it is only asked about what can be a terminal. */
export function isTerminal(fd: number): boolean {
  try {
    const stat = fstatSync(fd);
    return stat.isCharacterDevice() && stat.rdev >>> 8 !== MEMORY_DEVICES && isatty(fd);
  } catch {
    return false; // not open
  }
}
