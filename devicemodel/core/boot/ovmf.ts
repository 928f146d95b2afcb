/**
 * OVMF firmware: an image that ends at 4 GiB, started at the reset vector, with its variables (NV storage) in the first
 * bytes of the image. One file, or code and variables apart; `w` keeps what the guest writes to its variables.
 */
import {
  closeSync,
  fchmodSync,
  fchownSync,
  fdatasyncSync,
  fstatSync,
  fsyncSync,
  openSync,
  realpathSync,
  renameSync,
  statSync,
  unlinkSync,
  writeSync,
} from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Gpa } from '../address.ts';
import type { BootConfig } from '../config.ts';
import { BugError, ConfigError, ExitCode, HostError } from '../errors.ts';
import { buildE820, type E820Input, ovmfE820Block } from '../firmware/e820.ts';
import { tryLock } from '../host/file-lock.ts';
import type { VcpuRegs } from '../hsm/hsm.ts';
import { Layout } from '../layout.ts';
import type { Log } from '../log.ts';
import type { GuestMemory } from '../memory.ts';
import { alignUp, KiB, MiB } from '../units.ts';
import { badImage, fileError, ImageFile, type ImageRole, withImage } from './image-file.ts';
import { checkFirmware, RESET_REGS } from './reset-vector.ts';

type OvmfConfig = Extract<BootConfig, { kind: 'ovmf' }>;

/**
 * The two layouts that edk2's OvmfPkg builds (OvmfPkgDefines.fdf.inc): the variables are the first bytes of the image, or a
 * file of their own. Compat: C knows only the small one, of which anything smaller is taken; distributions ship the large
 * one, some no other.
 */
const Small = { imageBytes: 2 * MiB, varsBytes: 128 * KiB } as const;
const Large = { imageBytes: 4 * MiB, varsBytes: 528 * KiB } as const;
/** What is locked of the file with the variables, as C locks it. */
const VARS_RANGE = { base: 0, sizeBytes: Small.varsBytes };
/** Firmware memory comes in large pages. */
const REGION_ALIGN = 2 * MiB;

type Layouts = { readonly [K in keyof typeof Small]: number };
const role = (what: string, bytesOf: (layout: Layouts) => number): ImageRole => ({
  option: '--ovmf',
  what,
  maxBytes: bytesOf(Small),
  orBytes: bytesOf(Large),
});
const SINGLE = role('firmware image', ({ imageBytes }) => imageBytes);
const CODE = role('firmware code image', ({ imageBytes, varsBytes }) => imageBytes - varsBytes);
const VARS = role('firmware variables image', ({ varsBytes }) => varsBytes);

const SAME_BUILD = 'take code and variables of one build: OVMF_CODE_4M.fd goes with OVMF_VARS_4M.fd';

/** The files of an image in memory order; the first one holds the variables. */
function parts(boot: OvmfConfig): readonly { readonly path: string; readonly role: ImageRole }[] {
  const { image } = boot;
  if (image.form === 'single') return [{ path: image.path, role: SINGLE }];
  return [
    { path: image.varsPath, role: VARS },
    { path: image.codePath, role: CODE },
  ];
}

/** Firmware in guest memory, variables kept if the user wants that. */
export class OvmfFirmware {
  readonly #boot: OvmfConfig;
  readonly #log: Log;
  readonly #imageBytes: number;
  readonly #store: NvStore | undefined;
  /** Memory that holds the whole image. Any other has no variables to save. */
  #loadedInto: GuestMemory | undefined;

  /**
   * Measures the files; with `w` opens and locks the one with the variables until `close`.
   * @throws ConfigError if a file is missing, too large, or in use by another User VM.
   */
  constructor(boot: OvmfConfig, log: Log) {
    this.#boot = boot;
    this.#log = log;
    const files = parts(boot);
    const sizes = files.map((f) => withImage(f.path, f.role, (file) => ({ ...f, sizeBytes: file.sizeBytes })));
    this.#imageBytes = sizes.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
    const large = sizes.find((file) => file.sizeBytes === file.role.orBytes);
    if (large !== undefined && this.#imageBytes !== Large.imageBytes) {
      throw badImage(large.role, large.path, 'belongs to an image of 4 MiB, the other file does not', SAME_BUILD);
    }
    const [nv] = files;
    if (nv === undefined) throw new BugError('ovmf: no files');
    const code = files.at(-1);
    if (code !== undefined) withImage(code.path, code.role, checkFirmware);
    this.#store = boot.image.writeBack ? new NvStore(nv.path, nv.role, log) : undefined;
  }

