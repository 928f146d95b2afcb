/** What a virtio device is to its transport, and the other way round. A device knows queues and configuration, no PCI. */
import type { AccessSize } from '../../../../core/address.ts';
import type { GuestRam } from '../../../../core/guest-buffers.ts';
import type { IoPatience } from '../../../../core/io-patience.ts';
import type { ThreadPulses } from '../../../../core/thread-pulses.ts';
import { type ChainServer, type SliceBudget, type SliceClock, serveChains } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import type { TransportMode } from './options.ts';

/** Device types (Virtio 1.2 §5), those offered here. */
export const DeviceType = {
  Net: 1,
  Block: 2,
  Console: 3,
  Entropy: 4,
  Gpu: 16,
  Input: 18,
  Vsock: 19,
  I2c: 34,
  Gpio: 41,
} as const;

/** Feature bits that are not a device's own (§6, §6.3 for legacy). */
export const Feature = {
  /** Legacy: interrupt when the available ring runs dry, suppressed or not. */
  NotifyOnEmpty: 24,
  AnyLayout: 27,
  IndirectDesc: 28,
  EventIdx: 29,
  Version1: 32,
  AccessPlatform: 33,
  RingPacked: 34,
} as const;

export function featureMask(...bits: readonly number[]): bigint {
  return bits.reduce((mask, bit) => mask | (1n << BigInt(bit)), 0n);
}

/**
 * What a device offers of its queues and its transport, where the queues are served in this process.
 *
 * Packed rings come with the modern form alone: the transitional one is for guests of which it is not known how old their
 * drivers are, and so also what remains where a driver's packed rings are at fault.
 */
export function ringFeatures(mode: TransportMode): bigint {
  if (mode === 'legacy') return 0n;
  const features = featureMask(Feature.IndirectDesc, Feature.EventIdx, Feature.Version1);
  return mode === 'modern' ? features | featureMask(Feature.RingPacked) : features;
}

/** What the transport does for a device. */
export interface VirtioTransport {
  readonly ram: GuestRam;
  /** Monotonic time of the device thread. */
  readonly clock: SliceClock;
  /** With who serves queues outside of this thread and was told to give them back. */
  readonly patience: IoPatience;
  /** Where such a thread registers, to be watched. */
  readonly threads: ThreadPulses;
  /** Aborted once the VM is to end, for what takes long before it runs. */
  readonly ending?: AbortSignal | undefined;
  queue(index: number): Virtqueue;
  /** Whether the driver accepted the feature. */
  hasFeature(bit: number): boolean;
  /** The driver is done with the set-up and not told to start over. */
  readonly isDriverOk: boolean;
  /** The driver takes the device as Virtio 1.x says, not as legacy. */
  readonly isVersion1: boolean;
  /** The configuration changed by itself: a new generation and a configuration interrupt (§2.5). */
  configChanged(): void;
  /** The driver broke the rules: DEVICE_NEEDS_RESET, and nothing more until it resets (§2.1.2). */
  needsReset(reason: string): void;
  /** Look at the queue again soon, after other work had its turn: `notify` is called once more. */
  notifyLater(queue: Virtqueue): void;
  /** The access being served is not over before this is: its vCPU waits, and who else comes to the device. */
  hold(work: Promise<unknown>): void;
  /** So many requests were served on the device thread: a device with much to do gets a thread of its own. */
  worked(requests: number): void;
  /** Take the queues back from a data thread that cannot go on; the device serves them from now on. */
  reclaimQueues(): void;
}

