/**
 * A function of the host in the guest. Its configuration space is the device's own, by VFIO, which keeps what is the
 * host's; what ACRN's hypervisor shows of its own in its place is answered here: BARs where the guest wants them, MSI and
 * MSI-X as the guest set them up, pin and line. Registers: PCI Local Bus 3.0 chapter 6.
 */
import {
  CapId,
  Cfg,
  Command,
  ConfigSpace,
  MULTIFUNCTION,
  Status,
} from '../../../devicemodel/chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Gsi } from '../../../devicemodel/core/address.ts';
import { HostError } from '../../../devicemodel/core/errors.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import type { VfioDevice, VfioRegion } from '../../../devicemodel/core/host/vfio.ts';
import { VfioRegionIndex } from '../../../devicemodel/core/host/vfio-abi.ts';
import type { PcidevAssignment } from '../../../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../../../devicemodel/core/log.ts';
import type { HostFunction, HostFunctionHost } from '../../embedded/host-functions.ts';
import { BAR_RANGE, FunctionBars, type OwnRegisters } from './bars.ts';
import { FunctionInterrupts, type InterruptRegisters } from './interrupts.ts';

const FIRST_CAPABILITY = 0x40;
const STANDARD_BYTES = 0x100;
const MAX_CAPABILITIES = 48;
const ROM_END = Cfg.ExpansionRom + 4;

/** Power management (PCI PM 1.2 §3.2.4), from the capability. */
const Power = { control: 4, stateMask: 3, d3: 3 } as const;
/** MSI (§6.8.1), from the capability. Data follows the address, which has one half or two. */
const Msi = { control: 2, address: 4, addressHigh: 8, enable: 1, is64: 1 << 7, hasMasks: 1 << 8 } as const;
/** Enable, and how many vectors. */
const MSI_WRITABLE = 0x71;
/** MSI-X (§6.8.2), from the capability. */
const Msix = { control: 2, table: 4, pending: 8, vectorsMask: 0x7ff, barMask: 7 } as const;
const MsixControl = { enable: 1 << 15, masked: 1 << 14 } as const;
const PENDING_BYTES_PER_QWORD = 8;
/**
 * Extended capabilities (PCI Express 4.0 §7.6.3) that are the host's: buses behind a function, functions that it makes,
 * sizes of its BARs. VFIO shows them and takes no writes.
 */
const HiddenExtended = { ari: 0x0e, srIov: 0x10, resizableBar: 0x15 } as const;
const hiddenExtended: readonly number[] = Object.values(HiddenExtended);
const EXTENDED_NEXT = 0xffc0_0000;
const DWORD_BYTES = 4;

export interface VfioFunctionParts {
  readonly assignment: PcidevAssignment;
  readonly device: VfioDevice;
  readonly host: HostFunctionHost;
  readonly log: Log;
  /** The descriptor is closed: whatever else goes with the function. */
  readonly onClosed: () => void;
}

export class VfioFunction implements HostFunction {
  readonly bdf: HostFunction['bdf'];
  readonly #device: VfioDevice;
  readonly #config: VfioRegion;
  readonly #onClosed: () => void;
  readonly #leavesRom: boolean;
  /** INTx of the device. A virtual function has none (SR-IOV 1.1 §3.4.1.18), nor have some parts of a chipset. */
  readonly #hasPin: boolean;
  /** By offset: headers of extended capabilities that the guest does not see, as a null capability with the same next. */
  readonly #hiddenHeaders: ReadonlyMap<number, number>;
  /** Bytes of the header and the capabilities that are answered here, and which bits of them the guest may change. */
  readonly #own = new Uint8Array(STANDARD_BYTES);
  readonly #isOwn = new Uint8Array(STANDARD_BYTES);
  readonly #writable = new Uint8Array(STANDARD_BYTES);
  readonly #view = new DataView(this.#own.buffer);
  /** Holds the BAR registers, and nothing else. */
  readonly #barRegisters = new ConfigSpace({ otherRegisters: 'read-only', wideIoBars: true });
  /** By id: where the first capability of this kind is. */
  readonly #capabilities: ReadonlyMap<number, number>;
  readonly #interrupts: FunctionInterrupts;
  readonly #bars: FunctionBars;

