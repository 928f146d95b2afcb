/**
 * The PCI function of virtio-gpu: a VGA compatible controller with a frame buffer, whose registers stand in one BAR with
 * those of virtio, in the places that QEMU's virtio-vga has them in.
 */
import { readFileSync } from 'node:fs';
import type { BarIndex, BarSpec, ConfigSpace } from '../../../../chips/pci-config-space.ts';
import { type AccessSize, allOnes, type Gpa, type Port } from '../../../../core/address.ts';
import { MiB } from '../../../../core/units.ts';
import { Display } from '../../../display/display.ts';
import type { Size } from '../../../display/rect.ts';
import { VBE_BYTES, VBE_PORTS } from '../../../display/vbe.ts';
import { VgaAdapter } from '../../../display/vga/adapter.ts';
import { VGA_WINDOW } from '../../../display/vga/memory.ts';
import { VGA_PORT_BASE, VGA_PORTS } from '../../../display/vga/registers.ts';
import { DeviceMemory } from '../../device-memory.ts';
import { definePciDriver, type PciEnv } from '../../driver.ts';
import type { EmulatedPciFunction, LegacyRange, PciIdentity, PciPlacement } from '../../function.ts';
import { DeviceType } from '../transport/device.ts';
import type { ModernLayout } from '../transport/layout.ts';
import { VirtioPci } from '../transport/transport.ts';
import { EDID_BYTES, edidOf } from './edid.ts';
import { VirtioGpu } from './gpu.ts';
import { type GpuScreen, gpuInfo } from './options.ts';

const Bar = { FrameBuffer: 0, Registers: 2, Msix: 4, NotifyIo: 5 } as const;
const FRAME_BUFFER_BYTES = 16 * MiB;
const NO_MEMORY = new Uint8Array(0);

/** What is in front of the virtio structures in BAR 2. */
const Window = {
  /** C shows room for three blocks. */
  edid: { offset: 0, sizeBytes: 3 * EDID_BYTES },
  vga: { offset: 0x400, sizeBytes: VGA_PORTS },
  vbe: { offset: 0x500, sizeBytes: VBE_BYTES },
} as const;

const layout: ModernLayout = {
  bars: { msix: Bar.Msix, notifyIo: Bar.NotifyIo, modern: Bar.Registers },
  structures: {
    common: { offset: 0x1000, sizeBytes: 0x800 },
    isr: { offset: 0x1800, sizeBytes: 0x800 },
    device: { offset: 0x2000, sizeBytes: 0x1000 },
    notify: { offset: 0x3000, sizeBytes: 0x1000 },
  },
  areStructuresFirst: true,
};

const UDMABUF_LIMIT = '/sys/module/udmabuf/parameters/list_limit';
const UDMABUF_ENTRIES = 4096;

/** Compat: where C can make a dma-buf of the guest's pages. Not needed here, where they are read in place. */
function hasUdmabuf(): boolean {
  try {
    return Number.parseInt(readFileSync(UDMABUF_LIMIT, 'latin1'), 10) >= UDMABUF_ENTRIES;
  } catch {
    return false;
  }
}

