/**
 * Where log lines go: the console, /dev/kmsg, files with rotation (`--logger_setting`). Every write is synchronous, so
 * that the last words before a crash are there, and nothing here ever throws: a log that fails must not stop a VM.
 *
 * Compat: the console is stderr (the C device model prints to stdout, in between the guest's own output).
 */
import { closeSync, constants, fstatSync, mkdirSync, openSync, readdirSync, rmSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { hrtime } from 'node:process';
import type { LoggerConfig } from './config.ts';
import { describeErrno } from './host/errno.ts';
import { errnoOf } from './host/path-failure.ts';
import { LogLevel, type LogLevelName, type LogSink, MAX_LINE_CHARS, printable } from './log.ts';
import { isTerminal, isTerminalRaw } from './terminal-state.ts';

const { O_WRONLY, O_CREAT, O_APPEND, O_TRUNC, O_NONBLOCK } = constants;

/** Level of the console where `--logger_setting` does not name it [DEFAULT_LOG_LEVEL]. */
const DEFAULT_CONSOLE_LEVEL = LogLevel.info;
/** What a guest prints is not for everybody. */
const LOG_FILE_MODE = 0o640;
const DISK_DIRECTORY = '/var/log/acrn-dm';
/** One file is full at this size [LOG_SIZE_LIMIT]. */
const DISK_FILE_BYTES = 2 * 1024 * 1024;
/** Files kept [LOG_FILES_COUNT]. */
const DISK_FILES = 8;
/** File numbers are 16 bits and wrap [cur_file_index]. */
const INDEX_MASK = 0xffff;
const NEW_INSTANCE = '\n\n----------------new vm instance------------------\n\n';
/** The kernel refuses longer records (LOG_LINE_MAX, kernel/printk). */
const KMSG_TEXT_BYTES = 900;

export interface ClosableSink extends LogSink {
  close(): void;
}

export interface SinkOptions {
  /** Told once when kmsg or disk is given up; default: a line on the console. */
  readonly onFailure?: (text: string) => void;
  /** Default 2, stderr. */
  readonly consoleFd?: number;
  readonly kmsgPath?: string;
  readonly diskDirectory?: string;
  /** `json`: console and disk get one object a line. Default `text`. */
  readonly format?: 'text' | 'json' | undefined;
  /** Whether the terminal needs carriage returns; default: what the terminal code says. */
  readonly isRaw?: () => boolean;
}

/** Write all of it. A descriptor somebody made non-blocking gets a few tries. @returns false when it cannot be written. */
function writeAll(fd: number, bytes: Uint8Array): boolean {
  let tries = 0;
  for (let at = 0; at < bytes.length; ) {
    try {
      at += writeSync(fd, bytes, at);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EAGAIN' || ++tries > 100) return false;
    }
  }
  return true;
}

/** For programs that read logs: `{"time", "level", "message"}` on one line. */
function jsonLine(level: LogLevelName, line: string): string {
  const message = line.length > MAX_LINE_CHARS ? `${line.slice(0, MAX_LINE_CHARS)}…` : line;
  return `${JSON.stringify({ time: new Date().toISOString(), level, message })}\n`;
}

const LEVEL_PREFIX: Readonly<Record<LogLevelName, string>> = {
  error: 'error: ',
  warn: 'warning: ',
  notice: '',
  info: '',
  debug: 'debug: ',
};

/** Lines on stderr, `acrn-dm: ` before each; with carriage returns while the terminal is raw. */
export class ConsoleSink implements ClosableSink {
  readonly name = 'console';
  maxLevel: number;
  readonly #fd: number;
  readonly #needsReturn: () => boolean;
  readonly #isJson: boolean;

  constructor(level: number, options: SinkOptions = {}) {
    this.maxLevel = level;
    this.#fd = options.consoleFd ?? 2;
    this.#isJson = options.format === 'json';
    const isRaw = options.isRaw ?? isTerminalRaw;
    // In this order: most terminals are never raw, and then nobody has to ask whether it is one.
    this.#needsReturn = () => isRaw() && isTerminal(this.#fd);
  }

  write(level: LogLevelName, line: string): void {
    if (this.#isJson) {
      writeAll(this.#fd, Buffer.from(jsonLine(level, line)));
      return;
    }
    const [before, after] = this.#needsReturn() ? ['\r', '\r\n'] : ['', '\n'];
    const text = printable(line).replaceAll('\n', `${after}  `);
    writeAll(this.#fd, Buffer.from(`${before}acrn-dm: ${LEVEL_PREFIX[level]}${text}${after}`));
  }

  close(): void {}
}

/** Records in the kernel's log, `acrn_dm: ` before each. Opened at the first line. */
export class KmsgSink implements ClosableSink {
  readonly name = 'kmsg';
  maxLevel: number;
  readonly #path: string;
  readonly #onFailure: ((text: string) => void) | undefined;
  #fd: number | undefined;
  #isOff = false;

  constructor(level: number, options: SinkOptions = {}) {
    this.maxLevel = level;
    this.#path = options.kmsgPath ?? '/dev/kmsg';
    this.#onFailure = options.onFailure;
  }

  write(_level: LogLevelName, line: string): void {
    if (this.#isOff) return;
    try {
      this.#fd ??= openSync(this.#path, O_WRONLY | O_APPEND | O_NONBLOCK);
    } catch (error) {
      this.#isOff = true;
      this.#onFailure?.(`kmsg log given up: ${this.#path}: ${describeErrno(errnoOf(error))}`);
      return;
    }
    for (const part of printable(line).split('\n')) {
      // One write is one record. Nothing to do about a full kernel buffer.
      writeAll(this.#fd, Buffer.concat([Buffer.from('acrn_dm: '), cut(part, KMSG_TEXT_BYTES), Buffer.from('\n')]));
    }
  }

  close(): void {
    closeQuietly(this.#fd);
    this.#fd = undefined;
  }
}

function closeQuietly(fd: number | undefined): void {
  try {
    if (fd !== undefined) closeSync(fd);
  } catch {
    // Nothing more to be done.
  }
}

function cut(text: string, maxBytes: number): Uint8Array {
  return Buffer.from(text).subarray(0, maxBytes);
}

const two = (n: number) => String(n).padStart(2, '0');

/** `[2024-02-29 12:34:56][ 1234.567890] `: local time, and seconds since the host started. */
function timestamp(): string {
  const now = new Date();
  const date = `${now.getFullYear()}-${two(now.getMonth() + 1)}-${two(now.getDate())}`;
  const time = `${two(now.getHours())}:${two(now.getMinutes())}:${two(now.getSeconds())}`;
  const micros = hrtime.bigint() / 1000n;
  const seconds = String(micros / 1_000_000n).padStart(5);
  return `[${date} ${time}][${seconds}.${String(micros % 1_000_000n).padStart(6, '0')}] `;
}

/** `<vm>_log_N` files of 2 MiB, the last 8 of them; a new run continues the newest. Opened at the first line. */
export class DiskSink implements ClosableSink {
  readonly name = 'disk';
  maxLevel: number;
  readonly #directory: string;
  readonly #prefix: string;
  readonly #onFailure: ((text: string) => void) | undefined;
  readonly #isJson: boolean;
  #fd: number | undefined;
  #index = 0;
  #sizeBytes = 0;
  #isOff = false;

  constructor(level: number, vmName: string, options: SinkOptions = {}) {
    this.maxLevel = level;
    this.#directory = options.diskDirectory ?? DISK_DIRECTORY;
    this.#isJson = options.format === 'json';
    this.#prefix = `${vmName.replaceAll('/', '_')}_log_`;
    this.#onFailure = options.onFailure;
  }

  write(level: LogLevelName, line: string): void {
    if (this.#isOff) return;
    try {
      const fd = this.#fd ?? this.#openNewest();
      this.#append(fd, this.#isJson ? jsonLine(level, line) : `${timestamp()}${printable(line)}\n`);
      if (this.#sizeBytes > DISK_FILE_BYTES) this.#rotate(fd);
    } catch (error) {
      // No directory, no space: this sink is done, the VM is not.
      this.#isOff = true;
      this.close();
      this.#onFailure?.(`disk log given up: ${this.#directory}: ${describeErrno(errnoOf(error))}`);
    }
  }

  close(): void {
    closeQuietly(this.#fd);
    this.#fd = undefined;
  }

  #path(index: number): string {
    return join(this.#directory, `${this.#prefix}${index & INDEX_MASK}`);
  }

  #openNewest(): number {
    mkdirSync(this.#directory, { recursive: true });
    const indexes = readdirSync(this.#directory)
      .filter((name) => name.startsWith(this.#prefix) && /^\d+$/.test(name.slice(this.#prefix.length)))
      .map((name) => Number(name.slice(this.#prefix.length)) & INDEX_MASK);
    // "Newer" in 16-bit arithmetic: file 0 follows file 65535.
    const isNewer = (a: number, b: number) => ((a - b) & INDEX_MASK) < 0x8000;
    this.#index = indexes.reduce((newest, index) => (isNewer(index, newest) ? index : newest), indexes[0] ?? 0);
    const fd = openSync(this.#path(this.#index), O_WRONLY | O_CREAT | O_APPEND, LOG_FILE_MODE);
    this.#fd = fd;
    this.#sizeBytes = fstatSync(fd).size;
    this.#append(fd, NEW_INSTANCE);
    return fd;
  }

  #append(fd: number, text: string): void {
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; ) at += writeSync(fd, bytes, at);
    this.#sizeBytes += bytes.length;
  }

  #rotate(fd: number): void {
    this.#fd = undefined;
    closeSync(fd);
    this.#index = (this.#index + 1) & INDEX_MASK;
    rmSync(this.#path(this.#index - DISK_FILES), { force: true });
    this.#fd = openSync(this.#path(this.#index), O_WRONLY | O_CREAT | O_APPEND | O_TRUNC, LOG_FILE_MODE);
    this.#sizeBytes = 0;
  }
}

/**
 * The sinks of `--logger_setting`. The console is always there, at level 4 where it is not named, as in the C device
 * model. Nothing is opened before the first line of a sink; one that fails is given up, with a line on the console.
 */
export function createSinks(
  loggers: readonly LoggerConfig[],
  vmName: string,
  options: SinkOptions = {},
): ClosableSink[] {
  // The same logger named twice: the last one counts.
  const levels = new Map<LoggerConfig['sink'], number>();
  for (const { sink, level } of loggers) levels.set(sink, level);
  const console = new ConsoleSink(levels.get('console') ?? DEFAULT_CONSOLE_LEVEL, options);
  const others = { onFailure: (text: string) => console.write('warn', text), ...options };
  const sinks: ClosableSink[] = [console];
  const kmsgLevel = levels.get('kmsg');
  if (kmsgLevel !== undefined) sinks.push(new KmsgSink(kmsgLevel, others));
  const diskLevel = levels.get('disk');
  if (diskLevel !== undefined) sinks.push(new DiskSink(diskLevel, vmName, others));
  return sinks;
}