  /** Takes the device, also when it fails. @throws HostError */
  constructor({ assignment, device, host, log, onClosed }: VfioFunctionParts) {
    this.bdf = assignment.virtualBdf;
    this.#device = device;
    this.#onClosed = onClosed;
    this.#leavesRom = assignment.quirk === true;
    let interrupts: FunctionInterrupts | undefined;
    try {
      const config = device.region(VfioRegionIndex.config);
      const { eventfds } = host;
      if (config === undefined || eventfds === undefined) {
        throw new HostError('VFIO shows no configuration space of the function', Errno.ENODEV);
      }
      this.#config = config;
      this.#capabilities = this.#findCapabilities();
      this.#hiddenHeaders = this.#findHidden();
      this.#hasPin = this.#read(Cfg.InterruptPin, 1) !== 0;
      this.#setHeader(assignment);
      this.#setMsi();
      const tableVectors = this.#setMsix();
      const registers = () => this.#interruptRegisters();
      interrupts = new FunctionInterrupts({ device, host, eventfds, tableVectors, registers, log });
      this.#interrupts = interrupts;
      const own = this.#ownRegisters();
      this.#bars = new FunctionBars({ device, host, config: this.#barRegisters, initial: assignment.bars, own, log });
    } catch (error) {
      interrupts?.dispose();
      device.close();
      onClosed();
      throw error;
    }
    // As firmware leaves a function.
    this.#write(Cfg.Command, 2, this.#read(Cfg.Command, 2) | Command.IoSpace | Command.MemorySpace);
    this.#decode();
  }

  // ---- the hypervisor's side

  connectLine(gsi: Gsi): number {
    // VFIO has nothing to connect, and the guest sees that there is no pin.
    return this.#hasPin ? this.#interrupts.connectLine(gsi) : 0;
  }

  disconnectLine(): void {
    this.#interrupts.disconnectLine();
  }

  rearmLine(): void {
    this.#interrupts.rearmLine();
  }

  dispose(): void {
    // Out of the guest before it is anybody else's.
    this.#bars.dispose();
    this.#interrupts.dispose();
    this.#device.close();
    this.#onClosed();
  }

  // ---- the guest's side

  leaves(offset: number): boolean {
    return this.#leavesRom && offset >= Cfg.ExpansionRom && offset < ROM_END;
  }

