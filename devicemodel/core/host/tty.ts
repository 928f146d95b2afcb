/**
 * Terminals: raw mode that is undone however the process ends, and pseudo terminals. Termios is handled by the C
 * library's own functions; here it is 60 opaque bytes (<bits/termios-struct.h>, x86-64 glibc) but for two flags.
 */
import { HostError } from '../errors.ts';
import { countRawTerminal } from '../terminal-state.ts';
import { Errno } from './errno.ts';
import { onProcessEnd } from './exit-hooks.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { hostCall, must, native } from './libc.ts';
import { guardTerminal } from './terminal-guard.ts';

const TERMIOS_BYTES = 60;
/** Offsets of c_oflag and c_cflag. */
const C_OFLAG = 4;
const C_CFLAG = 8;
const OPOST = 0o1;
const CLOCAL = 0o4000;
const TCSANOW = 0;
const TCIFLUSH = 0;

export type Termios = Uint8Array;

const isatty = hostCall<[fd: number]>('int isatty(int)');
const tcgetattr = hostCall<[fd: number, termios: Termios]>('int tcgetattr(int, void *)');
const tcsetattr = hostCall<[fd: number, when: number, termios: Termios]>('int tcsetattr(int, int, const void *)');
const tcgetpgrp = hostCall<[fd: number]>('int tcgetpgrp(int)');
const grantpt = hostCall<[fd: number]>('int grantpt(int)');
const unlockpt = hostCall<[fd: number]>('int unlockpt(int)');

/** As that of terminal-state.ts, which loads node:tty for it (6 ms): whoever is here has the FFI library anyway. */
export function isTerminal(fd: number): boolean {
  return isatty(fd) === 1;
}

/** @throws HostError, ENOTTY when it is no terminal. */
export function getTermios(fd: number, what: string): Termios {
  const termios = new Uint8Array(TERMIOS_BYTES);
  must(tcgetattr(fd, termios), 'tcgetattr', what);
  return termios;
}

/** Takes effect at once, output that is under way included. @throws HostError */
export function setTermios(fd: number, termios: Termios, what: string): void {
  must(tcsetattr(fd, TCSANOW, termios), 'tcsetattr', what);
}

export interface RawModeOptions {
  /** Leave the terminal's newline translation on: for guests that do not send carriage returns (hvc consoles). */
  readonly translateOutput?: boolean;
  /** The user's own terminal: have it restored even when this process is killed. */
  readonly guarded?: boolean;
}

/** The same settings in raw mode, carrier ignored. */
export function rawTermios(termios: Termios, options: RawModeOptions = {}): Termios {
  const raw = termios.slice();
  native('void cfmakeraw(void *)')(raw);
  const view = new DataView(raw.buffer);
  view.setUint32(C_CFLAG, view.getUint32(C_CFLAG, true) | CLOCAL, true);
  if (options.translateOutput === true) view.setUint32(C_OFLAG, view.getUint32(C_OFLAG, true) | OPOST, true);
  return raw;
}

/**
 * Whether this process may change and read its terminal now. A background job that tries is stopped by the kernel
 * (SIGTTOU, SIGTTIN). A terminal that is not our controlling one has no such rule.
 */
function isForeground(fd: number): boolean {
  const group = tcgetpgrp(fd);
  return group < 0 || group === native('int getpgrp()')();
}

/**
 * One terminal, in raw mode from `enter` to `leave`. Left on process exit, uncaught exceptions and fatal signals too
 * (exit-hooks.ts), by a guard when even those do not run (terminal-guard.ts); entered again after the user stopped and
 * continued the process.
 */
