/**
 * One port (AHCI 1.3.1 §3.3, §5.3): registers, the command list, and the way of a command from its slot to the drive
 * and back. A command whose image request is under way stays `active` until the request is done, whatever the guest does
 * meanwhile: a port that is stopped or reset abandons it, and begins anew only when all that was abandoned has come back,
 * since guest memory is the storage's until then.
 */
import { type CounterPage, DiskCount, newPage, tally, tallyRead, tallyWrite } from '../../../core/counters.ts';
import type { GuestRam } from '../../../core/guest-buffers.ts';
import { Errno } from '../../../core/host/errno.ts';
import type { Log } from '../../../core/log.ts';
import { ImageOp, type ImageQueue } from '../../storage/image-queue.ts';
import { Command, type CommandOwner } from './command.ts';
import type { Drive, DrivePort } from './drive.ts';
import { FisReceiver, isError, SDB_STATUS } from './fis.ts';
import {
  AtaStatus,
  COMMAND_LIST_BYTES,
  CONTROL_SRST,
  FIS_ALIGNMENT_MASK,
  Fis,
  FisFlag,
  FisType,
  Header,
  LIST_ALIGNMENT_MASK,
  Link,
  NO_DRIVE_STATUS,
  PORT_INTERRUPTS,
  PortCmd,
  PortInt,
  PortReg,
  Signature,
  SLOTS,
} from './registers.ts';

const TWO_32 = 0x1_0000_0000;

/** The controller, as its ports see it. */
export interface PortHost {
  readonly ram: GuestRam;
  readonly log: Log;
  /** A bit of PxIS became set, or PxIS or PxIE were written. */
  portInterrupt(port: Port): void;
  /** Everything the port had abandoned has come back. */
  portQuiet(): void;
}

export class Port implements DrivePort, CommandOwner {
  readonly index: number;
  readonly #host: PortHost;
  readonly #frames: FisReceiver;
  readonly #counts: CounterPage;
  readonly #commands: Array<Command | undefined> = new Array(SLOTS).fill(undefined);
  #drive: Drive | undefined;
  #queue: ImageQueue | undefined;

  // Registers.
  #clb = 0;
  #clbu = 0;
  #fb = 0;
  #fbu = 0;
  /** PxIS and PxIE, for the controller. */
  is = 0;
  ie = 0;
  #cmd = 0;
  #tfd = NO_DRIVE_STATUS;
  #sig: number = Signature.None;
  #ssts = 0;
  #sctl = 0;
  #serr = 0;
  #sact = 0;
  #ci = 0;
  #sntf = 0;

  // What is behind them.
  /** Where the command list is while ST is set; undefined: not in RAM. */
  #list: number | undefined;
  /** The next slot to look at. */
  #slot = 0;
  /** Commands whose image requests are not done. */
  #active = 0;
  /** An error was reported: no command is begun until ST is cleared (§6.2.2). */
  #isHalted = false;
  /** Commands were abandoned and have not all come back. */
  #isDraining = false;
  /** The reset ends when they have. */
  #isResetting = false;
  /** The SRST bit was set by the latest control frame. */
  #isSoftReset = false;
  #isIssuing = false;

  /** @param counts of kind `disk`; default: nobody looks. */
  constructor(index: number, host: PortHost, counts: CounterPage = newPage('disk')) {
    this.#counts = counts;
    this.index = index;
    this.#host = host;
    this.#frames = new FisReceiver(host.ram);
  }

  /** Before anything else, for a port with a drive. */
  attach(drive: Drive): void {
    this.#drive = drive;
  }

  get drive(): Drive | undefined {
    return this.#drive;
  }

  /** Where requests of the drive go; undefined: it has no medium. Only while nothing is active. */
  set queue(queue: ImageQueue | undefined) {
    this.#queue = queue;
  }

  /** Whether no request is under way. */
  get isQuiet(): boolean {
    return this.#active === 0;
  }

  // Registers.

  /** @returns 32 bits. */
  read(reg: number): number {
    switch (reg) {
      case PortReg.Clb:
        return this.#clb;
      case PortReg.Clbu:
        return this.#clbu;
      case PortReg.Fb:
        return this.#fb;
      case PortReg.Fbu:
        return this.#fbu;
      case PortReg.Is:
        return this.is >>> 0;
      case PortReg.Ie:
        return this.ie >>> 0;
      case PortReg.Cmd:
        return this.#cmd >>> 0;
      case PortReg.Tfd:
        return this.#tfd;
      case PortReg.Sig:
        return this.#sig;
      case PortReg.Ssts:
        return this.#ssts;
      case PortReg.Sctl:
        return this.#sctl;
      case PortReg.Serr:
        return this.#serr;
      case PortReg.Sact:
        return this.#sact >>> 0;
      case PortReg.Ci:
        return this.#ci >>> 0;
      case PortReg.Sntf:
        return this.#sntf;
      default:
        return 0;
    }
  }

