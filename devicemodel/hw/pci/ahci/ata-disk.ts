/** A disk behind a port: ATA commands (ACS-3 §7), NCQ among them. */
import type { Log } from '../../../core/log.ts';
import type { ImageIo } from '../../storage/image-io.ts';
import { ImageOp } from '../../storage/image-queue.ts';
import { Ata, FAILED, READY, servePowerCommand } from './ata-commands.ts';
import type { Command } from './command.ts';
import type { Drive, DrivePort } from './drive.ts';
import { IDENTIFY_BYTES, identifyDisk, POWER_ON_MODE, setChecksum, type TransferMode } from './identify.ts';
import { AtaError, AtaStatus, Fis, Link, Signature } from './registers.ts';

/** Subcommands of SET FEATURES (§7.45). */
const Feature = {
  EnableWriteCache: 0x02,
  SetTransferMode: 0x03,
  EnableSata: 0x10,
  DisableLookAhead: 0x55,
  DisableWriteCache: 0x82,
  EnableLookAhead: 0xaa,
} as const;
/** Of EnableSata: asynchronous notification. */
const SATA_NOTIFICATION = 0x05;
/** Transfer modes in the count (§7.45.3), above three bits of number. */
const MODE_MULTIWORD_DMA = 0x20;
const MODE_ULTRA_DMA = 0x40;

/** Logs (§9). */
const LogPage = { Directory: 0x00, NcqError: 0x10, NcqSendReceive: 0x13 } as const;
const LOG_BYTES = 512;
/** DSM (§7.5): TRIM, and ranges of LBA and count in a block of 512 bytes. */
const DSM_TRIM = 1;
const DSM_BLOCK_BYTES = 512;
const DSM_ENTRY_BYTES = 8;
/** SEND FPDMA QUEUED (§7.44): subcommand in the high count byte. */
const SEND_DSM = 0;
/** Forced unit access, in the device register of queued commands. */
const FUA = 1 << 7;
const MAX_MULTIPLE = 128;
/** What the NCQ error log says where the command was not a queued one. */
const NOT_QUEUED = 0x80;
/** Bytes of the failed command's frame in that log. */
const ERROR_LOG_FRAME = 20;

export interface AtaDiskOptions {
  readonly serial: string;
  /** Writes stay in the host's cache until a flush, as long as the guest has the drive's cache on. */
  readonly isWriteback: boolean;
}

export class AtaDisk implements Drive {
  readonly isAtapi = false;
  readonly signature = Signature.Ata;
  readonly resetStatus = AtaStatus.Ready | AtaStatus.SeekComplete | AtaStatus.DeviceFault;
  readonly #port: DrivePort;
  readonly #options: AtaDiskOptions;
  readonly #log: Log;
  readonly #block = new Uint8Array(IDENTIFY_BYTES);
  /** One list of ranges for each command that trims; made when the first does. */
  readonly #ranges: Array<Uint8Array | undefined> = [];
  /** NCQ command error log (§9.14): the command that failed last. */
  readonly #errorLog = new Uint8Array(ERROR_LOG_FRAME);
  io: ImageIo | undefined;
  linkSpeed: number = Link.Generation3;
  #sectorBytes = 512;
  #sectors = 0;
  #mode: TransferMode = POWER_ON_MODE;
  #multipleSectors = MAX_MULTIPLE;
  #isWriteCacheOn = true;

  constructor(port: DrivePort, options: AtaDiskOptions, log: Log) {
    this.#port = port;
    this.#options = options;
    this.#log = log;
  }

  /** The image is open. */
  insert(io: ImageIo): void {
    this.io = io;
    this.#sectorBytes = io.image.logicalSectorBytes;
    this.#sectors = Math.floor(io.image.sizeBytes / this.#sectorBytes);
  }

  reset(): void {
    this.#mode = POWER_ON_MODE;
    this.#multipleSectors = MAX_MULTIPLE;
    this.#isWriteCacheOn = true;
  }

  powerOn(): void {
    this.#errorLog.fill(0);
  }