export interface VirtioDevice {
  /** For messages: `virtio-blk`. */
  readonly name: string;
  /** Offered features; may change while no driver is attached, and when a back end appears. */
  readonly features: bigint;
  /** One entry per queue: its largest size. */
  readonly queueSizes: readonly number[];
  /** Size of the configuration block, 0 for none. */
  readonly configSizeBytes: number;
  /** Once, before anything else. */
  attach(transport: VirtioTransport): void;
  /**
   * Read configuration inside its size.
   * @returns unsigned; undefined where nothing answers.
   */
  readConfig?(offset: number, size: AccessSize): number | undefined;
  /** @returns false where nothing takes the write. */
  writeConfig?(offset: number, size: AccessSize, value: number): boolean;
  /** The driver settled on features; may come more than once from legacy drivers. */
  featuresAccepted?(): void;
  /** DRIVER_OK: queues are set up and may be used from now on. */
  driverOk?(): void;
  /** The driver made chains available. Also called without need. Must return soon whatever the driver does. */
  notify(queue: Virtqueue): void;
  /** The driver reset the device, or the machine was reset. Queues are off already; chains held are to be discarded. */
  reset(): void;
  /**
   * Somebody else has the queues next, or nobody: what is begun is completed or put back, so that everything before their
   * positions is used, and nothing new is begun.
   * @returns when that is so, however long storage takes; undefined: it is.
   */
  settle?(): Promise<void> | undefined;
  /** What `settle` or `hold` waits for takes too long: it is given up. @returns the error that ends the VM. */
  hung?(limitMs: number): Error;
  /**
   * The driver took DRIVER_OK back without a reset, and may settle on other features: what was taken from the queues is
   * put back or dropped, what was agreed on is forgotten. Configuration and queues stay.
   */
  driverLeft?(): void;
  /** What was written is on the medium. @returns when it is; undefined: it is. @throws StorageHangError, asynchronously */
  flush?(): Promise<void> | undefined;
  start?(): void | Promise<void>;
  stop?(): void | Promise<void>;
  suspend?(): void;
  resume?(): void;
  /** Kicks come by ioeventfd and not through the request page. */
  readonly wantsIoeventfd?: boolean;
  /** `--virtio_poll` applies. Default true; false for what the kernel serves. */
  readonly isPolled?: boolean;
  /** Serves the first queues outside of this thread from DRIVER_OK to reset: vhost, a data thread. */
  readonly queueOwner?: QueueOwner | undefined;
  /**
   * A data thread for a device that turned out to have much to do: it is given the queues until reset. May be asked for
   * again after a reset.
   * @returns at once if it is there, undefined where there is none. @throws HostError, asynchronously.
   */
  startDataThread?(): QueueOwner | undefined | Promise<QueueOwner | undefined>;
}

/** Descriptors of one queue for whoever serves it outside of this thread. */
export interface QueueWires {
  readonly queue: Virtqueue;
  /** Readable when the driver kicked. */
  readonly kickFd: number;
  /** Written to interrupt the driver. */
  readonly callFd: number;
}

/** A server of queues outside of this thread. Kicks and interrupts come and go as descriptors. */
export interface QueueOwner {
  /** How many of the first queues; those of them that the driver has set up. */
  readonly queueCount: number;
  /** It serves all of them or none. */
  readonly needsAllQueues?: boolean;
  /**
   * Queues, rings and descriptors are the owner's from here on.
   * @returns false when it cannot, after a line in the log: the device serves its queues itself.
   */
  takeOver(wires: readonly QueueWires[]): boolean;
  /**
   * Stop serving. Then nothing touches rings, buffers and descriptors any more, and the queues on this side are where the
   * owner left them. Safe without `takeOver`.
   * @returns when that is so; undefined: it is. @throws StorageHangError, asynchronously: what was lent stays lent.
   */
  giveBack(): Promise<void> | undefined;
  /** Ask the hypervisor not to wait for the kick to arrive. */
  readonly usesAsyncio?: boolean;
  /** Finish what is in flight and stand still until `resume`, or until it is given back. @returns as `giveBack` does. */
  suspend?(): Promise<void> | undefined;
  resume?(): void;
}

/** Little-endian read of a configuration block kept as bytes. */
export function readBytes(view: DataView, offset: number, size: AccessSize): number {
  return size === 4 ? view.getUint32(offset, true) : size === 2 ? view.getUint16(offset, true) : view.getUint8(offset);
}

/** What a device does when it is notified: a slice of work now, the next ones after other work had its turn. */
export function serveSlice(
  transport: VirtioTransport | undefined,
  queue: Virtqueue,
  budget: SliceBudget,
  server: ChainServer,
): void {
  if (transport === undefined) return;
  if (!serveChains(queue, budget, server, transport.clock)) transport.notifyLater(queue);
}
