/**
 * Errors by who must act: the user (ConfigError), the administrator (HostError, HsmError), or us (BugError).
 * What the guest does wrong is never thrown through the request loop.
 */
import { constants } from 'node:os';

const { EMFILE, ENFILE } = constants.errno;

/** Process exit codes, after sysexits.h; listed in docs/exit-codes.md. */
export const ExitCode = {
  Ok: 0,
  /** Anything that goes wrong once the hypervisor was asked for a VM: what the C device model ends with. */
  VmFailed: 1,
  /** The guest shut down by a triple fault. */
  TripleFault: 3,
  Usage: 64,
  DataError: 65,
  NoInput: 66,
  Unavailable: 69,
  Software: 70,
  OsError: 71,
  CannotCreate: 73,
  IoError: 74,
  NoPermission: 77,
  Config: 78,
} as const;
export type ExitCode = (typeof ExitCode)[keyof typeof ExitCode];

export interface DmErrorOptions extends ErrorOptions {
  /** What the reader should do next; printed on a line of its own. */
  readonly hint?: string;
  readonly exitCode?: ExitCode;
}

export class DmError extends Error {
  /** Written out: `constructor.name` is not what it was in the minified program. */
  override readonly name: string = 'DmError';
  readonly hint: string | undefined;
  /** Not final: what fails after a VM was asked for ends with {@link ExitCode.VmFailed}, whatever it was. */
  exitCode: ExitCode;
  constructor(message: string, options: DmErrorOptions = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause });
    this.hint = options.hint;
    this.exitCode = options.exitCode ?? ExitCode.Software;
  }
}

/** The command line, a configuration file or an image is wrong. Nothing on the host was touched yet. */
export class ConfigError extends DmError {
  override readonly name: string = 'ConfigError';
  constructor(message: string, options: DmErrorOptions = {}) {
    super(message, { exitCode: ExitCode.Usage, ...options });
  }
}

/** The host refused something: a file, a device node, memory. */
export class HostError extends DmError {
  override readonly name: string = 'HostError';
  readonly errno: number;
  constructor(message: string, errno: number, options: DmErrorOptions = {}) {
    super(message, { exitCode: ExitCode.Unavailable, ...options });
    this.errno = errno;
  }
}

/**
 * Storage does not give back what it was lent. It may still write to guest memory, so nothing of this VM can be released:
 * the VM is paused and destroyed, and the process ends.
 */
export class StorageHangError extends HostError {
  override readonly name: string = 'StorageHangError';
  /** @param what the file. @param work the request: `read of 512 bytes at sector 8`. */
  constructor(what: string, work: string, waitedMs: number) {
    super(`${what}: ${work} is not answered by the host after ${waitedMs / 1000} s`, constants.errno.ETIMEDOUT, {
      exitCode: ExitCode.VmFailed,
      hint: 'the storage behind it hangs; --io-timeout says how long it may',
    });
  }
}

/** Someone asked for the end of the VM while it waited for something slow: no failure. */
export class StoppedError extends HostError {
  constructor(message: string) {
    super(message, 0);
  }
}

/**
 * What was asked of a VM cannot be done to it: not in the state it is in, or never on this hypervisor or by this version.
 */
export class RefusedError extends DmError {
  override readonly name: string = 'RefusedError';
  readonly kind: 'wrong-state' | 'impossible';
  constructor(kind: RefusedError['kind'], message: string, options: DmErrorOptions = {}) {
    super(message, { exitCode: ExitCode.Unavailable, ...options });
    this.kind = kind;
  }
}

/** Our own mistake. */
export class BugError extends DmError {
  override readonly name: string = 'BugError';
}

/** A system call of Node's own that failed where nobody has better words for it: the host's doing, and no bug. */
export function isSystemError(error: unknown): error is NodeJS.ErrnoException {
  const { code, syscall, errno } = (error ?? {}) as { code?: unknown; syscall?: unknown; errno?: unknown };
  return error instanceof Error && typeof code === 'string' && typeof syscall === 'string' && typeof errno === 'number';
}

/** The same as an error of ours, so that whoever catches it can say whose it was; anything else as it is. */
export function withOurKind(error: unknown): unknown {
  if (!isSystemError(error)) return error;
  const { code, syscall, path, errno = 0 } = error;
  const where = path === undefined ? '' : `${path}: `;
  const words = error.message.replace(/^[^:]*: /, '').replace(/, .*$/s, '');
  return new HostError(`${where}${syscall}: ${code}: ${words}`, Math.abs(errno), {
    exitCode: ExitCode.OsError,
    cause: error,
  });
}

/**
 * Put in front of what went wrong whose it was, unless the message says so already.
 * @param where the device or option: `virtio-input at 00:03.0`. @returns the error
 */
export function attributed(where: string, thrown: unknown): unknown {
  const error = withOurKind(thrown);
  if (error instanceof DmError && !error.message.includes(where)) error.message = `${where}: ${error.message}`;
  return error;
}

/** The error, or what caused it, is that the process or the host has no more descriptors to give. */
export function isOutOfDescriptors(error: unknown): boolean {
  for (let current = error; current instanceof Error; current = current.cause) {
    const { errno } = current as { errno?: unknown };
    if (typeof errno === 'number' && [EMFILE, ENFILE].includes(Math.abs(errno))) return true;
  }
  return false;
}

/** The guest gave an address that is not RAM. Caught where the guest's request is served, never by the loop. */
export class GuestFault extends DmError {
  override readonly name: string = 'GuestFault';
}