export class RawTerminal {
  readonly #fd: number;
  readonly #what: string;
  readonly #options: RawModeOptions;
  #saved: Termios | undefined;
  #removeHook: (() => void) | undefined;
  #dismissGuard: (() => void) | undefined;
  /** Told when a process that started in the background got its terminal. */
  onForeground: (() => void) | undefined;
  readonly #onContinue = () => {
    if (!isForeground(this.#fd)) return;
    this.#apply();
    this.onForeground?.();
  };

  /** @param fd stays the caller's, and open until `leave`. */
  constructor(fd: number, what: string, options: RawModeOptions = {}) {
    this.#fd = fd;
    this.#what = what;
    this.#options = options;
  }

  /**
   * @returns false when the process is in the background: nothing was changed, `onForeground` tells when it was.
   * @throws HostError
   */
  enter(): boolean {
    if (this.#removeHook !== undefined) return this.#saved !== undefined;
    this.#removeHook = onProcessEnd(() => this.#restore());
    process.on('SIGCONT', this.#onContinue);
    if (!isForeground(this.#fd)) return false;
    this.#apply();
    return true;
  }

  leave(): void {
    process.removeListener('SIGCONT', this.#onContinue);
    this.#restore();
    this.#removeHook?.();
    this.#removeHook = undefined;
  }

  #apply(): void {
    if (this.#saved === undefined) {
      this.#saved = getTermios(this.#fd, this.#what);
      countRawTerminal(1);
      // What was typed before the console was there belongs to nobody; the C device model throws it away too.
      native('int tcflush(int, int)')(this.#fd, TCIFLUSH);
    }
    setTermios(this.#fd, rawTermios(this.#saved, this.#options), this.#what);
    if (this.#options.guarded !== true) return;
    this.#dismissGuard ??= guardTerminal(this.#fd, this.#saved, getTermios(this.#fd, this.#what));
  }

  #restore(): void {
    const saved = this.#saved;
    if (saved === undefined) return;
    this.#saved = undefined;
    countRawTerminal(-1);
    // A terminal that was hung up cannot be restored, and need not be.
    tcsetattr(this.#fd, TCSANOW, saved);
    this.#dismissGuard?.();
    this.#dismissGuard = undefined;
  }
}

export interface PtyPair {
  /** Non-blocking. */
  readonly masterFd: number;
  /** Kept open so that the master neither fails nor spins while nobody else has the slave open. */
  readonly slaveFd: number;
  /** `/dev/pts/N` */
  readonly slavePath: string;
}

/** Allocate a pseudo terminal with its slave in raw mode. Both descriptors are the caller's. @throws HostError */
export function openPty(): PtyPair {
  const masterFd = openFile(
    '/dev/ptmx',
    OpenFlag.ReadWrite | OpenFlag.NoCtty | OpenFlag.NonBlock | OpenFlag.CloseOnExec,
  );
  try {
    const name = new Uint8Array(64);
    must(grantpt(masterFd), 'grantpt', 'pty');
    must(unlockpt(masterFd), 'unlockpt', 'pty');
    // The answer is an errno.
    must(-native('int ptsname_r(int, void *, size_t)')(masterFd, name, name.length), 'ptsname_r', 'pty');
    const slavePath = new TextDecoder().decode(name.subarray(0, name.indexOf(0)));
    const slaveFd = openFile(slavePath, OpenFlag.ReadWrite | OpenFlag.NoCtty | OpenFlag.CloseOnExec);
    try {
      setTermios(slaveFd, rawTermios(getTermios(slaveFd, slavePath)), slavePath);
    } catch (error) {
      closeFd(slaveFd);
      throw error;
    }
    return { masterFd, slaveFd, slavePath };
  } catch (error) {
    closeFd(masterFd);
    throw error;
  }
}

/**
 * Open a terminal device for both directions, non-blocking, not as controlling terminal.
 * @throws HostError; ENOTTY when the path is something else.
 */
export function openTty(path: string): number {
  const fd = openFile(path, OpenFlag.ReadWrite | OpenFlag.NoCtty | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
  if (isTerminal(fd)) return fd;
  closeFd(fd);
  throw new HostError(`${path}: not a terminal`, Errno.ENOTTY);
}