export class VirtioVga implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity: PciIdentity;
  readonly bars: readonly BarSpec[];
  readonly legacyRanges: readonly LegacyRange[];
  readonly #virtio: VirtioPci;
  readonly #gpu: VirtioGpu;
  readonly #vga: VgaAdapter;
  readonly #frameBuffer: DeviceMemory;
  #placement: PciPlacement | undefined;
  #edid: { readonly of: Size; readonly bytes: Uint8Array } | undefined;

  constructor(screens: readonly GpuScreen[], blob: 'auto' | 'on' | 'off', env: PciEnv) {
    const sizes = screens.map(({ width, height }) => ({ width, height }));
    this.#gpu = new VirtioGpu({
      sizes,
      display: env.display ?? new Display(),
      offersBlobs: () => blob === 'on' || (blob === 'auto' && hasUdmabuf()),
      onOwner: (owner) => (owner === 'driver' ? this.#vga.hide() : this.#vga.showAgain()),
    });
    this.#vga = new VgaAdapter(this.#gpu.firstSize, FRAME_BUFFER_BYTES);
    this.#frameBuffer = new DeviceMemory(FRAME_BUFFER_BYTES, 'frame buffer', env);
    this.#virtio = new VirtioPci(this.#gpu, env, {
      mode: 'modern',
      layout,
      identity: { legacyDeviceId: 0, type: DeviceType.Gpu, classCode: 0x030000, subsystemId: 0x1100 },
    });
    this.identity = this.#virtio.identity;
    this.bars = [
      { index: Bar.FrameBuffer, kind: 'mem32', sizeBytes: FRAME_BUFFER_BYTES } as const,
      ...this.#virtio.bars,
    ].sort((a, b) => a.index - b.index);
    this.legacyRanges = [
      { space: 'pio', base: VGA_PORT_BASE, size: VGA_PORTS, name: 'VGA registers', region: this.#vga.ports },
      { space: 'pio', ...VBE_PORTS, name: 'VBE registers', region: this.#vga.vbe.ports },
      { space: 'mmio', ...VGA_WINDOW, name: 'VGA memory', region: this.#vga.window },
    ];
  }

  get gate() {
    return this.#virtio.gate;
  }

  configure(config: ConfigSpace, placement: PciPlacement): void {
    this.#placement = placement;
    this.#virtio.configure(config, placement);
  }

  attach(): void {
    if (this.#placement !== undefined) this.#frameBuffer.attach(this.#placement.barAddress(Bar.FrameBuffer));
    this.#plugVga();
  }

  detach(): void {
    this.#vga.plugIn(this.#gpu.plugged?.screens[0], NO_MEMORY);
    this.#frameBuffer.detach();
  }

  barMoved(index: BarIndex, address: Gpa | Port | undefined): void {
    if (index === Bar.FrameBuffer) this.#frameBuffer.moveTo(address);
    else this.#virtio.barMoved(index, address);
  }

  async start(): Promise<void> {
    await this.#virtio.start();
    this.#plugVga();
  }

  async stop(): Promise<void> {
    this.#vga.plugIn(undefined, NO_MEMORY);
    await this.#virtio.stop();
  }

  /** Screen and frame buffer come in one order or the other. */
  #plugVga(): void {
    this.#vga.plugIn(this.#gpu.plugged?.screens[0], this.#frameBuffer.bytes);
  }

  settle(isFlushed: boolean): Promise<void> | undefined {
    return this.#virtio.settle(isFlushed);
  }

  /** The frame buffer keeps what is in it, as RAM does. */
  reset(): void {
    this.#virtio.reset();
    this.#vga.reset();
  }

  suspend(): void {
    this.#virtio.suspend();
  }

  resume(): void {
    this.#virtio.resume();
  }

  readBar(index: BarIndex, offset: number, size: AccessSize): number {
    if (index === Bar.FrameBuffer) return this.#frameBuffer.read(offset, size);
    if (index !== Bar.Registers || offset >= layout.structures.common.offset) {
      return this.#virtio.readBar(index, offset, size);
    }
    if (isIn(Window.edid, offset, size)) return this.#readEdid(offset, size);
    if (isIn(Window.vbe, offset, size)) return this.#vga.vbe.read(offset - Window.vbe.offset, size);
    // Compat: C answers dwords with 0.
    if (isIn(Window.vga, offset, size)) return size === 4 ? 0 : this.#vga.ports.read(offset - Window.vga.offset, size);
    return allOnes(size);
  }

  writeBar(index: BarIndex, offset: number, size: AccessSize, value: number): void {
    if (index === Bar.FrameBuffer) this.#frameBuffer.write(offset, size, value);
    else if (index !== Bar.Registers || offset >= layout.structures.common.offset) {
      this.#virtio.writeBar(index, offset, size, value);
    } else if (isIn(Window.vga, offset, size)) this.#vga.ports.write(offset - Window.vga.offset, size, value);
    else if (isIn(Window.vbe, offset, size)) this.#vga.vbe.write(offset - Window.vbe.offset, size, value);
  }

  #readEdid(offset: number, size: AccessSize): number {
    const { firstSize } = this.#gpu;
    if (this.#edid?.of !== firstSize) this.#edid = { of: firstSize, bytes: edidOf(firstSize) };
    const edid = this.#edid.bytes;
    let value = 0;
    for (let i = size - 1; i >= 0; i--) value = value * 0x100 + (edid[offset + i] ?? 0);
    return value;
  }
}

function isIn(window: { readonly offset: number; readonly sizeBytes: number }, at: number, size: AccessSize): boolean {
  return at >= window.offset && at + size <= window.offset + window.sizeBytes;
}

export const virtioGpu = definePciDriver({
  ...gpuInfo,
  create: ({ screens, blob }, env) => new VirtioVga(screens, blob, env),
});
