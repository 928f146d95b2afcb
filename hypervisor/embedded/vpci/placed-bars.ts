/**
 * Memory BARs of a function the hypervisor emulates, on the guest's bus.
 *
 * Compat: a BAR is decoded whenever it is not 0 and not being sized, whatever the command register says, as in ACRN
 * (dm/vpci/vdev.c): bare-metal guests there never learned to set the memory enable bit.
 */
import type { BarSpec, ConfigSpace } from '../../../devicemodel/chips/pci-config-space.ts';
import type { Gpa } from '../../../devicemodel/core/address.ts';

interface PlacedBar {
  readonly spec: BarSpec;
  readonly place: (base: Gpa) => { dispose(): void };
  base: Gpa | undefined;
  mapping: { dispose(): void } | undefined;
}

export class PlacedBars {
  readonly #config: ConfigSpace;
  readonly #bars: PlacedBar[] = [];

  /** Takes the configuration space's `onControlWritten`. */
  constructor(config: ConfigSpace) {
    this.#config = config;
    config.onControlWritten = () => {
      for (const bar of this.#bars) this.#update(bar);
    };
  }

  /** @param place puts the BAR on the bus; called again for every place it is moved to. */
  add(spec: BarSpec, base: Gpa, place: PlacedBar['place']): void {
    this.#config.defineBar(spec, base);
    const bar: PlacedBar = { spec, place, base: undefined, mapping: undefined };
    this.#bars.push(bar);
    this.#update(bar);
  }

  /** Take every BAR away. */
  dispose(): void {
    this.#config.onControlWritten = undefined;
    for (const bar of this.#bars) this.#move(bar, undefined);
  }

  #update(bar: PlacedBar): void {
    const { index, sizeBytes } = bar.spec;
    const base = this.#config.barAddress(index);
    const isAddress = base !== 0 && !this.#config.isBarProbed(index) && Number.isSafeInteger(base + sizeBytes);
    this.#move(bar, isAddress ? base : undefined);
  }

  #move(bar: PlacedBar, base: Gpa | undefined): void {
    if (bar.base === base) return;
    bar.base = base;
    bar.mapping?.dispose();
    bar.mapping = base === undefined ? undefined : bar.place(base);
  }
}
