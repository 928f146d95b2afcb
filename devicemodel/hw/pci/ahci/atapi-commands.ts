/** Packet commands of a CD drive (MMC-6 §6, SPC-3 §6). Numbers in packets and answers are big-endian. */
import type { ImageIo } from '../../storage/image-io.ts';
import { ImageOp } from '../../storage/image-queue.ts';
import { FAILED, READY } from './ata-commands.ts';
import { fullToc, sessionInfo, toc } from './atapi-toc.ts';
import type { Command } from './command.ts';
import type { DrivePort } from './drive.ts';
import { Fis, Table } from './registers.ts';

/** Operation codes. */
const Packet = {
  TestUnitReady: 0x00,
  RequestSense: 0x03,
  Inquiry: 0x12,
  StartStopUnit: 0x1b,
  PreventAllow: 0x1e,
  ReadCapacity: 0x25,
  Read10: 0x28,
  ReadToc: 0x43,
  GetEventStatus: 0x4a,
  ModeSense10: 0x5a,
  ReportLuns: 0xa0,
  Read12: 0xa8,
} as const;

/** Sense key and additional sense code (SPC-3 §4.5). */
interface Sense {
  readonly key: number;
  readonly code: number;
}
const Sense = {
  None: { key: 0, code: 0 },
  NoMedium: { key: 2, code: 0x3a },
  InvalidCommand: { key: 5, code: 0x20 },
  OutOfRange: { key: 5, code: 0x21 },
  InvalidField: { key: 5, code: 0x24 },
  SavingNotSupported: { key: 5, code: 0x39 },
  RemovalPrevented: { key: 5, code: 0x53 },
  ReadError: { key: 3, code: 0x11 },
  MediumMayHaveChanged: { key: 6, code: 0x28 },
} as const satisfies Record<string, Sense>;

/** Media events of GET EVENT STATUS NOTIFICATION (MMC-6 §6.6.5). */
const MediaEvent = { None: 0, NewMedia: 2, MediaRemoval: 3 } as const;
const MEDIA_CLASS = 4;
const MEDIA_PRESENT = 2;

/** Interrupt reason in the count register: a command was asked for, and the way is to the host (ACS-3 §7.18). */
const REASON_DONE = 3;
/** START STOP UNIT: what is in the tray's and the motor's bits. */
const EJECT = 2;

export const CD_SECTOR_BYTES = 2048;
const ANSWER_BYTES = 64;

/** Mode pages (MMC-6 §7): with the header of eight bytes before them, whose third is the medium type. */
const MODE_HEADER_BYTES = 8;
const MODE_MEDIUM_TYPE = 0x70;
const modePages: Readonly<Record<number, readonly number[]>> = {
  // Read error recovery: five retries.
  1: [0x01, 6, 0, 5, 0, 0, 0, 0],
  // Capabilities: reads DVD-ROM, tray, lock, eject; two volume levels, 512 kB of buffer.
  42: [0x2a, 20, 0x08, 0, 0x71, 0, 0, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0],
};

export class PacketCommands {
  readonly #port: DrivePort;
  readonly #answer = new Uint8Array(ANSWER_BYTES);
  medium: ImageIo | undefined;
  #sense: Sense = Sense.None;
  /** The medium changed: the first command that has to do with it fails once. */
  #hasChanged = false;
  #event: number = MediaEvent.None;

  constructor(port: DrivePort) {
    this.#port = port;
  }

  powerOn(): void {
    this.#sense = Sense.None;
    this.#hasChanged = false;
    this.#event = MediaEvent.None;
  }

  changeMedium(medium: ImageIo | undefined): void {
    this.medium = medium;
    this.#hasChanged = medium !== undefined;
    this.#event = medium === undefined ? MediaEvent.MediaRemoval : MediaEvent.NewMedia;
  }

  execute(command: Command): void {
    const packet = command.fis.subarray(Table.PacketCommand);
    switch (packet[0]) {
      case Packet.Inquiry:
        this.#inquiry(command, packet);
        break;
      case Packet.RequestSense:
        this.#requestSense(command, packet);
        break;
      case Packet.GetEventStatus:
        this.#eventStatus(command, packet);
        break;
      case Packet.ReportLuns:
        this.#send(command, this.#begin(16, [0, 0, 0, 8]), 16);
        break;
      case Packet.PreventAllow:
        // The medium is the host's to change.
        this.#done(command);
        break;
      case Packet.StartStopUnit:
        // Compat: the guest cannot open the tray, as with the C device model.
        if (((packet[4] as number) & 3) === EJECT) this.#fail(command, Sense.RemovalPrevented);
        else this.#done(command);
        break;
      case Packet.ModeSense10:
        this.#modeSense(command, packet);
        break;
      case Packet.TestUnitReady:
      case Packet.ReadCapacity:
      case Packet.ReadToc:
      case Packet.Read10:
      case Packet.Read12:
        this.#onMedium(command, packet);
        break;
      default:
        this.#fail(command, Sense.InvalidCommand);
        break;
    }
  }

  // What needs a medium.