  readConfig(offset: number, size: AccessSize): number {
    if (offset >= BAR_RANGE.from && offset < BAR_RANGE.to) return this.#barRegisters.read(offset, size);
    // PCI Express 4.0 §7.6.1: "no extended capabilities" is a first header of zero.
    if (offset + size > this.#config.sizeBytes) return offset < STANDARD_BYTES + 4 ? 0 : allOnes(size);
    const value = this.#read(offset, size);
    if (offset >= STANDARD_BYTES) {
      const header = this.#hiddenHeaders.get(offset & ~3);
      return header === undefined ? value : ((header >>> (8 * (offset & 3))) & allOnes(size)) >>> 0;
    }
    let mine = value;
    for (let i = 0; i < size; i++) {
      if (this.#isOwn[offset + i] === 0) continue;
      mine = (mine & ~(0xff << (8 * i))) | ((this.#own[offset + i] as number) << (8 * i));
    }
    return mine >>> 0;
  }

  writeConfig(offset: number, size: AccessSize, value: number): void {
    if (offset >= BAR_RANGE.from && offset < BAR_RANGE.to) {
      this.#barRegisters.write(offset, size, value);
      return;
    }
    if (offset + size > this.#config.sizeBytes) return;
    const isOwn = offset < STANDARD_BYTES && this.#isOwn.subarray(offset, offset + size).includes(1);
    if (isOwn) this.#writeOwn(offset, size, value);
    else if (this.#changesDecoding(offset)) this.#writeDecoding(offset, size, value);
    else this.#write(offset, size, value);
  }

  #writeOwn(offset: number, size: AccessSize, value: number): void {
    for (let i = 0; i < size; i++) {
      const at = offset + i;
      const byte = (value >>> (8 * i)) & 0xff;
      const mask = this.#writable[at] as number;
      if (this.#isOwn[at] === 0) this.#write(at, 1, byte);
      else this.#own[at] = ((this.#own[at] as number) & ~mask) | (byte & mask);
    }
    if (offset >= FIRST_CAPABILITY) this.#interrupts.update();
  }

  // ---- what it decodes

  #changesDecoding(offset: number): boolean {
    const power = this.#capabilities.get(CapId.PowerManagement);
    return (offset & ~3) === Cfg.Command || (power !== undefined && (offset & ~3) === power + Power.control);
  }

  /** Out of the guest before it stops to answer, back in the guest once it does. */
  #writeDecoding(offset: number, size: AccessSize, value: number): void {
    const isLow = (offset & 3) === 0;
    if (isLow && (offset === Cfg.Command || (value & Power.stateMask) === Power.d3)) {
      const isCommand = offset === Cfg.Command;
      this.#bars.stopDecoding(
        !isCommand || (value & Command.MemorySpace) === 0,
        !isCommand || (value & Command.IoSpace) === 0,
      );
    }
    this.#write(offset, size, value);
    this.#decode();
  }

  #decode(): void {
    const command = this.#read(Cfg.Command, 2);
    const isAwake = this.#isAwake();
    this.#bars.setDecoding(
      isAwake && (command & Command.MemorySpace) !== 0,
      isAwake && (command & Command.IoSpace) !== 0,
    );
  }

  #isAwake(): boolean {
    const power = this.#capabilities.get(CapId.PowerManagement);
    return power === undefined || (this.#read(power + Power.control, 2) & Power.stateMask) !== Power.d3;
  }

  // ---- interrupts

  #interruptRegisters(): InterruptRegisters {
    const msi = this.#capabilities.get(CapId.Msi);
    const msix = this.#capabilities.get(CapId.Msix);
    const control = msi === undefined ? 0 : this.#view.getUint16(msi + Msi.control, true);
    const tableControl = msix === undefined ? 0 : this.#view.getUint16(msix + Msix.control, true);
    return {
      msi: {
        isEnabled: (control & Msi.enable) !== 0,
        // No more than it has.
        count: 1 << Math.min((control >>> 1) & 7, (control >>> 4) & 7),
        ...this.#msiMessage(msi, control),
      },
      msix: {
        isEnabled: (tableControl & MsixControl.enable) !== 0,
        isMasked: (tableControl & MsixControl.masked) !== 0,
      },
    };
  }

