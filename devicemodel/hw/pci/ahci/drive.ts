/** What is behind a port, and what the port does for it. */
import type { ImageIo } from '../../storage/image-io.ts';
import type { ImageOp } from '../../storage/image-queue.ts';
import type { Command } from './command.ts';

/** The port, as its drive sees it. */
export interface DrivePort {
  /** The command is over: registers to the host, with an interrupt. */
  finish(command: Command, status: number, error: number): void;
  /** A queued command was taken (SATA 3.2 §13.6): the next may come. */
  acceptQueued(command: Command): void;
  /** A queued command is over: its bit in PxSACT goes, with an interrupt. */
  finishQueued(command: Command, status: number, error: number): void;
  /** Data are sent by PIO: the frame that says so. */
  pioSetup(): void;
  /** Give data to the guest, and say in PRDBC how much had room. */
  send(command: Command, data: Uint8Array, length: number): void;
  /**
   * Move data between the image and the command's memory; `transferred` is called when that is over.
   * @param offset byte in the disk. The caller has checked that all of it is inside.
   */
  transfer(command: Command, op: ImageOp, offset: number, length: number, isDurable: boolean): void;
  /** A flush or a discard, which have no data: `transferred` is called when it is over. */
  order(command: Command, op: ImageOp, offset: number, length: number, isDurable: boolean): void;
  /** A notification from the drive that the host did not ask for (SATA 3.2 §13.7). */
  notify(): void;
}

export interface Drive {
  readonly isAtapi: boolean;
  /** The image; undefined: no medium. */
  readonly io: ImageIo | undefined;
  /** PxSIG and PxTFD after a reset. */
  readonly signature: number;
  readonly resetStatus: number;
  /** Carry a command out. It ends by one of the port's ways to finish it, now or later. */
  execute(command: Command): void;
  /** A transfer or an order of a command is over. @param errno 0, or what went wrong with the image or the memory. */
  transferred(command: Command, errno: number): void;
  /** COMRESET, software reset, HBA reset. */
  reset(): void;
  /** The machine is reset: what outlives the others goes, too. */
  powerOn(): void;
  /** The link has this speed, in bits 7:4. */
  linkSpeed: number;
}
