/**
 * Modern window (Virtio 1.2 §4.1.4): common configuration, ISR, device configuration and notification in one BAR, the
 * capabilities that name them, and access to them through configuration space.
 */
import { type BarIndex, CapId, type ConfigSpace } from '../../../../chips/pci-config-space.ts';
import { type AccessSize, allOnes } from '../../../../core/address.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import { LEGACY_BAR, NOTIFY_MULTIPLIER, type StructureKind, structureKinds } from './layout.ts';
import { NO_VECTOR, Status } from './registers.ts';
import type { VirtioRegisters } from './window.ts';

/** §4.1.4, cfg_type. */
const CfgType = { Common: 1, Notify: 2, Isr: 3, Device: 4, Pci: 5 } as const;
const cfgTypes: Readonly<Record<StructureKind, number>> = {
  common: CfgType.Common,
  isr: CfgType.Isr,
  device: CfgType.Device,
  notify: CfgType.Notify,
};

/** Ring addresses while the driver writes them, halves as it does. */
interface RingRegisters {
  descLow: number;
  descHigh: number;
  availLow: number;
  availHigh: number;
  usedLow: number;
  usedHigh: number;
}

type RingField = keyof RingRegisters;

interface CommonField {
  readonly size: AccessSize;
  read(w: ModernWindow): number;
  write?(w: ModernWindow, value: number): void;
}

function ringField(field: RingField): CommonField {
  return {
    size: 4,
    read: (w) => w.ring?.[field] ?? 0,
    write: (w, value) => {
      if (w.ring !== undefined && w.isQueueOpen) w.ring[field] = value;
    },
  };
}

/** §4.1.4.3, struct virtio_pci_common_cfg, by offset. */
const commonFields: Readonly<Record<number, CommonField>> = {
  // device_feature_select
  0: {
    size: 4,
    read: (w) => w.pci.deviceFeatureSelect,
    write: (w, value) => {
      w.pci.deviceFeatureSelect = value;
    },
  },
  // device_feature
  4: {
    size: 4,
    read: (w) => pick(w.pci.deviceFeatureSelect, w.pci.offeredLow, w.pci.offeredHigh),
  },
  // driver_feature_select
  8: {
    size: 4,
    read: (w) => w.pci.driverFeatureSelect,
    write: (w, value) => {
      w.pci.driverFeatureSelect = value;
    },
  },
  // driver_feature
  12: {
    size: 4,
    read: (w) => pick(w.pci.driverFeatureSelect, w.pci.acceptedLow, w.pci.acceptedHigh),
    write: (w, value) => {
      if (w.pci.driverFeatureSelect === 0) w.pci.acceptFeatures('low', value);
      else if (w.pci.driverFeatureSelect === 1) w.pci.acceptFeatures('high', value);
    },
  },
  // config_msix_vector
  16: {
    size: 2,
    read: (w) => w.pci.configVector,
    write: (w, value) => {
      w.pci.configVector = w.pci.checkedVector(value);
    },
  },
  // num_queues
  18: { size: 2, read: (w) => w.pci.queues.length },
  // device_status
  20: { size: 1, read: (w) => w.pci.status, write: (w, value) => w.pci.writeStatus(value, true) },
  // config_generation
  21: { size: 1, read: (w) => w.pci.configGeneration },
  // queue_select
  22: {
    size: 2,
    read: (w) => w.pci.queueSelect,
    write: (w, value) => {
      w.pci.queueSelect = value;
    },
  },
  // queue_size
  24: {
    size: 2,
    read: (w) => w.pci.selectedQueue?.size ?? 0,
    write: (w, value) => w.writeQueueSize(value),
  },
  // queue_msix_vector
  26: {
    size: 2,
    read: (w) => w.pci.selectedQueue?.vector ?? NO_VECTOR,
    write: (w, value) => {
      const queue = w.pci.selectedQueue;
      if (queue !== undefined) queue.vector = w.pci.checkedVector(value);
    },
  },
  // queue_enable
  28: {
    size: 2,
    read: (w) => (w.isSelectedEnabled ? 1 : 0),
    write: (w, value) => w.writeQueueEnable(value),
  },
  // queue_notify_off
  30: { size: 2, read: (w) => w.pci.queueSelect },
  32: ringField('descLow'),
  36: ringField('descHigh'),
  40: ringField('availLow'),
  44: ringField('availHigh'),
  48: ringField('usedLow'),
  52: ringField('usedHigh'),
};

/** §4.1.4.3.1: selectors beyond the second show 0. */
function pick(select: number, low: number, high: number): number {
  return select === 0 ? low : select === 1 ? high : 0;
}