  execute(command: Command): void {
    const { fis } = command;
    switch (command.code) {
      case Ata.ReadFpdmaQueued:
      case Ata.WriteFpdmaQueued:
        this.#readWriteQueued(command);
        break;
      case Ata.ReadSectors:
      case Ata.ReadMultiple:
      case Ata.ReadDma:
      case Ata.WriteSectors:
      case Ata.WriteMultiple:
      case Ata.WriteDma:
        this.#readWrite(command, lba28(fis), fis[Fis.Count] || 0x100);
        break;
      case Ata.ReadSectorsExt:
      case Ata.ReadMultipleExt:
      case Ata.ReadDmaExt:
      case Ata.WriteSectorsExt:
      case Ata.WriteMultipleExt:
      case Ata.WriteDmaExt:
        this.#readWrite(command, lba48(fis), word(fis, Fis.Count, Fis.CountHigh) || 0x1_0000);
        break;
      case Ata.FlushCache:
      case Ata.FlushCacheExt:
        this.#port.order(command, ImageOp.Flush, 0, 0, false);
        break;
      default:
        this.#executeOther(command);
        break;
    }
  }

  #executeOther(command: Command): void {
    const { fis } = command;
    switch (command.code) {
      case Ata.IdentifyDevice:
        this.#identify(command);
        break;
      case Ata.SetFeatures:
        this.#setFeatures(command);
        break;
      case Ata.SetMultiple:
        this.#setMultiple(command);
        break;
      case Ata.ReadLogExt:
      case Ata.ReadLogDmaExt:
        this.#readLog(command);
        break;
      case Ata.DataSetManagement:
        this.#trim(
          command,
          fis[Fis.Features] === DSM_TRIM && isOneBlock(fis, Fis.Count, Fis.CountHigh, fis[Fis.FeaturesHigh]),
        );
        break;
      case Ata.SendFpdmaQueued:
        this.#trim(
          command,
          ((fis[Fis.CountHigh] as number) & 0x1f) === SEND_DSM &&
            fis[Fis.Auxiliary] === DSM_TRIM &&
            isOneBlock(fis, Fis.Features, Fis.FeaturesHigh, fis[Fis.Auxiliary + 1]),
        );
        break;
      case Ata.ReadVerify:
      case Ata.ReadVerifyExt:
        this.#port.finish(command, READY, 0);
        break;
      default:
        // NOP, SMART and SECURITY FREEZE LOCK among what is aborted.
        if (!servePowerCommand(this.#port, command)) this.#abort(command);
        break;
    }
  }

  /** The command is not one, or not now (§6.3.2). */
  #abort(command: Command): void {
    this.#fail(command, AtaError.Abort);
  }

  #fail(command: Command, error: number): void {
    this.#noteError(command, NOT_QUEUED, FAILED, error);
    this.#port.finish(command, FAILED, error);
  }

  /** For the NCQ command error log (§9.14). */
  #noteError({ fis }: Command, tag: number, status: number, error: number): void {
    const log = this.#errorLog;
    log[0] = tag;
    log[2] = status;
    log[3] = error;
    for (let i = Fis.Lba0; i < ERROR_LOG_FRAME; i++) log[i] = fis[i] as number;
  }

  // Reading and writing.

  #readWrite(command: Command, lba: number, sectors: number): void {
    if (!this.#isInside(lba, sectors)) this.#fail(command, AtaError.IdNotFound);
    else this.#move(command, isWrite(command.code), lba, sectors, false);
  }

  #readWriteQueued(command: Command): void {
    const { fis } = command;
    const lba = lba48(fis);
    const sectors = word(fis, Fis.Features, Fis.FeaturesHigh) || 0x1_0000;
    this.#port.acceptQueued(command);
    if (!this.#isInside(lba, sectors)) {
      this.#endQueued(command, AtaError.IdNotFound);
      return;
    }
    const isFua = ((fis[Fis.Device] as number) & FUA) !== 0;
    this.#move(command, command.code === Ata.WriteFpdmaQueued, lba, sectors, isFua);
  }

  /** Compat: nothing but the file's size limits C, which reads what was in the buffer before, and makes the file longer. */
  #isInside(lba: number, sectors: number): boolean {
    return lba + sectors <= this.#sectors;
  }

  #move(command: Command, isWrite: boolean, lba: number, sectors: number, isFua: boolean): void {
    const size = this.#sectorBytes;
    if (isWrite && this.io?.image.isReadOnly !== false) {
      this.#ended(command, AtaError.Abort);
      return;
    }
    const op = isWrite ? ImageOp.Write : ImageOp.Read;
    this.#port.transfer(command, op, lba * size, sectors * size, isWrite && (isFua || this.#isWriteThrough));
  }

  get #isWriteThrough(): boolean {
    return !this.#options.isWriteback || !this.#isWriteCacheOn;
  }

  transferred(command: Command, errno: number): void {
    // Compat: C writes the byte count of a flush, too.
    if (errno === 0 && (command.code === Ata.FlushCache || command.code === Ata.FlushCacheExt))
      command.writeByteCount(0);
    if (errno === 0 && isTrim(command.code)) this.#trimNext(command);
    else this.#ended(command, errno === 0 ? 0 : AtaError.Abort);
  }

  /** @param error 0: all is well. */
  #ended(command: Command, error: number): void {
    if (isQueued(command.code)) this.#endQueued(command, error);
    else if (error !== 0) this.#fail(command, error);
    else this.#port.finish(command, READY, 0);
  }

  #endQueued(command: Command, error: number): void {
    const status = error === 0 ? READY : FAILED;
    if (error !== 0) this.#noteError(command, command.slot, status, error);
    this.#port.finishQueued(command, status, error);
  }

  // TRIM.

  /** @param isRight a single block of ranges, and nothing else asked for. */
  #trim(command: Command, isRight: boolean): void {
    if (!isRight) {
      this.#abort(command);
      return;
    }
    const list = (this.#ranges[command.slot] ??= new Uint8Array(DSM_BLOCK_BYTES));
    list.fill(0);
    command.receive(list, DSM_BLOCK_BYTES);
    command.entry = 0;
    command.moved = 0;
    if (isQueued(command.code)) this.#port.acceptQueued(command);
    if (!this.#canTrim(list)) {
      this.#ended(command, AtaError.Abort);
      return;
    }
    this.#trimNext(command);
  }

  get #hasTrim(): boolean {
    const image = this.io?.image;
    return image?.discardLimits !== undefined && !image.isReadOnly;
  }

  /** Before the first is carried out. Compat: a list of nothing is done anywhere, as in C. */
  #canTrim(list: Uint8Array): boolean {
    for (let at = 0; at < DSM_BLOCK_BYTES; at += DSM_ENTRY_BYTES) {
      const { lba, sectors } = range(list, at);
      if (sectors > 0 && !(this.#hasTrim && this.#isInside(lba, sectors))) return false;
    }
    return true;
  }

  /** The next range of the list that is not empty, or the end of the command. */
  #trimNext(command: Command): void {
    const list = this.#ranges[command.slot] as Uint8Array;
    if (command.entry > 0) command.writeByteCount(command.entry);
    while (command.entry < DSM_BLOCK_BYTES) {
      const { lba, sectors } = range(list, command.entry);
      command.entry += DSM_ENTRY_BYTES;
      if (sectors === 0) continue;
      const size = this.#sectorBytes;
      this.#port.order(command, ImageOp.Discard, lba * size, sectors * size, this.#isWriteThrough);
      return;
    }
    this.#ended(command, 0);
  }

  // What the drive says of itself.

  #identify(command: Command): void {
    const { io } = this;
    if (!command.hasTable || io === undefined) {
      this.#abort(command);
      return;
    }
    const id = {
      image: io.image,
      serial: this.#options.serial,
      mode: this.#mode,
      linkSpeed: this.linkSpeed,
      multipleSectors: this.#multipleSectors,
      hasTrim: this.#hasTrim,
    };
    identifyDisk(id, this.#block);
    this.#port.pioSetup();
    this.#port.send(command, this.#block, IDENTIFY_BYTES);
    this.#port.finish(command, READY, 0);
  }

  /** §7.24: one page of one log. */
  #readLog(command: Command): void {
    const { fis } = command;
    const page = word(fis, Fis.Lba1, Fis.Lba4);
    const block = this.#block;
    block.fill(0);
    if (
      !command.hasTable ||
      page !== 0 ||
      word(fis, Fis.Count, Fis.CountHigh) !== 1 ||
      !this.#fillLog(fis[Fis.Lba0], block)
    ) {
      this.#abort(command);
      return;
    }
    if (command.code === Ata.ReadLogExt) this.#port.pioSetup();
    this.#port.send(command, block, LOG_BYTES);
    this.#port.finish(command, READY, 0);
  }

  /** @returns false for a log that there is not. */
  #fillLog(log: number | undefined, block: Uint8Array): boolean {
    switch (log) {
      case LogPage.Directory:
        // Version 1, and one page of each log.
        block[0] = 1;
        block[2 * LogPage.NcqError] = 1;
        block[2 * LogPage.NcqSendReceive] = 1;
        return true;
      case LogPage.NcqError:
        block.set(this.#errorLog);
        setChecksum(block);
        return true;
      case LogPage.NcqSendReceive:
        // SEND FPDMA QUEUED knows DATA SET MANAGEMENT, and of it TRIM.
        if (this.#hasTrim) {
          block[0] = 1;
          block[4] = 1;
        }
        return true;
      default:
        return false;
    }
  }

  // What the guest tells the drive.

  #setFeatures(command: Command): void {
    const { fis } = command;
    const count = fis[Fis.Count] as number;
    switch (fis[Fis.Features]) {
      case Feature.EnableWriteCache:
        this.#isWriteCacheOn = true;
        break;
      case Feature.DisableWriteCache:
        this.#isWriteCacheOn = false;
        // What is in the cache by now goes to the medium before the command is over (§7.45.4).
        this.#port.order(command, ImageOp.Flush, 0, 0, false);
        return;
      case Feature.EnableLookAhead:
      case Feature.DisableLookAhead:
        break;
      case Feature.SetTransferMode:
        this.#mode = transferMode(count) ?? this.#mode;
        break;
      case Feature.EnableSata:
        if (count === SATA_NOTIFICATION) break;
        this.#abort(command);
        return;
      default:
        this.#log.guest(() => `SET FEATURES ${fis[Fis.Features]} is not known`);
        this.#abort(command);
        return;
    }
    this.#port.finish(command, READY, 0);
  }

  #setMultiple(command: Command): void {
    const count = command.fis[Fis.Count] as number;
    if (count > MAX_MULTIPLE || (count & (count - 1)) !== 0) {
      this.#abort(command);
      return;
    }
    this.#multipleSectors = count;
    this.#port.finish(command, READY, 0);
  }
}

