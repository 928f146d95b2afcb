/** A CD drive behind a port: the ATA commands that carry packets, and the medium, which can be changed. */
import type { ImageIo } from '../../storage/image-io.ts';
import { Ata, FAILED, READY, servePowerCommand } from './ata-commands.ts';
import { transferMode } from './ata-disk.ts';
import { PacketCommands } from './atapi-commands.ts';
import type { Command } from './command.ts';
import type { Drive, DrivePort } from './drive.ts';
import { IDENTIFY_BYTES, identifyPacket, POWER_ON_MODE, type TransferMode } from './identify.ts';
import { AtaError, AtaStatus, Fis, Link, Signature } from './registers.ts';

/** Subcommands of SET FEATURES that mean something to a drive without a cache. */
const Feature = { SetTransferMode: 0x03, EnableSata: 0x10, DisableSata: 0x90 } as const;
const otherFeatures: readonly number[] = [0x02, 0x55, 0x82, 0xaa];
/** Of EnableSata: say by yourself that the medium changed. */
const SATA_NOTIFICATION = 0x05;
const MAX_MULTIPLE = 128;

export class AtapiDrive implements Drive {
  readonly isAtapi = true;
  readonly signature = Signature.Atapi;
  readonly resetStatus = AtaStatus.SeekComplete | AtaStatus.DeviceFault;
  readonly #port: DrivePort;
  readonly #serial: string;
  readonly #packets: PacketCommands;
  readonly #block = new Uint8Array(IDENTIFY_BYTES);
  linkSpeed: number = Link.Generation3;
  #mode: TransferMode = POWER_ON_MODE;
  #notifies = false;

  constructor(port: DrivePort, serial: string) {
    this.#port = port;
    this.#serial = serial;
    this.#packets = new PacketCommands(port);
  }

  get io(): ImageIo | undefined {
    return this.#packets.medium;
  }

  /** The medium that is in the drive from the start. */
  insertFirst(medium: ImageIo): void {
    this.#packets.medium = medium;
  }

  /** Put a medium in, or take it out. Only while no command is under way. */
  changeMedium(medium: ImageIo | undefined): void {
    this.#packets.changeMedium(medium);
    if (this.#notifies) this.#port.notify();
  }

  reset(): void {
    this.#mode = POWER_ON_MODE;
    this.#notifies = false;
  }

  powerOn(): void {
    this.#packets.powerOn();
  }

  execute(command: Command): void {
    const { fis } = command;
    switch (command.code) {
      case Ata.Packet:
        this.#packets.execute(command);
        break;
      case Ata.IdentifyPacketDevice:
        identifyPacket({ serial: this.#serial, mode: this.#mode, linkSpeed: this.linkSpeed }, this.#block);
        this.#port.pioSetup();
        this.#port.send(command, this.#block, IDENTIFY_BYTES);
        this.#port.finish(command, READY, 0);
        break;
      case Ata.SetFeatures:
        this.#setFeatures(command);
        break;
      case Ata.SetMultiple:
        this.#end(command, isMultiple(fis[Fis.Count] as number));
        break;
      case Ata.FlushCache:
      case Ata.FlushCacheExt:
        this.#port.finish(command, READY, 0);
        break;
      default:
        // Also commands of disks, which C carries out on the image.
        if (!servePowerCommand(this.#port, command)) this.#end(command, false);
        break;
    }
  }

  transferred(command: Command, errno: number): void {
    this.#packets.transferred(command, errno);
  }

  #setFeatures(command: Command): void {
    const { fis } = command;
    const feature = fis[Fis.Features] as number;
    const count = fis[Fis.Count] as number;
    let isKnown = otherFeatures.includes(feature);
    if (feature === Feature.SetTransferMode) {
      this.#mode = transferMode(count) ?? this.#mode;
      isKnown = true;
    } else if ((feature === Feature.EnableSata || feature === Feature.DisableSata) && count === SATA_NOTIFICATION) {
      this.#notifies = feature === Feature.EnableSata;
      isKnown = true;
    }
    this.#end(command, isKnown);
  }

  #end(command: Command, isWell: boolean): void {
    this.#port.finish(command, isWell ? READY : FAILED, isWell ? 0 : AtaError.Abort);
  }
}

function isMultiple(count: number): boolean {
  return count <= MAX_MULTIPLE && (count & (count - 1)) === 0;
}