  write(reg: number, value: number): void {
    switch (reg) {
      case PortReg.Clb:
        this.#clb = value;
        break;
      case PortReg.Clbu:
        this.#clbu = value;
        break;
      case PortReg.Fb:
        this.#fb = value;
        break;
      case PortReg.Fbu:
        this.#fbu = value;
        break;
      case PortReg.Is:
        this.is &= ~value;
        this.#host.portInterrupt(this);
        break;
      case PortReg.Ie:
        this.ie = value & PORT_INTERRUPTS;
        this.#host.portInterrupt(this);
        break;
      case PortReg.Cmd:
        this.#writeCommand(value);
        break;
      case PortReg.Sctl:
        this.#writeControl(value);
        break;
      case PortReg.Serr:
        this.#serr &= ~value;
        break;
      case PortReg.Sact:
        this.#sact |= value;
        break;
      case PortReg.Ci:
        this.#ci |= value;
        this.#issue();
        break;
      case PortReg.Sntf:
        this.#sntf &= ~value;
        break;
      default:
        break;
    }
  }

  /** PxCMD (§3.3.7). */
  #writeCommand(value: number): void {
    this.#cmd = (this.#cmd & ~PortCmd.Writable) | (value & PortCmd.Writable);
    if ((value & PortCmd.Start) !== 0) {
      this.#cmd |= PortCmd.ListRunning;
      const list = ((this.#clb & LIST_ALIGNMENT_MASK) >>> 0) + this.#clbu * TWO_32;
      this.#list = this.#host.ram.contains(list, COMMAND_LIST_BYTES) ? list : undefined;
    } else {
      this.#stop();
    }
    if ((value & PortCmd.FisReceive) !== 0) {
      this.#cmd |= PortCmd.FisReceiveRunning;
      this.#frames.receiveAt(((this.#fb & FIS_ALIGNMENT_MASK) >>> 0) + this.#fbu * TWO_32);
    } else {
      this.#cmd &= ~PortCmd.FisReceiveRunning;
      this.#frames.receiveAt(undefined);
    }
    if ((value & PortCmd.ListOverride) !== 0) {
      this.#tfd &= ~(AtaStatus.Busy | AtaStatus.DataRequest);
      this.#cmd &= ~PortCmd.ListOverride;
    }
    this.#cmd &= ~PortCmd.InterfaceControl;
    this.#issue();
  }

  /** PxSCTL (§3.3.11): COMRESET, which needs ST to be 0. */
  #writeControl(value: number): void {
    this.#sctl = value;
    if ((value & Link.DetReset) !== 0 && (this.#cmd & PortCmd.Start) === 0) this.#reset();
  }

  // Stopping and resetting.

  /** ST is 0 (§10.3.2): CI and SACT go, and CR when nothing is under way any more. */
  #stop(): void {
    this.#abandon();
    this.#isHalted = false;
    if (this.#isDraining) return;
    this.#stopped();
  }

  #stopped(): void {
    this.#slot = 0;
    this.#cmd &= ~(PortCmd.ListRunning | PortCmd.CurrentSlot);
  }

  #abandon(): void {
    this.#ci = 0;
    this.#sact = 0;
    this.#abandonActive();
  }