  #msiMessage(at: number | undefined, control: number): { readonly address: number; readonly data: number } {
    if (at === undefined) return { address: 0, data: 0 };
    const is64 = (control & Msi.is64) !== 0;
    const low = this.#view.getUint32(at + Msi.address, true);
    const high = is64 ? this.#view.getUint32(at + Msi.addressHigh, true) : 0;
    return {
      address: high * 0x1_0000_0000 + low,
      data: this.#view.getUint16(at + Msi.addressHigh + (is64 ? 4 : 0), true),
    };
  }

  #ownRegisters(): OwnRegisters[] {
    const msix = this.#capabilities.get(CapId.Msix);
    const { table } = this.#interrupts;
    if (msix === undefined || table.vectors === 0) return [];
    const place = (register: number) => {
      const value = this.#read(msix + register, 4);
      return { bar: value & Msix.barMask, offset: (value & ~Msix.barMask) >>> 0 };
    };
    return [
      {
        ...place(Msix.table),
        sizeBytes: table.sizeBytes,
        read: (offset, size) => table.read(offset, size),
        write: (offset, size, value) => {
          const vector = table.write(offset, size, value);
          if (vector !== undefined) this.#interrupts.vectorChanged(vector);
        },
      },
      {
        ...place(Msix.pending),
        sizeBytes: Math.ceil(table.vectors / 64) * PENDING_BYTES_PER_QWORD,
        read: (offset, size) => this.#pendingBits(offset, size),
        write: () => {},
      },
    ];
  }

  #pendingBits(offset: number, size: AccessSize): number {
    let bits = 0;
    for (let bit = 0; bit < 8 * size; bit++) {
      const vector = 8 * offset + bit;
      if (vector < this.#interrupts.table.vectors && this.#interrupts.isPending(vector)) bits |= 1 << bit;
    }
    return bits >>> 0;
  }

  // ---- building

  #findCapabilities(): Map<number, number> {
    const found = new Map<number, number>();
    if ((this.#read(Cfg.Status, 2) & Status.CapabilitiesList) === 0) return found;
    let at = this.#read(Cfg.CapabilitiesPointer, 1) & ~3;
    for (let n = 0; n < MAX_CAPABILITIES && at >= FIRST_CAPABILITY; n++) {
      const id = this.#read(at, 1);
      if (!found.has(id)) found.set(id, at);
      at = this.#read(at + 1, 1) & ~3;
    }
    return found;
  }

  #findHidden(): Map<number, number> {
    const hidden = new Map<number, number>();
    const last = this.#config.sizeBytes - DWORD_BYTES;
    const seen = new Set<number>();
    for (let at = STANDARD_BYTES; at >= STANDARD_BYTES && at <= last && !seen.has(at); ) {
      seen.add(at);
      const header = this.#read(at, DWORD_BYTES);
      // Nobody answers.
      if (header === allOnes(DWORD_BYTES)) break;
      if (hiddenExtended.includes(header & 0xffff)) hidden.set(at, (header & EXTENDED_NEXT) >>> 0);
      at = (header >>> 20) & ~3;
    }
    return hidden;
  }

  #setHeader({ interruptPin, interruptLine, virtualBdf }: PcidevAssignment): void {
    this.#take(Cfg.ExpansionRom, [0, 0, 0, 0]);
    this.#take(Cfg.InterruptLine, [interruptLine], [0xff]);
    this.#take(Cfg.InterruptPin, [this.#hasPin ? interruptPin : 0]);
    // Others may be in the same slot of the guest, whatever the device is on the host.
    const layout = this.#read(Cfg.HeaderType, 1) & ~MULTIFUNCTION;
    this.#take(Cfg.HeaderType, [layout | (virtualBdf.function === 0 ? MULTIFUNCTION : 0)]);
  }

  /** Without masks of its own: what the guest masks it turns off. */
  #setMsi(): void {
    const at = this.#capabilities.get(CapId.Msi);
    if (at === undefined) return;
    const control = this.#read(at + Msi.control, 2) & ~Msi.hasMasks & ~MSI_WRITABLE;
    this.#take(at + Msi.control, [control & 0xff, control >>> 8], [MSI_WRITABLE, 0]);
    this.#take(at + Msi.address, [0, 0, 0, 0], [0xfc, 0xff, 0xff, 0xff]);
    const is64 = (control & Msi.is64) !== 0;
    if (is64) this.#take(at + Msi.addressHigh, [0, 0, 0, 0], [0xff, 0xff, 0xff, 0xff]);
    this.#take(at + Msi.addressHigh + (is64 ? 4 : 0), [0, 0], [0xff, 0xff]);
  }

  /** @returns how many vectors its table has. */
  #setMsix(): number {
    const at = this.#capabilities.get(CapId.Msix);
    if (at === undefined) return 0;
    const control = this.#read(at + Msix.control, 2) & ~MsixControl.enable & ~MsixControl.masked;
    this.#take(
      at + Msix.control,
      [control & 0xff, control >>> 8],
      [0, (MsixControl.enable | MsixControl.masked) >>> 8],
    );
    return (control & Msix.vectorsMask) + 1;
  }

  /** These bytes are answered here. @param writable missing: the guest may not change them. */
  #take(at: number, bytes: readonly number[], writable: readonly number[] = []): void {
    this.#own.set(bytes, at);
    this.#isOwn.fill(1, at, at + bytes.length);
    this.#writable.set(writable, at);
  }

  #read(offset: number, size: AccessSize): number {
    return this.#device.read(this.#config, offset, size);
  }

  #write(offset: number, size: AccessSize, value: number): void {
    this.#device.write(this.#config, offset, size, value);
  }
}