export class ModernWindow {
  readonly pci: VirtioRegisters;
  readonly #rings: RingRegisters[];
  readonly #enabled: boolean[];
  #config: ConfigSpace | undefined;
  #pciCap = 0;

  constructor(pci: VirtioRegisters) {
    this.pci = pci;
    const empty = () => ({ descLow: 0, descHigh: 0, availLow: 0, availHigh: 0, usedLow: 0, usedHigh: 0 });
    this.#rings = pci.device.queueSizes.map(empty);
    this.#enabled = pci.device.queueSizes.map(() => false);
  }

  reset(): void {
    for (const ring of this.#rings) {
      ring.descLow = 0;
      ring.descHigh = 0;
      ring.availLow = 0;
      ring.availHigh = 0;
      ring.usedLow = 0;
      ring.usedHigh = 0;
    }
    this.#enabled.fill(false);
    this.#lowByte = 0;
  }

  /** With the I/O register the queue number is the value written: offsets are multiplied by 0. */
  addNotifyIoCapability(config: ConfigSpace): void {
    if (this.pci.hasNotifyIo) addCapability(config, CfgType.Notify, this.pci.layout.bars.notifyIo, 0, 4, [0]);
  }

  /** In the order the C device model lists them. */
  addCapabilities(config: ConfigSpace): void {
    this.#config = config;
    const { bars, structures } = this.pci.layout;
    for (const kind of structureKinds) {
      const { offset, sizeBytes } = structures[kind];
      const tail = kind === 'notify' ? [NOTIFY_MULTIPLIER] : [];
      addCapability(config, cfgTypes[kind], bars.modern, offset, sizeBytes, tail);
    }
    // §4.1.4.9: bar, offset and length are the driver's to write, pci_cfg_data is a window to what they name.
    const writable = new Uint8Array(18);
    writable[2] = 0xff;
    writable.fill(0xff, 6, 18);
    const body = capabilityBody(CfgType.Pci, 0, 0, 0, [0]);
    const dataAt = PCI_CFG_DATA;
    this.#pciCap = config.addCapability(CapId.Vendor, body, {
      writable,
      hook: {
        read: (offset, size) => {
          const at = offset - this.#pciCap - dataAt;
          return at < 0 ? undefined : ((this.#readThrough() >>> (8 * at)) & allOnes(size)) >>> 0;
        },
        write: (offset, _size, value) => {
          if (offset < this.#pciCap + dataAt) return false;
          // The access begins with its first byte.
          if (offset === this.#pciCap + dataAt) this.#writeThrough(value);
          return true;
        },
      },
    });
  }

  /** The access that the PCI configuration capability describes, if it is one. */
  #through(): { bar: BarIndex; offset: number; size: AccessSize } | undefined {
    const config = this.#config as ConfigSpace;
    const bar = config.get8(this.#pciCap + 4);
    const offset = config.get32(this.#pciCap + 8);
    const size = config.get32(this.#pciCap + 12);
    const { notifyIo, modern } = this.pci.layout.bars;
    if (bar !== LEGACY_BAR && bar !== notifyIo && bar !== modern) return undefined;
    const spec = this.pci.bars.find((b) => b.index === bar);
    if (spec === undefined || (size !== 1 && size !== 2 && size !== 4)) return undefined;
    if (offset % size !== 0 || offset + size > spec.sizeBytes) return undefined;
    return { bar, offset, size };
  }

  #readThrough(): number {
    const access = this.#through();
    return access === undefined ? 0 : this.pci.readBar(access.bar, access.offset, access.size);
  }

  #writeThrough(value: number): void {
    const access = this.#through();
    if (access === undefined) return;
    const cut = access.size === 4 ? value : value & (access.size === 2 ? 0xffff : 0xff);
    this.pci.writeBar(access.bar, access.offset, access.size, cut);
  }

  /** The structure that has all of the access; where in it, is in `#within`. */
  #find(offset: number, size: AccessSize): StructureKind | undefined {
    const { structures } = this.pci.layout;
    for (const kind of structureKinds) {
      const { offset: start, sizeBytes } = structures[kind];
      this.#within = offset - start;
      if (this.#within >= 0 && this.#within + size <= sizeBytes) return kind;
    }
    return undefined;
  }
  #within = 0;

  read(offset: number, size: AccessSize): number {
    const kind = this.#find(offset, size);
    const within = this.#within;
    switch (kind) {
      case 'common': {
        const field = commonFields[within];
        if (field?.size === size) return field.read(this);
        const half = size === 1 ? commonFields[within & ~1] : undefined;
        if (half?.size === 2) return (half.read(this) >>> (8 * (within & 1))) & 0xff;
        break;
      }
      case 'isr':
        return this.pci.readIsr();
      case 'device':
        if (within + size <= this.pci.device.configSizeBytes) {
          return this.pci.device.readConfig?.(within, size) ?? allOnes(size);
        }
        break;
      default:
        break;
    }
    this.pci.env.log.guest(() => `${this.pci.device.name}: modern read of ${size} bytes at ${offset}`);
    return allOnes(size);
  }

  write(offset: number, size: AccessSize, value: number): void {
    const kind = this.#find(offset, size);
    const within = this.#within;
    switch (kind) {
      case 'common': {
        const field = commonFields[within];
        // §4.1.3.1: 64-bit fields may also be written in halves, narrower fields only whole.
        if (field?.size === size && field.write !== undefined) {
          field.write(this, value);
          return;
        }
        if (size === 1 && this.#writeHalf(within, value)) return;
        break;
      }
      case 'device':
        if (within + size <= this.pci.device.configSizeBytes) {
          if (this.pci.device.writeConfig?.(within, size, value) === true) return;
        }
        break;
      case 'notify':
        this.pci.notify(Math.floor(within / NOTIFY_MULTIPLIER));
        return;
      default:
        break;
    }
    this.pci.env.log.guest(() => `${this.pci.device.name}: modern write of ${size} bytes at ${offset}`);
  }

  /** Low byte of a 16-bit field whose other half is still to come. */
  #lowByte = 0;

  /**
   * Drivers access fields whole (§4.1.3.1), but a CPU engine may carry a 16-bit access out as two bytes, low one first:
   * the field is written with the second.
   */
  #writeHalf(within: number, value: number): boolean {
    const field = commonFields[within & ~1];
    if (field?.size !== 2 || field.write === undefined) return false;
    if ((within & 1) === 0) this.#lowByte = value;
    else field.write(this, this.#lowByte | (value << 8));
    return true;
  }

  /** Registers of the selected queue's rings. */
  get ring(): RingRegisters | undefined {
    return this.#rings[this.pci.queueSelect];
  }

  get isSelectedEnabled(): boolean {
    return this.#enabled[this.pci.queueSelect] === true;
  }

  /** Whether the selected queue may still be set up. Afterwards its registers are closed until reset (CVE-2026-5747). */
  get isQueueOpen(): boolean {
    return !this.isSelectedEnabled && (this.pci.status & (Status.DriverOk | Status.NeedsReset)) === 0;
  }

  /** §4.1.4.3.2: no larger than offered, and a power of two unless rings are packed; anything else is not taken. */
  writeQueueSize(size: number): void {
    const queue = this.pci.selectedQueue;
    if (queue === undefined || !this.isQueueOpen) return;
    if (queue.allowsSize(size)) queue.size = size;
    else this.pci.env.log.guest(() => `${this.pci.device.name}: queue ${queue.index}: size ${size} refused`);
  }

  /** §4.1.4.3.2: only 1 may be written; a queue is switched off by reset. */
  writeQueueEnable(value: number): void {
    const queue: Virtqueue | undefined = this.pci.selectedQueue;
    const ring = this.ring;
    if (queue === undefined || ring === undefined || value !== 1 || !this.isQueueOpen) return;
    const address = (low: number, high: number) => high * 0x1_0000_0000 + low;
    const isPlaced = queue.enable(
      address(ring.descLow, ring.descHigh),
      address(ring.availLow, ring.availHigh),
      address(ring.usedLow, ring.usedHigh),
    );
    // Compat: as in C the queue stays off, and the driver may try again.
    if (isPlaced) this.#enabled[queue.index] = true;
    else
      this.pci.env.log.guest(() => `${this.pci.device.name}: queue ${queue.index}: rings are not RAM or not aligned`);
  }
}

/** Offset of pci_cfg_data in its capability. */
const PCI_CFG_DATA = 16;

/** §4.1.4, struct virtio_pci_cap without its first two bytes, and what follows it. */
function capabilityBody(
  type: number,
  bar: number,
  offset: number,
  length: number,
  tail: readonly number[],
): Uint8Array {
  const body = new Uint8Array(14 + tail.length * 4);
  const view = new DataView(body.buffer);
  view.setUint8(0, body.length + 2);
  view.setUint8(1, type);
  view.setUint8(2, bar);
  view.setUint32(6, offset, true);
  view.setUint32(10, length, true);
  tail.forEach((word, i) => {
    view.setUint32(14 + i * 4, word, true);
  });
  return body;
}

function addCapability(
  config: ConfigSpace,
  type: number,
  bar: number,
  offset: number,
  length: number,
  tail: readonly number[],
): void {
  config.addCapability(CapId.Vendor, capabilityBody(type, bar, offset, length, tail));
}