  #onMedium(command: Command, packet: Uint8Array): void {
    const { medium } = this;
    if (medium === undefined) {
      this.#fail(command, Sense.NoMedium);
      return;
    }
    if (this.#hasChanged) {
      this.#hasChanged = false;
      this.#fail(command, Sense.MediumMayHaveChanged);
      return;
    }
    const sectors = Math.floor(medium.image.sizeBytes / CD_SECTOR_BYTES);
    switch (packet[0]) {
      case Packet.ReadCapacity: {
        const answer = this.#begin(8, []);
        putU32(answer, 0, sectors - 1);
        putU32(answer, 4, CD_SECTOR_BYTES);
        this.#send(command, answer, 8);
        break;
      }
      case Packet.ReadToc:
        this.#readToc(command, packet, sectors);
        break;
      case Packet.Read10:
        this.#read(command, u32(packet, 2), u16(packet, 7), sectors);
        break;
      case Packet.Read12:
        this.#read(command, u32(packet, 2), u32(packet, 6), sectors);
        break;
      default:
        this.#done(command);
        break;
    }
  }

  #read(command: Command, lba: number, count: number, sectors: number): void {
    if (count === 0) this.#done(command);
    else if (lba + count > sectors) this.#fail(command, Sense.OutOfRange);
    else this.#port.transfer(command, ImageOp.Read, lba * CD_SECTOR_BYTES, count * CD_SECTOR_BYTES, false);
  }

  transferred(command: Command, errno: number): void {
    if (errno === 0) this.#done(command);
    else this.#fail(command, Sense.ReadError);
  }

  /** READ TOC/PMA/ATIP (MMC-6 §6.26): one session, one track. */
  #readToc(command: Command, packet: Uint8Array, sectors: number): void {
    const isMsf = ((packet[1] as number) & 2) !== 0;
    const format = (packet[9] as number) >> 6;
    const track = packet[6] as number;
    let answer: Uint8Array | undefined;
    if (format === 0) answer = toc(track, isMsf, sectors);
    else if (format === 1) answer = sessionInfo();
    else if (format === 2) answer = fullToc(isMsf, sectors);
    if (answer === undefined) this.#fail(command, Sense.InvalidField);
    else this.#send(command, answer, Math.min(u16(packet, 7), answer.length));
  }

  // What does not.

  /** SPC-3 §6.4. */
  #inquiry(command: Command, packet: Uint8Array): void {
    const limit = packet[4] as number;
    if (((packet[1] as number) & 1) === 0) {
      const answer = this.#begin(36, [0x05, 0x80, 0, 0x21, 31]);
      putText(answer, 8, 'ACRN-DM', 8);
      putText(answer, 16, 'ACRN-DM DVD-ROM', 16);
      putText(answer, 32, '001', 4);
      this.#send(command, answer, Math.min(limit, 36));
    } else if (packet[2] === 0) {
      // Vital product data: the list of its pages, which is all there is.
      this.#send(command, this.#begin(5, [0x05, 0, 0, 1, 0]), Math.min(limit, 5));
    } else {
      this.#fail(command, Sense.InvalidField);
    }
  }

  /** SPC-3 §6.27. Compat: the sense stays until the next failure, as in the C device model. */
  #requestSense(command: Command, packet: Uint8Array): void {
    const answer = this.#begin(ANSWER_BYTES, [0xf0, 0, this.#sense.key, 0, 0, 0, 0, 10, 0, 0, 0, 0, this.#sense.code]);
    this.#send(command, answer, Math.min(packet[4] as number, ANSWER_BYTES));
  }

  /** MMC-6 §6.6: asked, not told; of the media class. */
  #eventStatus(command: Command, packet: Uint8Array): void {
    if (((packet[1] as number) & 1) === 0) {
      this.#fail(command, Sense.InvalidField);
      return;
    }
    const status = this.medium === undefined ? 0 : MEDIA_PRESENT;
    const answer = this.#begin(8, [0, 6, MEDIA_CLASS, 1 << MEDIA_CLASS, this.#event, status]);
    this.#event = MediaEvent.None;
    this.#send(command, answer, Math.min(u16(packet, 7), 8));
  }

  /** SPC-3 §6.10. */
  #modeSense(command: Command, packet: Uint8Array): void {
    const control = (packet[2] as number) >> 6;
    const page = modePages[(packet[2] as number) & 0x3f];
    if (control === 3) {
      this.#fail(command, Sense.SavingNotSupported);
    } else if (control !== 0 || page === undefined) {
      this.#fail(command, Sense.InvalidField);
    } else {
      const length = MODE_HEADER_BYTES + page.length;
      const answer = this.#begin(length, [0, length - 2, MODE_MEDIUM_TYPE]);
      answer.set(page, MODE_HEADER_BYTES);
      this.#send(command, answer, Math.min(u16(packet, 7), length));
    }
  }

  // Answers.

  #begin(length: number, start: readonly number[]): Uint8Array {
    this.#answer.fill(0, 0, length);
    this.#answer.set(start);
    return this.#answer;
  }

  #send(command: Command, answer: Uint8Array, length: number): void {
    this.#port.send(command, answer, length);
    this.#done(command);
  }

  #done(command: Command): void {
    setReason(command);
    this.#port.finish(command, READY, 0);
  }

  #fail(command: Command, sense: Sense): void {
    this.#sense = sense;
    setReason(command);
    this.#port.finish(command, FAILED, sense.key << 4);
  }
}

/** Compat: C puts the interrupt reason into the first LBA byte of the frame, where drivers by AHCI do not look for it. */
function setReason({ fis }: Command): void {
  fis[Fis.Lba0] = ((fis[Fis.Lba0] as number) & ~7) | REASON_DONE;
}

function u16(bytes: Uint8Array, at: number): number {
  return ((bytes[at] as number) << 8) | (bytes[at + 1] as number);
}

function u32(bytes: Uint8Array, at: number): number {
  return u16(bytes, at) * 0x1_0000 + u16(bytes, at + 2);
}

function putU32(bytes: Uint8Array, at: number, value: number): void {
  for (let i = 0; i < 4; i++) bytes[at + i] = (value >>> (24 - 8 * i)) & 0xff;
}

function putText(bytes: Uint8Array, at: number, text: string, length: number): void {
  for (let i = 0; i < length; i++) bytes[at + i] = i < text.length ? text.charCodeAt(i) : 0x20;
}
