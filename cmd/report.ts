/** What a user sees: what was asked for, or an error as lines and the status the process ends with. */
import { writeSync } from 'node:fs';
import { BugError, DmError, ExitCode, isSystemError } from '../devicemodel/core/errors.ts';
import { isTerminal } from '../devicemodel/core/terminal-state.ts';
import { withSourcePlaces } from './source-places.ts';

/** Lines of `cause:` that are worth reading. */
const MAX_CAUSES = 4;
/** Longest line; what a user typed is repeated in it and may be kilobytes. */
const MAX_LINE_CHARS = 600;
/** A word longer than this is shown by its two ends. */
const MAX_WORD_CHARS = 256;
/** Blanks that look like one and are none: no-break, en, em, thin, zero width, narrow, ideographic, byte order mark. */
const UNUSUAL_BLANK = /[\u00a0\u2000-\u200b\u202f\u205f\u3000\ufeff]/u;

export interface ReportOptions {
  /** Add stacks. */
  readonly debug?: boolean;
}

/**
 * One line for the error, one for each cause that says something new, one with the hint. Without line ends.
 * A stack is shown with `debug` only.
 */
export function errorLines(error: unknown, options: ReportOptions = {}): string[] {
  const lines: string[] = [];
  const isOurs = isForeseen(error);
  const first = messageOf(error);
  lines.push(isOurs ? `acrn-dm: ${first}` : `acrn-dm: internal error: ${first}`);
  let said = first;
  for (const cause of causesOf(error)) {
    const message = messageOf(cause);
    if (said.includes(message) || isErrnoSaid(cause, said)) continue;
    lines.push(`cause: ${message}`);
    said += message;
  }
  const hint =
    unusualBlankHint(first) ??
    hintOf(error) ??
    limitHint(lines.join(' ')) ??
    (isOurs ? undefined : 'please report this; --debug shows where it happened');
  if (hint !== undefined) lines.push(`hint: ${hint}`);
  const shown = lines.map(oneLine);
  if (options.debug === true) shown.push(...stackLines(error));
  return shown;
}

/** sysexits status of an error; anything that is not ours is a bug of ours. */
export function exitCodeOf(error: unknown): ExitCode {
  if (error instanceof DmError) return error.exitCode;
  if (error instanceof AggregateError) {
    const first = error.errors.find((e) => e instanceof DmError) as DmError | undefined;
    if (first !== undefined) return first.exitCode;
    return isForeseen(error) ? ExitCode.OsError : ExitCode.Software;
  }
  return isSystemError(error) ? ExitCode.OsError : ExitCode.Software;
}

/** No bug of ours: of several errors, if none of them is. */
function isForeseen(error: unknown): boolean {
  if (error instanceof AggregateError) return error.errors.length > 0 && error.errors.every(isForeseen);
  return (error instanceof DmError && !(error instanceof BugError)) || isSystemError(error);
}

/** Where lines are written. */
export interface LineSink {
  readonly isTerminal: boolean;
  write(text: string): void;
}

/** How often a full pipe is waited for, and how long. */
const FULL_PIPE_TRIES = 1000;
const FULL_PIPE_WAIT_MS = 5;

/**
 * A descriptor, written synchronously: the process may end right after. Node's own streams do the same but take longer
 * to make than a command line to parse.
 */
export function fdSink(fd: number): LineSink {
  return {
    get isTerminal() {
      return isTerminal(fd);
    },
    write: (text) => {
      const bytes = Buffer.from(text);
      for (let at = 0, tries = 0; at < bytes.length; ) {
        try {
          at += writeSync(fd, bytes, at);
        } catch (error) {
          // Somebody made the pipe or terminal non-blocking, and its reader is slow.
          if ((error as NodeJS.ErrnoException).code !== 'EAGAIN' || ++tries > FULL_PIPE_TRIES) throw error;
          Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, FULL_PIPE_WAIT_MS);
        }
      }
    },
  };
}

/**
 * Write whole lines. @returns whether they could be written. A guest's console may have put the terminal in raw mode, where a line feed alone does not return
 * the carriage; a carriage return too many does no harm.
 */
