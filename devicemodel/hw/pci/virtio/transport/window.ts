/** What the two register windows, legacy and modern, see of the device they belong to. */
import type { BarIndex, BarSpec } from '../../../../chips/pci-config-space.ts';
import type { AccessSize } from '../../../../core/address.ts';
import type { Log } from '../../../../core/log.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import type { VirtioDevice } from './device.ts';
import type { ModernLayout } from './layout.ts';

/** The registers both forms have (Virtio 1.2 §4.1.4), by what they do and not by where they are. */
export interface VirtioRegisters {
  readonly device: VirtioDevice;
  readonly env: { readonly log: Log };

  // Features. A driver sees them in halves of 32 bits.
  readonly offeredLow: number;
  readonly offeredHigh: number;
  readonly acceptedLow: number;
  readonly acceptedHigh: number;
  acceptFeatures(half: 'low' | 'high', value: number): void;
  deviceFeatureSelect: number;
  driverFeatureSelect: number;

  // Status.
  readonly status: number;
  writeStatus(value: number, isModern: boolean): void;
  needsReset(reason: string): void;
  readonly configGeneration: number;

  // Queues.
  readonly queues: readonly Virtqueue[];
  queueSelect: number;
  /** Undefined when there is no queue of the selected number. */
  readonly selectedQueue: Virtqueue | undefined;
  /** @param index as the driver wrote it. */
  notify(index: number): void;

  // Interrupts.
  readonly isMsixEnabled: boolean;
  configVector: number;
  /** A vector that exists, or none. */
  checkedVector(vector: number): number;
  readIsr(): number;

  // The way through configuration space (§4.1.4.9).
  readonly bars: readonly BarSpec[];
  readonly layout: ModernLayout;
  /** Notification by an I/O port is offered beside the one by memory. */
  readonly hasNotifyIo: boolean;
  readBar(index: BarIndex, offset: number, size: AccessSize): number;
  writeBar(index: BarIndex, offset: number, size: AccessSize, value: number): void;
}
