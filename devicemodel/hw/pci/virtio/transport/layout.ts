/** Where a device has its BARs and, in one of them, the register structures of the modern form (Virtio 1.2 §4.1.4). */
import type { BarIndex } from '../../../../chips/pci-config-space.ts';

/** One structure in the modern BAR. */
export interface Structure {
  readonly offset: number;
  readonly sizeBytes: number;
}

export const structureKinds = ['common', 'isr', 'device', 'notify'] as const;
export type StructureKind = (typeof structureKinds)[number];

export interface ModernLayout {
  readonly bars: { readonly msix: BarIndex; readonly notifyIo: BarIndex; readonly modern: BarIndex };
  readonly structures: Readonly<Record<StructureKind, Structure>>;
  /** Virtio capabilities come before those of interrupts, and that of the I/O register comes last of all. */
  readonly areStructuresFirst: boolean;
}

/** notify_off_multiplier: one dword per queue. */
export const NOTIFY_MULTIPLIER = 4;
export const MODERN_BAR_BYTES = 0x4000;
const PAGE = 0x1000;

/** As the C device model has it: one page for each structure. */
export const standardLayout: ModernLayout = {
  bars: { msix: 1, notifyIo: 2, modern: 4 },
  structures: {
    common: { offset: 0, sizeBytes: PAGE },
    isr: { offset: 1 * PAGE, sizeBytes: PAGE },
    device: { offset: 2 * PAGE, sizeBytes: PAGE },
    notify: { offset: 3 * PAGE, sizeBytes: PAGE },
  },
  areStructuresFirst: false,
};

/** BAR of the legacy I/O window. */
export const LEGACY_BAR = 0;