/** Compat: as the C device model, which forgets what kind of mode it was, so that none shows as chosen. */
export function transferMode(count: number): TransferMode | undefined {
  const kind = count & 0xf8;
  return kind === MODE_MULTIWORD_DMA || kind === MODE_ULTRA_DMA ? { kind: 'pio', number: count & 7 } : undefined;
}

function word(fis: Uint8Array, low: number, high: number): number {
  return (fis[low] as number) | ((fis[high] as number) << 8);
}

function lba28(fis: Uint8Array): number {
  return (
    (((fis[Fis.Device] as number) & 0xf) << 24) | ((fis[Fis.Lba2] as number) << 16) | word(fis, Fis.Lba0, Fis.Lba1)
  );
}

/** 48 bits: exact as a number. */
function lba48(fis: Uint8Array): number {
  const low = ((fis[Fis.Lba2] as number) << 16) | word(fis, Fis.Lba0, Fis.Lba1);
  const high = ((fis[Fis.Lba5] as number) << 16) | word(fis, Fis.Lba3, Fis.Lba4);
  return high * 0x100_0000 + low;
}

/** An entry of a list of ranges: 48 bits of LBA, 16 of count. */
function range(list: Uint8Array, at: number): { lba: number; sectors: number } {
  const byte = (index: number) => list[at + index] as number;
  const low = byte(0) | (byte(1) << 8) | (byte(2) << 16);
  const high = byte(3) | (byte(4) << 8) | (byte(5) << 16);
  return { lba: high * 0x100_0000 + low, sectors: byte(6) | (byte(7) << 8) };
}

/** Whether a count, in two bytes of the frame, is one block, and another byte is clear. */
function isOneBlock(fis: Uint8Array, low: number, high: number, clear: number | undefined): boolean {
  return fis[low] === 1 && fis[high] === 0 && clear === 0;
}

function isQueued(code: number): boolean {
  return code === Ata.ReadFpdmaQueued || code === Ata.WriteFpdmaQueued || code === Ata.SendFpdmaQueued;
}

function isTrim(code: number): boolean {
  return code === Ata.DataSetManagement || code === Ata.SendFpdmaQueued;
}

function isWrite(code: number): boolean {
  switch (code) {
    case Ata.WriteSectors:
    case Ata.WriteSectorsExt:
    case Ata.WriteDmaExt:
    case Ata.WriteMultipleExt:
    case Ata.WriteMultiple:
    case Ata.WriteDma:
      return true;
    default:
      return false;
  }
}