  /** Nobody waits any more for what is under way. */
  #abandonActive(): void {
    if (this.#active === 0) return;
    this.#isDraining = true;
    for (const command of this.#commands) {
      if (command !== undefined && (this.#active & command.bit) !== 0) command.isAbandoned = true;
    }
  }

  /** COMRESET, or the end of a software reset: the drive shows its signature. */
  #reset(): void {
    this.#serr = 0;
    this.#sact = 0;
    const drive = this.#drive;
    if (drive === undefined) return;
    this.#ci &= ~this.#active;
    this.#abandonActive();
    this.#isResetting = true;
    // Storage may take its time: until then the drive is busy, as one that spins up.
    this.#tfd = AtaStatus.Busy;
    if (!this.#isDraining) this.#endReset(drive);
  }

  #endReset(drive: Drive): void {
    this.#isResetting = false;
    this.#isSoftReset = false;
    const speed = (this.#sctl & Link.SpeedMask) !== 0 ? this.#sctl & Link.SpeedMask : Link.Generation3;
    this.#ssts = Link.DetPresent | Link.Active | speed;
    drive.linkSpeed = speed;
    drive.reset();
    this.#sig = drive.signature;
    this.#tfd = drive.resetStatus | (1 << 8);
    if (this.#frames.isReceiving) this.#frames.signature(drive.isAtapi);
  }

  /** HBA reset (§10.4.3). @param isPowerOn everything else goes, too. */
  hbaReset(isPowerOn: boolean): void {
    this.is = 0;
    this.ie = 0;
    this.#abandon();
    this.#cmd = PortCmd.SpinUp | PortCmd.PowerOn | (this.#drive === undefined ? 0 : PortCmd.ColdPresence);
    this.#frames.receiveAt(undefined);
    this.#list = undefined;
    this.#slot = 0;
    this.#isHalted = false;
    this.#isSoftReset = false;
    this.#sctl = 0;
    this.#sntf = 0;
    if (isPowerOn) {
      this.#clb = 0;
      this.#clbu = 0;
      this.#fb = 0;
      this.#fbu = 0;
      this.#drive?.powerOn();
    }
    this.#reset();
  }

  /** All that was abandoned has come back. */
  #drained(): void {
    this.#isDraining = false;
    if ((this.#cmd & PortCmd.Start) === 0) this.#stopped();
    if (this.#isResetting && this.#drive !== undefined) this.#endReset(this.#drive);
    this.#host.portQuiet();
    this.#issue();
  }

  // Commands.

  /** Begin what is in CI and not begun, slot after slot (§5.3.2): until the drive is busy or an error waits for software. */
  #issue(): void {
    if (this.#isIssuing || this.#drive === undefined) return;
    this.#isIssuing = true;
    while (
      (this.#cmd & PortCmd.Start) !== 0 &&
      !this.#isHalted &&
      !this.#isDraining &&
      (this.#ci & ~this.#active) !== 0 &&
      (this.#tfd & (AtaStatus.Busy | AtaStatus.DataRequest)) === 0
    ) {
      while ((this.#ci & ~this.#active & (1 << this.#slot)) === 0) this.#slot = (this.#slot + 1) % SLOTS;
      const slot = this.#slot;
      this.#cmd = (this.#cmd & ~PortCmd.CurrentSlot) | (slot << PortCmd.CurrentSlotShift);
      this.#begin(slot, this.#drive);
      this.#slot = (slot + 1) % SLOTS;
    }
    this.#isIssuing = false;
    this.#queue?.kick();
  }

  #begin(slot: number, drive: Drive): void {
    const command = (this.#commands[slot] ??= new Command(slot, this.#host.ram, this));
    if (this.#list === undefined || command.fetch(this.#list + slot * Header.Bytes) !== 'ok') {
      this.#hostBusFatal(slot, 'the command list or table is not in memory');
      return;
    }
    const { fis } = command;
    if (fis[Fis.Type] !== FisType.RegisterH2d) {
      this.#hostBusFatal(slot, `a command frame of type ${fis[Fis.Type]}`);
      return;
    }
    if (((fis[Fis.Flags] as number) & FisFlag.Command) === 0) {
      this.#control((fis[Fis.Control] as number) & CONTROL_SRST);
      this.#ci &= ~command.bit;
      return;
    }
    this.#tfd |= AtaStatus.Busy;
    drive.execute(command);
  }

  /** §6.1.1: nothing goes on until software has stopped the port. */
  #hostBusFatal(slot: number, why: string): void {
    this.#host.log.guest(() => `port ${this.index} slot ${slot}: ${why}`);
    this.#isHalted = true;
    this.#raise(PortInt.HostBusFatal);
  }

  /** A control frame: software reset begins, or ends (§10.4.1). */
  #control(srst: number): void {
    if (srst !== 0) {
      this.#isSoftReset = true;
    } else if (this.#isSoftReset) {
      this.#isSoftReset = false;
      this.#reset();
    }
  }

  #raise(bits: number): void {
    if ((~this.is & bits) === 0) return;
    this.is |= bits;
    this.#host.portInterrupt(this);
  }

  // What the drive asks for.

  finish(command: Command, status: number, error: number): void {
    this.#tfd = status | (error << 8);
    if (!isError(status)) this.#ci &= ~command.bit;
    if (this.#frames.isReceiving) this.#frames.registers(status, error, command.fis, true);
    this.#answered(status, PortInt.D2hRegister);
  }

  acceptQueued(command: Command): void {
    const status = AtaStatus.Ready | AtaStatus.SeekComplete;
    this.#tfd = status;
    this.#ci &= ~command.bit;
    if (this.#frames.isReceiving) this.#frames.registers(status, 0, undefined, false);
  }

  finishQueued(command: Command, status: number, error: number): void {
    // Compat: the error register is in the frame and in the NCQ error log only, as with the C device model.
    this.#tfd = (this.#tfd & ~SDB_STATUS) | (status & SDB_STATUS);
    const done = isError(status) ? 0 : command.bit;
    this.#sact &= ~done;
    if (this.#frames.isReceiving) this.#frames.deviceBits(status, error, done, FisFlag.Interrupt);
    this.#answered(status, PortInt.SetDeviceBits);
  }

  /**
   * An error halts the port. Compat: a frame that nobody receives makes no interrupt; but the error does, and halts: C
   * begins the same command again for ever.
   */
  #answered(status: number, interrupt: number): void {
    if (isError(status)) this.#isHalted = true;
    this.#raise((this.#frames.isReceiving ? interrupt : 0) | (isError(status) ? PortInt.TaskFileError : 0));
  }

  pioSetup(): void {
    if (this.#frames.isReceiving) this.#frames.pioSetup();
  }

  send(command: Command, data: Uint8Array, length: number): void {
    command.writeByteCount(command.send(data, length));
  }

  notify(): void {
    if (!this.#frames.isReceiving) return;
    this.#sntf |= 1;
    this.#frames.deviceBits(this.#tfd, 0, 0, FisFlag.Interrupt | FisFlag.Notification);
    this.#raise(PortInt.SetDeviceBits);
  }

  transfer(command: Command, op: ImageOp, offset: number, length: number, isDurable: boolean): void {
    command.rewind();
    command.op = op;
    command.offset = offset;
    command.left = length;
    command.isDurable = isDurable;
    this.#active |= command.bit;
    this.#nextPart(command);
  }

  order(command: Command, op: ImageOp, offset: number, length: number, isDurable: boolean): void {
    command.op = op;
    command.offset = offset;
    command.count = length;
    command.left = 0;
    command.isDurable = isDurable;
    this.#active |= command.bit;
    this.#submit(command);
  }

  #nextPart(command: Command): void {
    if (!command.gather(command.op === ImageOp.Read)) this.#over(command, Errno.EFAULT);
    else if (command.count === 0) {
      // Compat: no descriptors at all, and success.
      command.writeByteCount(command.moved);
      this.#over(command, 0);
    } else this.#submit(command);
  }

  #submit(command: Command): void {
    if (this.#queue === undefined) this.#over(command, Errno.ENXIO);
    else this.#queue.submit(command);
  }

  partDone(command: Command, errno: number): void {
    const isTransfer = command.op === ImageOp.Read || command.op === ImageOp.Write;
    if (errno === 0 && isTransfer) {
      if (command.op === ImageOp.Read) command.noteWritten();
      command.moved += command.count;
      command.offset += command.count;
      if (!command.isAbandoned) {
        command.writeByteCount(command.moved);
        // Compat: a table shorter than the transfer ends it, with success.
        if (command.left > 0 && command.hasMoreDescriptors) {
          this.#nextPart(command);
          return;
        }
      }
    }
    this.#over(command, errno);
  }

  /** Nothing of the command is under way any more. */
  #over(command: Command, errno: number): void {
    this.#active &= ~command.bit;
    this.#count(command, errno);
    if (command.isAbandoned) {
      command.isAbandoned = false;
      if (this.#active === 0) this.#drained();
      return;
    }
    this.#drive?.transferred(command, errno);
    this.#issue();
  }

  #count({ op, moved }: Command, errno: number): void {
    const counts = this.#counts;
    if (errno !== 0) {
      tally(counts, DiskCount.errors, 1);
    } else if (op === ImageOp.Read) {
      tallyRead(counts, moved);
    } else if (op === ImageOp.Write) {
      tallyWrite(counts, moved);
    } else {
      tally(counts, op === ImageOp.Flush ? DiskCount.flushes : DiskCount.discards, 1);
    }
  }
}
