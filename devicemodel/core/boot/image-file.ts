/** Image files: opened, measured and read straight into guest memory, with errors that name the file and the remedy. */
import { closeSync, constants, fstatSync, openSync } from 'node:fs';
import { basename, resolve } from 'node:path';
import { getSystemErrorMap } from 'node:util';
import type { Gpa } from '../address.ts';
import { ConfigError, ExitCode } from '../errors.ts';
import { errnoOf, pathStatus } from '../host/path-failure.ts';
import { readSome } from '../host/read-file.ts';
import type { GuestMemory } from '../memory.ts';
import { Progress } from '../progress.ts';
import { formatSize, MiB } from '../units.ts';

/** What a file is for, as messages say it. */
export interface ImageRole {
  /** The option that named it: `-k`. */
  readonly option: string;
  /** `kernel image`. */
  readonly what: string;
  readonly maxBytes?: number;
  /** The one larger size that is possible, too. */
  readonly orBytes?: number;
}

/** One read(2) moves at most this much: of a larger file a person hears how far it is. */
const READ_BYTES_MAX = 64 * MiB;

/** Exit code and words of a failed file system call. */
export function fileError(role: ImageRole, path: string, doing: string, error: unknown): ConfigError {
  const { code, errno } = error as NodeJS.ErrnoException;
  const words = errno === undefined ? String(error) : (getSystemErrorMap().get(errno)?.[1] ?? `error ${errno}`);
  const exitCode = pathStatus(errnoOf(error));
  return new ConfigError(`${role.option}: ${role.what} ${resolve(path)} ${doing}: ${words} (${code ?? '?'})`, {
    cause: error,
    exitCode,
  });
}

/** A file that will not do, whatever the file system says of it. */
export function badImage(role: ImageRole, path: string, why: string, hint?: string): ConfigError {
  return new ConfigError(`${role.option}: ${role.what} ${resolve(path)} ${why}`, {
    exitCode: ExitCode.DataError,
    ...(hint === undefined ? {} : { hint }),
  });
}

/** An open image file. */
export class ImageFile {
  readonly path: string;
  readonly role: ImageRole;
  readonly fd: number;
  readonly sizeBytes: number;
  #isOpen = true;

  private constructor(path: string, role: ImageRole, fd: number, sizeBytes: number) {
    this.path = path;
    this.role = role;
    this.fd = fd;
    this.sizeBytes = sizeBytes;
  }

  /**
   * @param mode `r`, or `r+` for a file that is written back.
   * @throws ConfigError unless it is a regular file that can be opened, is not empty and not too large.
   */
  static open(path: string, role: ImageRole, mode: 'r' | 'r+' = 'r'): ImageFile {
    let fd: number;
    try {
      // Whoever names a pipe without a writer must not wait for one.
      fd = openSync(path, (mode === 'r' ? constants.O_RDONLY : constants.O_RDWR) | constants.O_NONBLOCK);
    } catch (error) {
      throw fileError(role, path, mode === 'r' ? 'cannot be opened' : 'cannot be opened for writing', error);
    }
    try {
      return ImageFile.adopt(path, role, fd);
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** Take over an open descriptor; it is the caller's again if this throws. @throws ConfigError as `open` */
  static adopt(path: string, role: ImageRole, fd: number): ImageFile {
    const stat = fstatSync(fd);
    if (!stat.isFile()) throw badImage(role, path, 'is not a regular file');
    if (stat.size === 0) throw badImage(role, path, 'is empty');
    const { maxBytes, orBytes } = role;
    if (maxBytes !== undefined && stat.size > maxBytes && stat.size !== orBytes) {
      const or = orBytes === undefined ? '' : `, or ${formatSize(orBytes)} exactly`;
      throw badImage(role, path, `is too large: ${stat.size} bytes, at most ${formatSize(maxBytes)} are possible${or}`);
    }
    return new ImageFile(path, role, fd, stat.size);
  }

  /** Fill `into` from a place in the file. @throws ConfigError if the file ends before. */
  read(into: Uint8Array, fileOffset: number): void {
    const progress = into.length > READ_BYTES_MAX ? new Progress(basename(this.path), into.length) : undefined;
    try {
      this.#read(into, fileOffset, progress);
    } finally {
      progress?.end();
    }
  }

  #read(into: Uint8Array, fileOffset: number, progress: Progress | undefined): void {
    let done = 0;
    while (done < into.length) {
      let count: number;
      try {
        count = readSome(this.fd, into, done, Math.min(into.length - done, READ_BYTES_MAX), fileOffset + done);
      } catch (error) {
        throw fileError(this.role, this.path, 'cannot be read', error);
      }
      if (count === 0) {
        throw badImage(this.role, this.path, `ends at ${fileOffset + done}, ${into.length - done} bytes are missing`);
      }
      done += count;
      progress?.at(done);
    }
  }

  /** As `read`, without a copy, into guest memory. The caller has checked that there is memory. */
  readToGuest(memory: GuestMemory, at: Gpa, sizeBytes: number, fileOffset = 0): void {
    let done = 0;
    for (const piece of memory.pieces(at, sizeBytes)) {
      this.read(piece, fileOffset + done);
      done += piece.length;
    }
  }

  /** Safe twice. */
  close(): void {
    if (this.#isOpen) closeSync(this.fd);
    this.#isOpen = false;
  }
}

/** Open, use, close. */
export function withImage<T>(path: string, role: ImageRole, use: (image: ImageFile) => T): T {
  const image = ImageFile.open(path, role);
  try {
    return use(image);
  } finally {
    image.close();
  }
}
