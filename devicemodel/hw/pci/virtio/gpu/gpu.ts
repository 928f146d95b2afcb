/** virtio-gpu, 2D (Virtio 1.2 §5.7): the virtio half of the device. */
import type { AccessSize } from '../../../../core/address.ts';
import type { Display, PluggedScreens } from '../../../display/display.ts';
import type { Size } from '../../../display/rect.ts';
import type { Chain } from '../ring/chain.ts';
import { type ChainServer, SLICE_BYTES, type SliceBudget } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import {
  Feature,
  featureMask,
  readBytes,
  serveSlice,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import { GpuCommands } from './commands.ts';
import { executeCursor } from './cursor.ts';
import { DISPLAY_EVENT, GpuConfig, GpuFeature } from './protocol.ts';
import { Resources } from './resources.ts';
import { Scanouts } from './scanouts.ts';

const QUEUE_SIZE = 64;
const CURSOR_QUEUE = 1;
/** Two rings full; requests without pixels cost little. */
const BUDGET: SliceBudget = { chains: 2 * QUEUE_SIZE, cost: SLICE_BYTES };

/** A viewer's window may be of any size, a monitor's picture not. */
export const MIN_SCREEN: Size = { width: 640, height: 480 };
const MAX_SCREEN: Size = { width: 3840, height: 2160 };

export interface GpuParts {
  /** Of each screen, to begin with. */
  readonly sizes: readonly Size[];
  readonly display: Display;
  /** Looked at when the device starts. */
  readonly offersBlobs: () => boolean;
  /** The driver shows something; or it let go of the device, and the VGA has the first screen again. */
  readonly onOwner: (owner: 'driver' | 'vga') => void;
}

export class VirtioGpu implements VirtioDevice, ChainServer {
  readonly name = 'virtio-gpu';
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = GpuConfig.size;
  readonly #parts: GpuParts;
  readonly #sizes: Size[];
  readonly #resources = new Resources();
  readonly #scanouts: Scanouts;
  readonly #commands: GpuCommands;
  readonly #config = new DataView(new ArrayBuffer(GpuConfig.size));
  #offersBlobs = false;
  #plugged: PluggedScreens | undefined;
  #transport: VirtioTransport | undefined;

  constructor(parts: GpuParts) {
    this.#parts = parts;
    this.#sizes = [...parts.sizes];
    this.#scanouts = new Scanouts(parts.sizes.length);
    this.#commands = new GpuCommands({
      resources: this.#resources,
      scanouts: this.#scanouts,
      sizes: this.#sizes,
      hasFeature: (bit) => this.#transport?.hasFeature(bit) === true,
      onScanoutSet: () => parts.onOwner('driver'),
    });
    this.#config.setUint32(GpuConfig.scanouts, parts.sizes.length, true);
  }

  get features(): bigint {
    const blobs = this.#offersBlobs ? [GpuFeature.ResourceBlob] : [];
    return featureMask(Feature.Version1, GpuFeature.Edid, ...blobs);
  }

  /** The monitors; there while the device is started. */
  get plugged(): PluggedScreens | undefined {
    return this.#plugged;
  }

  /** Preferred size of the first screen. */
  get firstSize(): Size {
    return this.#sizes[0] as Size;
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  start(): void {
    this.#offersBlobs = this.#parts.offersBlobs();
    this.#plugged = this.#parts.display.plugIn(this.#sizes, (screen, size) => this.#resize(screen, size));
    this.#scanouts.plugIn(this.#plugged.screens);
  }

  stop(): void {
    this.#plugged?.dispose();
    this.#plugged = undefined;
    this.#scanouts.plugIn([]);
  }

  driverLeft(): void {
    this.#forgetAll();
  }

  reset(): void {
    this.#config.setUint32(GpuConfig.eventsRead, 0, true);
    this.#forgetAll();
  }

  #forgetAll(): void {
    this.#scanouts.hideAll();
    this.#resources.clear();
    this.#plugged?.setCursor(undefined);
    this.#parts.onOwner('vga');
  }

  /** §5.7.5: the guest hears of it, and asks for sizes and EDIDs again if it likes. */
  #resize(screen: number, { width, height }: Size): void {
    const before = this.#sizes[screen];
    const size = {
      // Timings are of whole characters.
      width: clamp(width, MIN_SCREEN.width, MAX_SCREEN.width) & ~7,
      height: clamp(height, MIN_SCREEN.height, MAX_SCREEN.height),
    };
    if (before === undefined || (before.width === size.width && before.height === size.height)) return;
    this.#sizes[screen] = size;
    const events = this.#config.getUint32(GpuConfig.eventsRead, true);
    this.#config.setUint32(GpuConfig.eventsRead, events | DISPLAY_EVENT, true);
    this.#transport?.configChanged();
  }

  readConfig(offset: number, size: AccessSize): number {
    return readBytes(this.#config, offset, size);
  }

  /** §5.7.4: bits written to events_clear are cleared in events_read. */
  writeConfig(offset: number, _size: AccessSize, value: number): boolean {
    if (offset !== GpuConfig.eventsClear) return false;
    const events = this.#config.getUint32(GpuConfig.eventsRead, true);
    this.#config.setUint32(GpuConfig.eventsRead, events & ~value, true);
    return true;
  }

  notify(queue: Virtqueue): void {
    serveSlice(this.#transport, queue, BUDGET, this);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    if (queue.index === CURSOR_QUEUE) {
      const cost = executeCursor(chain, this.#resources, this.#plugged);
      queue.push(chain, 0);
      return cost;
    }
    const { usedBytes, cost, isPart } = this.#commands.execute(chain);
    if (isPart === true) queue.park(chain);
    else queue.push(chain, usedBytes);
    return cost;
  }
}

function clamp(value: number, least: number, most: number): number {
  return Math.max(least, Math.min(most, value));
}
