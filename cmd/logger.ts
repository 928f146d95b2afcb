/** `--logger_setting`: the sinks of the program's log. */
import fs from 'node:fs';
import type { LoggerConfig } from '../devicemodel/core/config.ts';
import { Log, LogLevel, type LogLevelName, type LogSink } from '../devicemodel/core/log.ts';
import { MiB } from '../devicemodel/core/units.ts';
import { oneLine } from './report.ts';

/** What the console shows without --logger_setting. [DEFAULT_LOG_LEVEL] */
const DEFAULT_CONSOLE_LEVEL = LogLevel.info;

/** Log files live here, as the C program has them: VM_log_N. */
const LOG_DIRECTORY = '/var/log/acrn-dm';
const LOG_FILE_BYTES = 2 * MiB;
const LOG_FILE_COUNT = 8;
/** File numbers are 16 bits wide and wrap. */
const LOG_NUMBER_MASK = 0xffff;

export interface LogSettings {
  readonly vmName: string;
  readonly settings: readonly LoggerConfig[];
  /** Everything to the console. */
  readonly debug: boolean;
}

/**
 * The log of one VM. Nothing is opened before the first line of a sink; a sink that fails is given up with one line
 * on the console, and the VM runs on.
 */
export function createLog(options: LogSettings): Log {
  const levelOf = (sink: LoggerConfig['sink']) => options.settings.find((s) => s.sink === sink)?.level;
  const consoleLevel = options.debug ? LogLevel.debug : (levelOf('console') ?? DEFAULT_CONSOLE_LEVEL);
  const console = new ConsoleSink(consoleLevel);
  const sinks: LogSink[] = [console];
  const kmsgLevel = levelOf('kmsg');
  if (kmsgLevel !== undefined) sinks.push(new KmsgSink(kmsgLevel, console));
  const diskLevel = levelOf('disk');
  if (diskLevel !== undefined) sinks.push(new DiskSink(diskLevel, options.vmName, console));
  return new Log(sinks);
}

const prefixes: Readonly<Record<LogLevelName, string>> = {
  error: 'error: ',
  warn: 'warning: ',
  notice: '',
  info: '',
  debug: 'debug: ',
};

/**
 * Lines to standard error.
 * Compat: C logs to standard output, in between what the guest writes to a console on stdio.
 */
export class ConsoleSink implements LogSink {
  readonly maxLevel: number;
  readonly #fd: number;
  /** In raw mode a line feed alone does not return the carriage. */
  readonly #lineEnd: string;

  constructor(maxLevel: number, fd = 2, isTerminal = process.stderr.isTTY === true) {
    this.maxLevel = maxLevel;
    this.#fd = fd;
    this.#lineEnd = isTerminal ? '\r\n' : '\n';
  }

  write(level: LogLevelName, line: string): void {
    writeAll(this.#fd, `acrn-dm: ${prefixes[level]}${oneLine(line)}${this.#lineEnd}`);
  }
}

/** Lines to the kernel's log. */
class KmsgSink implements LogSink {
  readonly maxLevel: number;
  readonly #fallback: ConsoleSink;
  #fd: number | undefined;
  #failed = false;

  constructor(maxLevel: number, fallback: ConsoleSink) {
    this.maxLevel = maxLevel;
    this.#fallback = fallback;
  }

  write(_level: LogLevelName, line: string): void {
    if (this.#failed) return;
    try {
      this.#fd ??= fs.openSync('/dev/kmsg', fs.constants.O_WRONLY | fs.constants.O_NONBLOCK);
      fs.writeSync(this.#fd, `acrn_dm: ${oneLine(line)}\n`);
    } catch (error) {
      // A full ring is no reason to give up.
      if ((error as NodeJS.ErrnoException).code === 'EAGAIN') return;
      this.#failed = true;
      this.#fallback.write('warn', `kmsg log given up: ${(error as Error).message}`);
    }
  }
}

/** Lines to numbered files of 2 MiB each, the last eight of them kept. */
export class DiskSink implements LogSink {
  readonly maxLevel: number;
  readonly #fallback: ConsoleSink;
  readonly #directory: string;
  readonly #prefix: string;
  #fd: number | undefined;
  #number = 0;
  #sizeBytes = 0;
  #failed = false;

  constructor(maxLevel: number, vmName: string, fallback: ConsoleSink, directory = LOG_DIRECTORY) {
    this.maxLevel = maxLevel;
    this.#fallback = fallback;
    this.#directory = directory;
    // A name is one file name, whatever is in it.
    this.#prefix = `${vmName.replaceAll('/', '_')}_log_`;
  }

  write(level: LogLevelName, line: string): void {
    if (this.#failed) return;
    try {
      const fd = (this.#fd ??= this.#open());
      const bytes = Buffer.from(`[${timestamp()}] ${prefixes[level]}${oneLine(line)}\n`);
      if (this.#sizeBytes + bytes.length > LOG_FILE_BYTES) {
        fs.closeSync(fd);
        this.#fd = undefined;
        this.#fd = this.#openNext();
      }
      fs.writeSync(this.#fd as number, bytes);
      this.#sizeBytes += bytes.length;
    } catch (error) {
      this.#failed = true;
      this.#fallback.write('warn', `disk log given up: ${(error as Error).message}`);
    }
  }

  /** Go on in the newest file. */
  #open(): number {
    fs.mkdirSync(this.#directory, { recursive: true });
    let newest: number | undefined;
    for (const name of fs.readdirSync(this.#directory)) {
      if (!name.startsWith(this.#prefix)) continue;
      const digits = name.slice(this.#prefix.length);
      if (!/^\d{1,5}$/.test(digits)) continue;
      const number = Number(digits) & LOG_NUMBER_MASK;
      // Serial number arithmetic: half the numbers are ahead of any number.
      const isNewer = newest === undefined || ((number - newest) & LOG_NUMBER_MASK) < 0x8000;
      if (isNewer) newest = number;
    }
    this.#number = newest ?? 0;
    const fd = fs.openSync(this.#path(this.#number), 'a', 0o644);
    this.#sizeBytes = fs.fstatSync(fd).size;
    if (this.#sizeBytes > 0) {
      const bytes = Buffer.from('\n--- new VM instance ---\n\n');
      fs.writeSync(fd, bytes);
      this.#sizeBytes += bytes.length;
    }
    return fd;
  }

  #openNext(): number {
    this.#number = (this.#number + 1) & LOG_NUMBER_MASK;
    fs.rmSync(this.#path((this.#number - LOG_FILE_COUNT) & LOG_NUMBER_MASK), { force: true });
    this.#sizeBytes = 0;
    return fs.openSync(this.#path(this.#number), 'w', 0o644);
  }

  #path(number: number): string {
    return `${this.#directory}/${this.#prefix}${number}`;
  }
}

/** `2026-11-23 08:07:31.123`, local time. */
function timestamp(): string {
  const now = new Date();
  const local = new Date(now.getTime() - now.getTimezoneOffset() * 60_000);
  return local.toISOString().slice(0, 23).replace('T', ' ');
}

/** A log line must never throw and never wait: what a full pipe does not take is dropped. */
function writeAll(fd: number, text: string): void {
  try {
    fs.writeSync(fd, text);
  } catch {
    // EAGAIN, EPIPE, EBADF: there is nobody to tell.
  }
}
