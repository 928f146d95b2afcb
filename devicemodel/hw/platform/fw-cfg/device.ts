/**
 * QEMU's firmware configuration device: numbered items that a guest selects and reads byte by byte or by DMA, and a
 * directory of those that have names. Spec: QEMU docs/specs/fw_cfg.rst.
 */
import { type AccessSize, allOnes, type Gpa, hex } from '../../../core/address.ts';
import type { IoRegion } from '../../../core/device.ts';
import { GuestFault } from '../../../core/errors.ts';
import type { PlacedTable } from '../../../core/firmware/acpi-tables.ts';
import { device, integer, name, text } from '../../../core/firmware/aml.ts';
import { io, resourceTemplate } from '../../../core/firmware/aml-resources.ts';
import type { DeviceAml } from '../../../core/firmware/contribution.ts';
import { buildE820, type E820Entry as MapEntry } from '../../../core/firmware/e820.ts';
import type { IoBus, Registration } from '../../../core/io-bus.ts';
import { Layout } from '../../../core/layout.ts';
import type { Log } from '../../../core/log.ts';
import type { GuestMemory } from '../../../core/memory.ts';
import { addr, struct, u32 } from '../../../core/struct.ts';
import type { PlatformDevice } from '../platform-device.ts';
import { acpiFiles } from './acpi-files.ts';
import { contentOf, type FwCfgFile, MAX_FILE_BYTES } from './file.ts';

/** Ports, from the first: selector (16 bits, written), data (8 bits, read), DMA address (64 bits, big endian). */
const Port = { base: 0x510, selector: 0, data: 1, dmaHigh: 4, dmaLow: 8, count: 12 } as const;
/** Items that have a fixed number. */
const Key = { signature: 0, id: 1, ramSize: 3, cpuCount: 5, maxCpus: 0xf, directory: 0x19, firstFile: 0x20 } as const;
const SIGNATURE = 'QEMU';
/** What a read of the DMA address gives where there is DMA: "QEMU CFG". */
const DMA_SIGNATURE = { high: 0x5145_4d55, low: 0x2043_4647 } as const;
/** Traditional interface and DMA. */
const FEATURES = 3;
const DMA_BYTES = 16;
const DmaControl = { error: 1, read: 2, skip: 4, select: 8, write: 16 } as const;
const DIRECTORY_ENTRY_BYTES = 64;
/** The whole of the largest file, and a page. */
const MAX_DMA_BYTES = MAX_FILE_BYTES + 4096;
/** struct e820_entry. */
const E820Entry = struct({ base: addr, size: addr, type: u32 }, { packed: true });

interface NamedFile {
  readonly name: string;
  readonly content: Uint8Array;
}

export interface FwCfgEnv {
  readonly log: Log;
  readonly machine: {
    readonly memory: GuestMemory;
    readonly lowRamBytes: number;
    readonly highRamBytes: number;
    readonly vcpuCount: number;
    readonly firmwareConsole?: number | undefined;
  };
}

export class FwCfg implements PlatformDevice, IoRegion {
  readonly #files: readonly FwCfgFile[];
  readonly #env: FwCfgEnv;
  readonly #items = new Map<number, Uint8Array>();
  /** Contents of the user's files, as they were at the start. */
  #own: readonly NamedFile[] = [];
  #selected: Uint8Array = new Uint8Array(0);
  #offset = 0;
  #dmaHigh = 0;

  constructor(files: readonly FwCfgFile[], env: FwCfgEnv) {
    this.#files = files;
    this.#env = env;
  }

  attach(pio: IoBus): Registration[] {
    return [pio.register({ base: Port.base, size: Port.count, name: 'fw_cfg' }, this)];
  }

  /** @throws DmError for a file that cannot be read any more. */
  start(): void {
    const { machine } = this.#env;
    const items = this.#items;
    items.set(Key.signature, new TextEncoder().encode(SIGNATURE));
    items.set(Key.id, little(4, FEATURES));
    items.set(Key.ramSize, little(8, machine.lowRamBytes + machine.highRamBytes));
    items.set(Key.cpuCount, little(2, machine.vcpuCount));
    items.set(Key.maxCpus, little(2, machine.vcpuCount));
    this.#own = this.#files.map((file) => ({ name: file.name, content: contentOf(file) }));
    this.#list([]);
    this.reset();
  }

  /** Firmware puts ACPI tables where it has room for them. */
  tablesWritten(acpi: readonly PlacedTable[]): void {
    this.#list(acpiFiles(acpi));
  }

