/**
 * SATA host controller (AHCI 1.3.1), with the ids of an Intel ICH8: generic host control, interrupts, and the drives at
 * its ports. Registers are 32 bits wide.
 */
import { createHash } from 'node:crypto';
import type { BarIndex, BarSpec, ConfigSpace } from '../../../chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../../core/address.ts';
import type { InterruptLine } from '../../../core/device.ts';
import { ConfigError, StoppedError } from '../../../core/errors.ts';
import { GuestRam } from '../../../core/guest-buffers.ts';
import { leaveThreadBehind } from '../../../core/host/exit-hooks.ts';
import type { Log } from '../../../core/log.ts';
import { checkOptions } from '../../../core/options.ts';
import { unlessEnding } from '../../../core/power.ts';
import { powerOfTwoAtLeast } from '../../../core/units.ts';
import { openImageQueue } from '../../storage/open-queue.ts';
import { definePciDriver, type PciEnv } from '../driver.ts';
import type { EmulatedPciFunction, PciFunction, PciIdentity } from '../function.ts';
import { Msi, type MsiOptions } from '../msi.ts';
import { AtaDisk } from './ata-disk.ts';
import { AtapiDrive } from './atapi-drive.ts';
import { Medium, type OpenQueue } from './medium.ts';
import {
  type AhciOptions,
  ahciCdInfo,
  ahciInfo,
  type DriveImage,
  ImageSchema,
  type PortOptions,
  parseDriveImage,
} from './options.ts';
import { Port, type PortHost } from './port.ts';
import { CAP2_APST, Cap, Ghc, HbaReg, PORT_BYTES, PORTS_OFFSET, SLOTS, VERSION } from './registers.ts';

/** Serial ATA controller, AHCI interface. */
const Id: PciIdentity = { vendorId: 0x8086, deviceId: 0x2821, classCode: 0x010601 };
/** The BAR of the registers (§2.1.11). */
const ABAR = 5;
/** An ICH8 has this many; the guest sees at least them. */
const MIN_PORTS = 6;
const MAX_VECTORS = 16;
const ALL_PORTS = 0xffff_ffff;

/** What is at a port: the image of it, and the drive. */
interface Bay {
  readonly port: Port;
  readonly options: PortOptions;
  readonly drive: AtaDisk | AtapiDrive;
  medium: Medium | undefined;
  /** When the medium that was taken out last is gone. */
  leaving?: Promise<void>;
}

export class Ahci implements EmulatedPciFunction, PortHost {
  readonly backing = 'device-model';
  readonly identity = Id;
  readonly bars: readonly BarSpec[];
  readonly ram: GuestRam;
  readonly log: Log;
  readonly #env: PciEnv;
  readonly #openQueue: OpenQueue;
  readonly #line: InterruptLine;
  readonly #msi: Msi;
  readonly #ports: readonly Port[];
  readonly #bays: readonly Bay[];
  readonly #cap: number;
  /** Bit n: port n has a drive. */
  readonly #implemented: number;
  /** Taken out, and still read from. */
  readonly #leaving = new Set<Medium>();
  #isInterruptEnabled = false;
  #isResetting = false;
  #is = 0;
  #isLineUp = false;
  /** Drives whose image is being opened, while the guest runs. */
  readonly #opening = new Set<Bay>();
  #isStopped = false;

