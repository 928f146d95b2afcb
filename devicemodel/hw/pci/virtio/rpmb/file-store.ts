/**
 * A simulated replay protected memory: a file of 4 MiB of blocks, and a page with the counter and a journal of the latest
 * write behind them. A write is done when its journal is on the medium; it is put in its place after that, and once more
 * when the file is opened.
 */
import { createHash } from 'node:crypto';
import { type FileHandle, open } from 'node:fs/promises';
import { dirname } from 'node:path';
import { ExitCode, HostError } from '../../../../core/errors.ts';
import { Errno } from '../../../../core/host/errno.ts';
import { tryLock } from '../../../../core/host/file-lock.ts';
import { OpenFlag } from '../../../../core/host/files.ts';
import { isInStickyFolder } from '../../../../core/host/folders.ts';
import { pathFailure } from '../../../../core/host/path-failure.ts';
import { BLOCK_BYTES, Result } from './frame.ts';
import { BLOCKS_BYTES, FILE_BYTES, PAGE_BYTES } from './options.ts';
import type { RpmbStore } from './store.ts';

const PRIVATE = 0o600;
const BLOCK_COUNT = BLOCKS_BYTES / BLOCK_BYTES;
/** Blocks of one write, as with C. */
const MAX_WRITE_BLOCKS = 2;

/** In the page: a head, and the journal. Both end with the SHA-256 of what is before. Numbers are little endian. */
const MAGIC = Buffer.from('acrn-dm rpmb 1\n\0');
const Head = { Counter: 16, Hash: 20, sizeBytes: 52 } as const;
const Journal = {
  At: 512,
  Counter: 0,
  Address: 4,
  Count: 8,
  Data: 12,
  Hash: 12 + 512,
  sizeBytes: 12 + 512 + 32,
} as const;

/** Files of the C device model have no page: a magic and the counter are in block 0, which no guest writes. */
const CFile = { magic: Buffer.from('key_sim'), counterAt: 39, sizeBytes: 43 } as const;

export class RpmbFileStore implements RpmbStore {
  readonly #path: string;
  #file: FileHandle | undefined;
  /** The latest journal is on the medium, its write may not be in its place there. */
  #isJournalNeeded = false;
  /** A write failed, and nobody knows how far it came: until the file is opened anew it is not written. */
  #isBroken = false;

  constructor(path: string) {
    this.#path = path;
  }