  /** Items for all files, and the directory of them. */
  #list(more: readonly NamedFile[]): void {
    const { machine } = this.#env;
    const items = this.#items;
    const map = buildE820(machine)
      .flatMap(withoutBars)
      .filter((entry) => entry.size > 0);
    const { firmwareConsole: port } = machine;
    const files = [
      { name: 'etc/e820', content: Buffer.concat(map.map((entry) => E820Entry.encode(entry))) as Uint8Array },
      ...(port === undefined ? [] : [{ name: 'etc/sercon-port', content: little(2, port) }]),
      ...more,
      ...this.#own,
    ].sort((a, b) => (a.name < b.name ? -1 : 1));
    const directory = new Uint8Array(4 + DIRECTORY_ENTRY_BYTES * files.length);
    const view = new DataView(directory.buffer);
    view.setUint32(0, files.length);
    for (const [i, file] of files.entries()) {
      const at = 4 + DIRECTORY_ENTRY_BYTES * i;
      view.setUint32(at, file.content.length);
      view.setUint16(at + 4, Key.firstFile + i);
      directory.set(new TextEncoder().encode(file.name), at + 8);
      items.set(Key.firstFile + i, file.content);
    }
    items.set(Key.directory, directory);
  }

  reset(): void {
    this.#select(Key.signature);
    this.#dmaHigh = 0;
  }

  /** The object that Linux's qemu_fw_cfg looks for. */
  aml(): DeviceAml[] {
    const resources = resourceTemplate([io(Port.base, Port.count)]);
    // Present, but not shown to users.
    const body = [name('_HID', text('QEMU0002')), name('_STA', integer(0xb)), name('_CRS', resources)];
    return [{ place: 'system-bus', aml: device('FWCF', body) }];
  }

  read(offset: number, size: AccessSize): number {
    if (offset === Port.data && size === 1) return this.#next();
    if (offset === Port.dmaHigh && size === 4) return swapped(DMA_SIGNATURE.high);
    if (offset === Port.dmaLow && size === 4) return swapped(DMA_SIGNATURE.low);
    // Compat: with QEMU the selector cannot be read.
    return offset === Port.selector ? 0 : allOnes(size);
  }

  write(offset: number, size: AccessSize, value: number): void {
    if (offset === Port.selector && size === 2) this.#select(value);
    else if (offset === Port.dmaHigh && size === 4) this.#dmaHigh = swapped(value);
    else if (offset === Port.dmaLow && size === 4) {
      const at = this.#dmaHigh * 0x1_0000_0000 + swapped(value);
      this.#dmaHigh = 0;
      this.#dma(at);
    }
  }

  #select(key: number): void {
    this.#selected = this.#items.get(key) ?? new Uint8Array(0);
    this.#offset = 0;
  }

  /** Behind its end an item reads zero. */
  #next(): number {
    const byte = this.#selected[this.#offset];
    if (byte === undefined) return 0;
    this.#offset++;
    return byte;
  }

  /** A command the guest has put at this address, and its answer in the same place. */
  #dma(at: Gpa): void {
    const { memory } = this.#env.machine;
    try {
      const command = memory.read(at, DMA_BYTES);
      const view = new DataView(command.buffer, command.byteOffset);
      const ok = this.#carryOut(view.getUint32(0), view.getUint32(4), Number(view.getBigUint64(8)));
      memory.write(at, Uint8Array.of(0, 0, 0, ok ? 0 : DmaControl.error));
    } catch (error) {
      if (!(error instanceof GuestFault)) throw error;
      this.#env.log.guest(() => `fw_cfg: a command at ${hex(at)}, which is not RAM`);
    }
  }

  /** @returns false for what cannot be done. */
  #carryOut(control: number, length: number, target: Gpa): boolean {
    if ((control & DmaControl.select) !== 0) this.#select(control >>> 16);
    if ((control & DmaControl.read) !== 0) return this.#copy(target, length);
    // No item can be written.
    if ((control & DmaControl.write) !== 0) return false;
    if ((control & DmaControl.skip) !== 0) this.#offset = Math.min(this.#offset + length, this.#selected.length);
    return true;
  }

  #copy(target: Gpa, length: number): boolean {
    const { memory } = this.#env.machine;
    if (length > MAX_DMA_BYTES || !memory.contains(target, length)) return false;
    const data = this.#selected.subarray(this.#offset, this.#offset + length);
    memory.write(target, data);
    if (data.length < length) memory.write(target + data.length, new Uint8Array(length - data.length));
    this.#offset += data.length;
    return true;
  }
}

/** Kernels leave no BAR in what is reserved: where firmware moves BARs to is not. */
function withoutBars(entry: MapEntry): MapEntry[] {
  const { pciMem32Firmware: bars } = Layout;
  const end = entry.base + entry.size;
  if (entry.base > bars.base || end < bars.end) return [entry];
  return [
    { ...entry, size: bars.base - entry.base },
    { ...entry, base: bars.end, size: end - bars.end },
  ];
}

function little(sizeBytes: number, value: number): Uint8Array {
  const out = new Uint8Array(8);
  new DataView(out.buffer).setBigUint64(0, BigInt(value), true);
  return out.subarray(0, sizeBytes);
}

/** Ports are little endian, these registers big. */
function swapped(value: number): number {
  return (((value & 0xff) << 24) | ((value & 0xff00) << 8) | ((value >>> 8) & 0xff00) | (value >>> 24)) >>> 0;
}