  /** @param openQueue other storage, for tests. */
  constructor(options: AhciOptions, env: PciEnv, openQueue: OpenQueue = openImageQueue) {
    this.#env = env;
    this.#openQueue = openQueue;
    this.log = env.log;
    this.ram = new GuestRam(env.memory.chunks);
    const count = Math.max(MIN_PORTS, options.ports.length);
    this.#ports = Array.from({ length: count }, (_, index) => {
      const hasDrive = options.ports[index]?.drive !== undefined;
      return new Port(index, this, hasDrive ? env.counters('disk', index).own : undefined);
    });
    this.#bays = options.ports.flatMap((port, index) => this.#bayOf(this.#ports[index] as Port, port));
    this.#implemented = this.#bays.reduce((bits, { port }) => bits | (1 << port.index), 0) >>> 0;
    this.#cap = capabilities(count);
    this.bars = [{ index: ABAR, kind: 'mem32', sizeBytes: powerOfTwoAtLeast(PORTS_OFFSET + count * PORT_BYTES) }];
    const vectors = powerOfTwoAtLeast(Math.min(count, MAX_VECTORS)) as MsiOptions['vectors'];
    this.#msi = new Msi({ vectors }, env.msi);
    this.#line = env.intx();
    this.#resetRegisters(true);
  }

  #bayOf(port: Port, options: PortOptions): Bay[] {
    if (options.drive === undefined) return [];
    const serial = serialOf(options.text === '' ? (options.image?.path ?? '') : options.text);
    const drive =
      options.drive === 'cd'
        ? new AtapiDrive(port, serial)
        : new AtaDisk(port, { serial, isWriteback: options.image?.writeback === true }, this.log);
    port.attach(drive);
    return [{ port, options, drive, medium: undefined }];
  }

  configure(config: ConfigSpace): void {
    this.#msi.attach(config);
  }

  // Life cycle.

  /** @throws HostError, ConfigError */
  async start(): Promise<void> {
    for (const bay of this.#bays) {
      const { image } = bay.options;
      if (image === undefined) continue;
      const medium = await unlessEnding(this.#open(bay, image), this.#env.end?.ending);
      if (bay.drive instanceof AtaDisk) bay.drive.insert(medium.io);
      else bay.drive.insertFirst(medium.io);
    }
  }

  async #open(bay: Bay, image: DriveImage): Promise<Medium> {
    const isCd = bay.options.drive === 'cd';
    // Nothing is ever written to a disc; so several may share its image.
    const medium = await Medium.open(isCd ? { ...image, ro: true } : image, this.ram, this.#env, this.#openQueue);
    if (this.#isStopped) {
      await medium.close();
      throw new StoppedError(`${image.path}: opened when the VM had ended`);
    }
    bay.medium = medium;
    bay.port.queue = medium.queue;
    return medium;
  }

  reset(): void {
    this.#resetRegisters(true);
  }

  get #media(): Medium[] {
    return [...this.#bays.flatMap(({ medium }) => medium ?? []), ...this.#leaving];
  }

  /** What is under way is finished; nothing new comes, since the guest stands still. @throws StorageHangError, asynchronously */
  settle(isFlushed: boolean): Promise<void> | undefined {
    const waits = this.#media.flatMap((medium) => medium.settle(isFlushed) ?? []);
    return waits.length === 0 ? undefined : Promise.all(waits).then(() => {});
  }

  async stop(): Promise<void> {
    this.#isStopped = true;
    if (this.#opening.size > 0) leaveThreadBehind();
    await this.settle(true);
    for (const bay of this.#bays) {
      const { medium } = bay;
      bay.port.queue = undefined;
      bay.medium = undefined;
      await medium?.close();
    }
  }

  // Registers.

  readBar(_index: BarIndex, offset: number, size: AccessSize): number {
    if ((offset & (size - 1)) !== 0) return 0;
    const value = this.#read(offset & ~3);
    return size === 4 ? value : (value >>> (8 * (offset & 3))) & allOnes(size);
  }

  #read(offset: number): number {
    if (offset >= PORTS_OFFSET) {
      const at = offset - PORTS_OFFSET;
      return this.#ports[Math.floor(at / PORT_BYTES)]?.read(at % PORT_BYTES) ?? 0;
    }
    switch (offset) {
      case HbaReg.Cap:
        return this.#cap;
      case HbaReg.Ghc:
        return (
          (Ghc.AhciEnable |
            (this.#isInterruptEnabled ? Ghc.InterruptEnable : 0) |
            (this.#isResetting ? Ghc.HbaReset : 0)) >>>
          0
        );
      case HbaReg.Is:
        return this.#is >>> 0;
      case HbaReg.Pi:
        return this.#implemented;
      case HbaReg.Vs:
        return VERSION;
      case HbaReg.Cap2:
        return CAP2_APST;
      default:
        return 0;
    }
  }

  /** §3: whole registers only. */
  writeBar(_index: BarIndex, offset: number, size: AccessSize, value: number): void {
    if (size !== 4 || (offset & 3) !== 0) return;
    if (offset >= PORTS_OFFSET) {
      const at = offset - PORTS_OFFSET;
      this.#ports[Math.floor(at / PORT_BYTES)]?.write(at % PORT_BYTES, value);
    } else if (offset === HbaReg.Ghc) {
      this.#writeControl(value);
    } else if (offset === HbaReg.Is) {
      this.#is &= ~value;
      this.#interruptAll(value);
    }
  }

  #writeControl(value: number): void {
    if ((value & Ghc.HbaReset) !== 0) {
      this.#resetRegisters(false);
      return;
    }
    this.#isInterruptEnabled = (value & Ghc.InterruptEnable) !== 0;
    this.#interruptAll(ALL_PORTS);
  }

  /** HBA reset (§10.4.3), or power-on. It is over when no port has a request under way. */
  #resetRegisters(isPowerOn: boolean): void {
    this.#isInterruptEnabled = false;
    this.#is = 0;
    this.#setLine(false);
    for (const port of this.#ports) port.hbaReset(isPowerOn);
    this.#isResetting = !this.#ports.every((port) => port.isQuiet);
  }

  portQuiet(): void {
    if (this.#isResetting) this.#isResetting = !this.#ports.every((port) => port.isQuiet);
  }

  // Interrupts.

  /** Which vector is the port's: those beyond the granted ones share the last (§10.6.2.3). */
  #vectorOf(index: number, granted: number): number {
    return Math.min(index, granted - 1);
  }

  portInterrupt(port: Port): void {
    if ((port.is & port.ie) === 0) return;
    const bit = 1 << port.index;
    const granted = this.#msi.enabledVectors;
    const isShared = this.#ports.length > granted && port.index >= granted - 1;
    const wasSet = (this.#is & bit) !== 0;
    this.#is |= bit;
    // One that shares its vector, or the line, interrupts when its bit becomes set.
    if (!this.#isInterruptEnabled || (isShared && wasSet)) return;
    if (granted > 0) this.#msi.signal(this.#vectorOf(port.index, granted));
    else this.#setLine(true);
  }

  /** IS or GHC were written. @param ports whose vectors are to be sent if anything is pending. */
  #interruptAll(ports: number): void {
    for (const port of this.#ports) if ((port.is & port.ie) !== 0) this.#is |= 1 << port.index;
    if (this.#is === 0 || !this.#isInterruptEnabled) {
      this.#setLine(false);
      return;
    }
    const granted = this.#msi.enabledVectors;
    if (granted === 0) {
      this.#setLine(true);
      return;
    }
    if ((this.#is & ports) === 0) return;
    for (let vector = 0; vector < granted; vector++) {
      const isOwn = this.#ports.length <= granted || vector < granted - 1;
      const mask = isOwn ? 1 << vector : ALL_PORTS << vector;
      if ((mask & ports) !== 0) this.#msi.signal(vector);
    }
  }

  #setLine(isUp: boolean): void {
    if (this.#isLineUp === isUp) return;
    this.#isLineUp = isUp;
    this.#line.set(isUp);
  }

  // Media.

  /**
   * Take the medium out of a CD drive, whatever the guest thinks of it, or put one in.
   * @param image undefined: leave the drive empty.
   * @returns when what was read from the old medium has come. @throws ConfigError, HostError, StorageHangError
   */
  async changeMedium(portIndex: number, image: DriveImage | undefined): Promise<void> {
    const bay = this.#bays.find(({ port }) => port.index === portIndex);
    if (bay === undefined) throw new ConfigError(`ahci: nothing is connected to port ${portIndex}`);
    const { drive, port, medium: old } = bay;
    if (drive instanceof AtaDisk) throw new ConfigError(`ahci: port ${portIndex} has a disk, which cannot be changed`);
    if (image !== undefined) {
      if (old !== undefined) throw new ConfigError(`ahci: port ${portIndex} has ${old.path} in it: eject it first`);
      if (this.#opening.has(bay)) throw new ConfigError(`ahci: port ${portIndex} is being given an image`);
      this.#opening.add(bay);
      try {
        // A command that reads from it in parts must not go on with the next one's.
        await bay.leaving;
        drive.changeMedium((await this.#open(bay, image)).io);
      } finally {
        this.#opening.delete(bay);
      }
      return;
    }
    bay.medium = undefined;
    port.queue = undefined;
    drive.changeMedium(undefined);
    if (old !== undefined) bay.leaving = this.#leave(old);
    await bay.leaving;
  }

  /** What is being read from the medium still comes. */
  async #leave(medium: Medium): Promise<void> {
    this.#leaving.add(medium);
    await medium.settle(false);
    await medium.close();
    this.#leaving.delete(medium);
  }
}

/** CAP (§3.1.1): what an ICH8 has, and more speed. */
function capabilities(ports: number): number {
  const bits =
    Cap.Addresses64 |
    Cap.NativeQueuing |
    Cap.SNotification |
    Cap.MechanicalPresence |
    Cap.StaggeredSpinUp |
    Cap.AggressiveLinkPower |
    Cap.ActivityLed |
    Cap.CommandListOverride |
    Cap.Generation3 |
    Cap.PioMultipleDrq |
    Cap.SlumberState |
    Cap.PartialState |
    Cap.ExternalSata;
  return (bits | ((SLOTS - 1) << Cap.CommandSlotsShift) | (ports - 1)) >>> 0;
}

/** Compat: the serial number is a digest of the port's option text, as C makes it, so that guests find their disks again. */
function serialOf(text: string): string {
  const MAX_DIGESTED = 256;
  const digest = createHash('md5').update(Buffer.from(text).subarray(0, MAX_DIGESTED)).digest('hex').toUpperCase();
  return `ACRN--${digest.slice(0, 4)}-${digest.slice(4, 8)}-${digest.slice(8, 12)}`;
}

/**
 * Take the medium out of a CD drive, or put one in.
 * @param text `PATH[,option…]`, as of a port on the command line; undefined: take it out.
 * @throws ConfigError, HostError, StorageHangError
 */
export async function changeMedium(fn: PciFunction | undefined, port: number, text: string | undefined): Promise<void> {
  if (!(fn instanceof Ahci)) {
    // Into a virtio-blk without a disk one can be put, out of it none can be taken.
    const wanted = text === undefined ? 'there is no ahci' : 'neither an ahci nor a virtio-blk is';
    throw new ConfigError(`${wanted} in that slot`);
  }
  const image = text === undefined ? undefined : checkOptions(ImageSchema, parseDriveImage('ahci', text));
  await fn.changeMedium(port, image);
}

const create = (options: AhciOptions, env: PciEnv) => new Ahci(options, env);

export const ahci = definePciDriver({ ...ahciInfo, create });
export const ahciCd = definePciDriver({ ...ahciCdInfo, create });