  async open(): Promise<{ blockCount: number; counter: number }> {
    // In /tmp a link may be anybody's; a pipe without a writer is not waited for.
    const follow = isInStickyFolder(this.#path) ? OpenFlag.NoFollow : 0;
    const flags = OpenFlag.ReadWrite | OpenFlag.Create | OpenFlag.NonBlock | OpenFlag.NoCtty | OpenFlag.CloseOnExec;
    this.#file = await open(this.#path, flags | follow, PRIVATE).catch((error: Error) => {
      throw pathFailure(`${this.#path} cannot be opened`, error, undefined, 'name a file: virtio-rpmb,path=FILE');
    });
    const stat = await this.#file.stat();
    if (!stat.isFile()) throw this.#isNone('it is no regular file');
    // Made just now with a umask that takes even this user's rights: the next VM has to open it.
    if (stat.size === 0 && (stat.mode & PRIVATE) !== PRIVATE) await this.#file.chmod(PRIVATE);
    if (!tryLock(this.#file.fd, 'exclusive', this.#path)) {
      throw new HostError(`${this.#path}: in use by another User VM`, Errno.EAGAIN, {
        hint: 'give each its own file: virtio-rpmb,path=FILE',
      });
    }
    const counter = await this.#recover(this.#file).catch((error: Error) => {
      throw error instanceof HostError ? error : pathFailure(this.#path, error, ExitCode.IoError);
    });
    return { blockCount: BLOCK_COUNT, counter };
  }

  /** @returns the counter. */
  async #recover(file: FileHandle): Promise<number> {
    const { size } = await file.stat();
    if (size === 0) return this.#begin(file, 0);
    if (size === BLOCKS_BYTES) return this.#begin(file, await this.#takeOver(file));
    if (size !== FILE_BYTES) throw this.#isNone(`it has ${size} bytes`);
    const page = await readAt(file, BLOCKS_BYTES, PAGE_BYTES);
    const counter = counterOf(page);
    const journal = journalOf(page);
    if (journal === undefined) {
      if (counter === undefined) throw this.#isNone('neither its head nor its journal are whole');
      return counter;
    }
    // A head that is not whole was being written after this journal.
    if (counter === undefined || journal.counter === counter || journal.counter === counter + 1) {
      await this.#apply(file, journal.address, journal.blocks, journal.counter);
      await file.datasync();
      return journal.counter;
    }
    throw this.#isNone('its head and its journal do not go together');
  }

  #isNone(why: string): HostError {
    return new HostError(`${this.#path} is no replay protected memory: ${why}`, 0, {
      hint: 'name another file: virtio-rpmb,path=FILE makes it',
    });
  }

  /** @returns the counter of a file that the C device model made. */
  async #takeOver(file: FileHandle): Promise<number> {
    const head = await readAt(file, 0, CFile.sizeBytes);
    if (!head.subarray(0, CFile.magic.length).equals(CFile.magic)) throw this.#isNone('it does not begin as one');
    return head.readUInt32LE(CFile.counterAt);
  }

  async #begin(file: FileHandle, counter: number): Promise<number> {
    const { size } = await file.stat();
    try {
      await file.truncate(FILE_BYTES);
      await writeAt(file, BLOCKS_BYTES, headOf(counter));
      await file.sync();
    } catch (error) {
      // Without its page it would be none for ever; now it is what it was.
      await file.truncate(size).catch(() => {});
      throw error;
    }
    const folder = await open(dirname(this.#path), OpenFlag.ReadOnly);
    try {
      await folder.sync();
    } finally {
      await folder.close();
    }
    return counter;
  }

  async read(address: number, count: number): Promise<Uint8Array | number> {
    try {
      return await readAt(this.#opened, address * BLOCK_BYTES, count * BLOCK_BYTES);
    } catch {
      return Result.Read;
    }
  }

  async write(address: number, blocks: Uint8Array, counter: number): Promise<number> {
    if (blocks.length > MAX_WRITE_BLOCKS * BLOCK_BYTES) return Result.General;
    if (this.#isBroken) return Result.Write;
    const file = this.#opened;
    this.#isBroken = true;
    try {
      // The journal is written over: what it is for has to be on the medium.
      if (this.#isJournalNeeded) await file.datasync();
      await writeAt(file, BLOCKS_BYTES + Journal.At, journalBytes(address, blocks, counter));
      await file.datasync();
      this.#isJournalNeeded = true;
      await this.#apply(file, address, blocks, counter);
    } catch {
      return Result.Write;
    }
    this.#isBroken = false;
    return Result.Ok;
  }

  async #apply(file: FileHandle, address: number, blocks: Uint8Array, counter: number): Promise<void> {
    await writeAt(file, address * BLOCK_BYTES, blocks);
    await writeAt(file, BLOCKS_BYTES, headOf(counter));
  }

  get #opened(): FileHandle {
    if (this.#file === undefined) throw new HostError(`${this.#path} is closed`, 0);
    return this.#file;
  }

  async close(): Promise<void> {
    const file = this.#file;
    this.#file = undefined;
    await file?.close();
  }
}

async function readAt(file: FileHandle, at: number, sizeBytes: number): Promise<Buffer> {
  const bytes = Buffer.alloc(sizeBytes);
  for (let done = 0; done < sizeBytes; ) {
    const { bytesRead } = await file.read(bytes, done, sizeBytes - done, at + done).catch(interrupted);
    if (bytesRead === 0) throw new Error('the file is too short');
    done += Math.max(bytesRead, 0);
  }
  return bytes;
}

/** libuv makes every call again that a signal interrupted, but not a read. */
function interrupted(error: NodeJS.ErrnoException): { bytesRead: number } {
  if (error.code !== 'EINTR') throw error;
  return { bytesRead: -1 };
}

async function writeAt(file: FileHandle, at: number, bytes: Uint8Array): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, at + done);
    if (bytesWritten === 0) throw new Error('the file was written in part');
    done += bytesWritten;
  }
}

function withHash(bytes: Buffer, hashAt: number): Buffer {
  createHash('sha256').update(bytes.subarray(0, hashAt)).digest().copy(bytes, hashAt);
  return bytes;
}

function isWhole(bytes: Buffer, hashAt: number): boolean {
  return createHash('sha256')
    .update(bytes.subarray(0, hashAt))
    .digest()
    .equals(bytes.subarray(hashAt, hashAt + 32));
}

function headOf(counter: number): Buffer {
  const head = Buffer.alloc(Head.sizeBytes);
  MAGIC.copy(head);
  head.writeUInt32LE(counter, Head.Counter);
  return withHash(head, Head.Hash);
}

function counterOf(page: Buffer): number | undefined {
  const head = page.subarray(0, Head.sizeBytes);
  return head.subarray(0, MAGIC.length).equals(MAGIC) && isWhole(head, Head.Hash)
    ? head.readUInt32LE(Head.Counter)
    : undefined;
}

function journalBytes(address: number, blocks: Uint8Array, counter: number): Buffer {
  const journal = Buffer.alloc(Journal.sizeBytes);
  journal.writeUInt32LE(counter, Journal.Counter);
  journal.writeUInt32LE(address, Journal.Address);
  journal.writeUInt32LE(blocks.length / BLOCK_BYTES, Journal.Count);
  journal.set(blocks, Journal.Data);
  return withHash(journal, Journal.Hash);
}

function journalOf(page: Buffer): { counter: number; address: number; blocks: Uint8Array } | undefined {
  const journal = page.subarray(Journal.At, Journal.At + Journal.sizeBytes);
  if (!isWhole(journal, Journal.Hash)) return undefined;
  const sizeBytes = journal.readUInt32LE(Journal.Count) * BLOCK_BYTES;
  return {
    counter: journal.readUInt32LE(Journal.Counter),
    address: journal.readUInt32LE(Journal.Address),
    blocks: journal.subarray(Journal.Data, Journal.Data + sizeBytes),
  };
}