  /** Memory the image needs, outside RAM: ends at 4 GiB. */
  get region(): { readonly base: Gpa; readonly sizeBytes: number } {
    const sizeBytes = alignUp(this.#imageBytes, REGION_ALIGN);
    return { base: Layout.firmwareEnd - sizeBytes, sizeBytes };
  }

  get #base(): Gpa {
    return Layout.firmwareEnd - this.#imageBytes;
  }

  /**
   * Read the image into guest memory and leave the memory map where it looks for it. Again after a reset: variables
   * come back from the file, so `save` first.
   * @returns how the boot CPU starts.
   * @throws ConfigError if the files changed size since they were measured.
   */
  load(memory: GuestMemory, ram: E820Input): VcpuRegs {
    const files = parts(this.#boot);
    const opened: ImageFile[] = [];
    this.#loadedInto = undefined;
    try {
      for (const { path, role } of files) opened.push(ImageFile.open(path, role));
      if (opened.reduce((sum, file) => sum + file.sizeBytes, 0) !== this.#imageBytes) {
        throw badImage(SINGLE, files[0]?.path ?? '', 'changed its size while the VM was being set up');
      }
      let at = this.#base;
      for (const file of opened) {
        file.readToGuest(memory, at, file.sizeBytes);
        at += file.sizeBytes;
      }
    } finally {
      for (const file of opened) file.close();
    }
    memory.write(Layout.ovmfE820Base, ovmfE820Block(buildE820(ram)));
    this.#loadedInto = memory;
    this.#log.info(`firmware: ${files.map((f) => f.path).join(' + ')}, ${this.#imageBytes} bytes below 4 GiB`);
    return RESET_REGS;
  }

  /**
   * Write the guest's variables back, if the user wants that and the guest changed any. Memory the image was not
   * loaded into holds none: a VM that failed to start must not wipe the user's variables.
   * @throws HostError if they could not be written; the file is then as it was.
   */
  save(memory: GuestMemory): void {
    const store = this.#store;
    if (store === undefined || memory !== this.#loadedInto) return;
    store.save(memory.read(this.#base, store.sizeBytes));
  }

  /** Give up the lock. Safe twice. */
  close(): void {
    this.#store?.close();
  }
}

/** Errors of a file system that lets a file be written, but not replaced. */
const CANNOT_REPLACE: ReadonlySet<string> = new Set(['EACCES', 'EPERM', 'EROFS', 'EBUSY', 'EXDEV']);

/**
 * The file that keeps a guest's variables. One User VM at a time has it; a save replaces the file as a whole, so that
 * whatever happens it holds either the old variables or the new.
 */
export class NvStore {
  readonly #role: ImageRole;
  readonly #log: Log;
  /** Without symbolic links: what is replaced is the file, not a link to it. */
  readonly #path: string;
  #file: ImageFile;
  /** A sync of the file failed: what it reads as now may be on no medium, and no later sync would tell. */
  #lost: HostError | undefined;

  /** @throws ConfigError if the file cannot be written, or another User VM has it. */
  constructor(path: string, role: ImageRole, log: Log) {
    this.#role = role;
    this.#log = log;
    this.#file = openLocked(path, role);
    try {
      this.#path = realpathSync(path);
    } catch (error) {
      this.#file.close();
      throw fileError(role, path, 'cannot be found', error);
    }
  }

  /** Bytes at the start of the file that are variables. */
  get sizeBytes(): number {
    const { sizeBytes } = this.#file;
    return sizeBytes === this.#role.orBytes ? Large.varsBytes : Math.min(sizeBytes, Small.varsBytes);
  }

  /** @param variables the first {@link sizeBytes} of the image as the guest left them. */
  save(variables: Uint8Array): void {
    if (this.#lost !== undefined) throw this.#lost;
    const whole = new Uint8Array(this.#file.sizeBytes);
    this.#file.read(whole, 0);
    if (Buffer.compare(whole.subarray(0, variables.length), variables) === 0) return;
    if (!this.#isStillThere()) {
      this.#log.warn(`${this.#path} was replaced while the VM ran: the guest's variables are not saved`);
      return;
    }
    whole.set(variables);
    try {
      this.#replace(whole);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (!CANNOT_REPLACE.has(code ?? '')) throw this.#saveError(error);
      this.#log.warn(`${this.#path} cannot be replaced (${code}): variables are written in place`);
      this.#overwrite(variables);
    }
    this.#log.info(`variables saved to ${this.#path}`);
  }

  close(): void {
    this.#file.close();
  }

  #isStillThere(): boolean {
    try {
      return isSameFile(this.#file.fd, this.#path);
    } catch {
      return false;
    }
  }

  /** New file beside the old one, on disk before it takes the name, locked before anyone can see it. */
  #replace(content: Uint8Array): void {
    const temporary = join(dirname(this.#path), `.${basename(this.#path)}.acrn-dm-${process.pid}`);
    const fd = createExclusive(temporary);
    try {
      const { mode, uid, gid } = fstatSync(this.#file.fd);
      fchmodSync(fd, mode & 0o7777);
      try {
        fchownSync(fd, uid, gid);
      } catch {
        // Not root and not the owner: the file becomes ours, as with any editor.
      }
      if (!tryLock(fd, 'exclusive', temporary, VARS_RANGE)) throw new BugError(`${temporary} is locked`);
      writeAll(fd, content, 0);
      fsyncSync(fd);
      renameSync(temporary, this.#path);
    } catch (error) {
      closeSync(fd);
      try {
        unlinkSync(temporary);
      } catch {
        // Gone already, or as stuck as the save itself, which is what will be reported.
      }
      throw error;
    }
    syncDirectory(dirname(this.#path));
    // The name stands for the new file now: keep that one and its lock.
    this.#file.close();
    this.#file = ImageFile.adopt(this.#path, this.#role, fd);
  }

  #overwrite(variables: Uint8Array): void {
    try {
      writeAll(this.#file.fd, variables, 0);
    } catch (error) {
      throw this.#saveError(error);
    }
    try {
      fdatasyncSync(this.#file.fd);
    } catch (error) {
      this.#lost = this.#saveError(error);
      throw this.#lost;
    }
  }

  #saveError(error: unknown): HostError {
    if (error instanceof HostError || error instanceof BugError) throw error;
    const { errno, message } = error as NodeJS.ErrnoException;
    return new HostError(`${this.#path}: the guest's variables could not be saved: ${message}`, errno ?? 0, {
      cause: error,
      exitCode: ExitCode.IoError,
    });
  }
}

/** Whether a path still leads to an open file. */
function isSameFile(fd: number, path: string): boolean {
  const open = fstatSync(fd);
  const named = statSync(path);
  return open.ino === named.ino && open.dev === named.dev;
}

/** Times a file may be replaced by its owner between opening and locking it. */
const OPEN_TRIES = 10;

function openLocked(path: string, role: ImageRole): ImageFile {
  for (let tries = 0; tries < OPEN_TRIES; tries++) {
    const file = ImageFile.open(path, role, 'r+');
    try {
      if (!tryLock(file.fd, 'exclusive', path, VARS_RANGE)) {
        throw new ConfigError(`${role.option}: ${role.what} ${path} is in use by another User VM that writes to it`, {
          hint: 'give each VM with "w" an image of its own',
          exitCode: ExitCode.Unavailable,
        });
      }
      // Whoever had the lock before may have put a new file in its place.
      if (isSameFile(file.fd, path)) return file;
      file.close();
    } catch (error) {
      file.close();
      throw error;
    }
  }
  throw new ConfigError(`${role.option}: ${role.what} ${path} is being replaced over and over`);
}

/** A file that did not exist; one that a process of our number left behind when it was killed goes first. */
function createExclusive(path: string): number {
  try {
    return openSync(path, 'wx+', 0o600);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EEXIST') throw error;
    unlinkSync(path);
    return openSync(path, 'wx+', 0o600);
  }
}

function writeAll(fd: number, data: Uint8Array, at: number): void {
  for (let done = 0; done < data.length; ) done += writeSync(fd, data, done, data.length - done, at + done);
}

/** A rename is on disk when its directory is. */
function syncDirectory(path: string): void {
  try {
    const fd = openSync(path, 'r');
    fsyncSync(fd);
    closeSync(fd);
  } catch {
    // Some file systems have no fsync for directories; the file itself is safe.
  }
}
