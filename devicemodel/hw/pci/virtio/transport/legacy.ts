/**
 * Legacy I/O window (Virtio 1.2 §4.1.4.10): the registers of BAR 0, then the device's configuration. As the C device
 * model answers: a register only in its own width, everything else all ones.
 */
import { type AccessSize, allOnes, type Port } from '../../../../core/address.ts';
import { NO_VECTOR } from './registers.ts';
import type { VirtioRegisters } from './window.ts';

export const LegacyReg = {
  HostFeatures: 0x00,
  GuestFeatures: 0x04,
  QueuePfn: 0x08,
  QueueSize: 0x0c,
  QueueSelect: 0x0e,
  QueueNotify: 0x10,
  Status: 0x12,
  Isr: 0x13,
  ConfigVector: 0x14,
  QueueVector: 0x16,
} as const;

const registerSize: Readonly<Record<number, AccessSize>> = {
  [LegacyReg.HostFeatures]: 4,
  [LegacyReg.GuestFeatures]: 4,
  [LegacyReg.QueuePfn]: 4,
  [LegacyReg.QueueSize]: 2,
  [LegacyReg.QueueSelect]: 2,
  [LegacyReg.QueueNotify]: 2,
  [LegacyReg.Status]: 1,
  [LegacyReg.Isr]: 1,
  [LegacyReg.ConfigVector]: 2,
  [LegacyReg.QueueVector]: 2,
};

/** The device configuration follows the vector registers, or takes their place while MSI-X is off. */
export const LEGACY_HEADER_BYTES = { withMsix: 0x18, withoutMsix: 0x14 } as const;

/** QueuePfn counts pages of this size. */
const PAGE_SHIFT = 4096;

export class LegacyWindow {
  readonly #pci: VirtioRegisters;
  /** What the driver wrote to QueuePfn, queue by queue; kept for reading even when it names no RAM. */
  readonly #pfn: Uint32Array;

  constructor(pci: VirtioRegisters) {
    this.#pci = pci;
    this.#pfn = new Uint32Array(pci.device.queueSizes.length);
  }

  /** The transport reset the queues. */
  reset(): void {
    this.#pfn.fill(0);
  }

  #configOffset(offset: Port): number {
    const header = this.#pci.isMsixEnabled ? LEGACY_HEADER_BYTES.withMsix : LEGACY_HEADER_BYTES.withoutMsix;
    return offset - header;
  }

  read(offset: Port, size: AccessSize): number {
    const pci = this.#pci;
    const config = this.#configOffset(offset);
    if (config >= 0 && config + size <= pci.device.configSizeBytes) {
      const value = pci.device.readConfig?.(config, size);
      if (value !== undefined) return value;
    }
    if (registerSize[offset] !== size) {
      pci.env.log.guest(() => `${pci.device.name}: legacy read of ${size} bytes at ${offset}`);
      return allOnes(size);
    }
    switch (offset) {
      case LegacyReg.HostFeatures:
        return pci.offeredLow;
      case LegacyReg.GuestFeatures:
        return pci.acceptedLow;
      case LegacyReg.QueuePfn:
        return this.#pfn[pci.queueSelect] ?? allOnes(4);
      case LegacyReg.QueueSize:
        return pci.selectedQueue?.size ?? 0;
      case LegacyReg.QueueSelect:
        return pci.queueSelect;
      case LegacyReg.QueueNotify:
        return 0;
      case LegacyReg.Status:
        return pci.status;
      case LegacyReg.Isr:
        return pci.readIsr();
      case LegacyReg.ConfigVector:
        return pci.configVector;
      case LegacyReg.QueueVector:
        return pci.selectedQueue?.vector ?? NO_VECTOR;
      default:
        return allOnes(size);
    }
  }

  write(offset: Port, size: AccessSize, value: number): void {
    const pci = this.#pci;
    const config = this.#configOffset(offset);
    if (config >= 0 && config + size <= pci.device.configSizeBytes) {
      if (pci.device.writeConfig?.(config, size, value) === true) return;
    }
    if (registerSize[offset] !== size) {
      pci.env.log.guest(() => `${pci.device.name}: legacy write of ${size} bytes at ${offset}`);
      return;
    }
    switch (offset) {
      case LegacyReg.GuestFeatures:
        pci.acceptFeatures('low', value);
        break;
      case LegacyReg.QueuePfn:
        this.#writePfn(value);
        break;
      case LegacyReg.QueueSelect:
        // A queue that does not exist may be selected: its size reads 0.
        pci.queueSelect = value;
        break;
      case LegacyReg.QueueNotify:
        pci.notify(value);
        break;
      case LegacyReg.Status:
        pci.writeStatus(value, false);
        break;
      case LegacyReg.ConfigVector:
        pci.configVector = pci.checkedVector(value);
        break;
      case LegacyReg.QueueVector: {
        const queue = pci.selectedQueue;
        if (queue !== undefined) queue.vector = pci.checkedVector(value);
        break;
      }
      default:
        // HostFeatures, QueueSize and Isr are read-only.
        break;
    }
  }

  #writePfn(pfn: number): void {
    const pci = this.#pci;
    const queue = pci.selectedQueue;
    if (queue === undefined) {
      pci.env.log.guest(() => `${pci.device.name}: address for queue ${pci.queueSelect} of ${pci.queues.length}`);
      return;
    }
    this.#pfn[queue.index] = pfn;
    if (pfn === 0) queue.disable();
    else if (!queue.enableLegacy(pfn * PAGE_SHIFT)) {
      pci.needsReset(`queue ${queue.index}: rings at page ${pfn} are not RAM`);
    }
  }
}