export function writeLines(sink: LineSink, lines: readonly string[]): boolean {
  if (lines.length === 0) return true;
  try {
    const end = sink.isTerminal ? '\r\n' : '\n';
    sink.write(lines.join(end) + end);
    return true;
  } catch {
    return false;
  }
}

/** What was asked for goes to standard output; who does not get it must not take the status for a yes. */
export function print(lines: readonly string[]): ExitCode {
  if (writeLines(fdSink(1), lines)) return ExitCode.Ok;
  writeLines(fdSink(2), ['acrn-dm: standard output cannot be written (full, or closed by its reader)']);
  return ExitCode.IoError;
}

function messageOf(error: unknown): string {
  if (error instanceof AggregateError) {
    const parts = error.errors.slice(0, MAX_CAUSES).map(messageOf);
    return [error.message, ...parts].filter((part) => part !== '').join('; ');
  }
  if (error instanceof Error) return error.message === '' ? error.name : error.message;
  try {
    return String(error);
  } catch {
    return 'something that cannot be shown was thrown';
  }
}

function* causesOf(error: unknown): Generator<unknown> {
  let current = error;
  for (let depth = 0; depth < MAX_CAUSES; depth++) {
    if (!(current instanceof Error) || current.cause === undefined) return;
    current = current.cause;
    yield current;
  }
}

/** Node's `ENOENT: no such file or directory, open 'x'`, when code and path stand in the message already. */
function isErrnoSaid(cause: unknown, said: string): boolean {
  const { code, path } = (cause ?? {}) as { code?: unknown; path?: unknown };
  // `file/` is said as `file`.
  const isPathSaid = typeof path !== 'string' || said.includes(path.replace(/\/+$/, ''));
  return typeof code === 'string' && said.includes(code) && isPathSaid;
}

/** The outermost hint: the nearer to what the user did, the better it fits. */
function hintOf(error: unknown): string | undefined {
  for (const candidate of [error, ...causesOf(error)]) {
    if (candidate instanceof DmError && candidate.hint !== undefined) return candidate.hint;
  }
  return undefined;
}

/** Options copied from a web page: the reader cannot see what is wrong with them. */
function unusualBlankHint(message: string): string | undefined {
  const found = UNUSUAL_BLANK.exec(message)?.[0];
  if (found === undefined) return undefined;
  const code = (found.codePointAt(0) as number).toString(16).toUpperCase().padStart(4, '0');
  const name = code === '00A0' ? 'a non-breaking space' : 'an unusual blank';
  return `there is ${name} (U+${code}) in it, as text copied from a web page has: type a plain one`;
}

/** Limits that a call at any place of the program may run into, by the errno in what is said. */
function limitHint(message: string): string | undefined {
  const [, limit] = /\b(EMFILE|ENFILE)\b/.exec(message) ?? [];
  if (limit === undefined) return undefined;
  return limit === 'EMFILE'
    ? '`ulimit -n` says how many descriptors a process may have; a VM needs some 30, and more for its devices'
    : 'the whole host has no more open files to give: sysctl fs.file-nr, fs.file-max';
}

function stackLines(error: unknown): string[] {
  const lines: string[] = [];
  for (const candidate of [error, ...causesOf(error)]) {
    if (candidate instanceof Error && candidate.stack !== undefined) {
      lines.push(...withSourcePlaces(candidate.stack).split('\n'));
    }
  }
  return lines;
}

/** Text from outside must not break out of its line or steer the terminal. */
const LONG_WORD = new RegExp(`\\S{${MAX_WORD_CHARS},}`, 'g');

export function oneLine(text: string): string {
  const clean = text
    .replace(/\s*[\r\n]+\s*/g, ' ')
    .replace(/\p{Cc}/gu, '?')
    .replace(LONG_WORD, (word) => `${word.slice(0, 60)}...${word.slice(-20)}`);
  return clean.length <= MAX_LINE_CHARS ? clean : `${clean.slice(0, MAX_LINE_CHARS - 3)}...`;
}
