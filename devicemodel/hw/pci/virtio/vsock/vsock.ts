/** vhost-vsock (Virtio 1.2 §5.10): sockets between host and guest, served by the kernel. Modern only, as with C. */
import type { AccessSize } from '../../../../core/address.ts';
import { HostError } from '../../../../core/errors.ts';
import { Errno } from '../../../../core/host/errno.ts';
import type { Log } from '../../../../core/log.ts';
import { definePciDriver } from '../../driver.ts';
import { VhostDevice } from '../net/vhost.ts';
import {
  DeviceType,
  Feature,
  featureMask,
  type QueueOwner,
  type QueueWires,
  readBytes,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import { VirtioPci } from '../transport/transport.ts';
import { VSOCK_HINT, VSOCK_PATH, vsockInfo } from './options.ts';

const QUEUE_SIZE = 128;
/** Receive and transmit; the event queue stays here and is never used. */
const LENT_QUEUES = 2;
/** §5.10.4: u64 guest_cid. */
const CONFIG_BYTES = 8;
/** Compat: C offers the log bit, too, which is between it and the kernel: a guest that took it would stop the rings. */
const ringFeatures = [
  Feature.NotifyOnEmpty,
  Feature.AnyLayout,
  Feature.IndirectDesc,
  Feature.EventIdx,
  Feature.Version1,
] as const;

export class VhostVsock implements VirtioDevice, QueueOwner {
  readonly name = 'vhost-vsock';
  readonly queueSizes = [QUEUE_SIZE, QUEUE_SIZE, QUEUE_SIZE];
  readonly configSizeBytes = CONFIG_BYTES;
  readonly isPolled = false;
  readonly queueCount = LENT_QUEUES;
  readonly needsAllQueues = true;
  features = featureMask(...ringFeatures);
  readonly #cid: number;
  readonly #vhost: VhostDevice;
  readonly #log: Log;
  readonly #config = new DataView(new ArrayBuffer(CONFIG_BYTES));
  #lent: readonly QueueWires[] = [];
  #transport: VirtioTransport | undefined;

  constructor(cid: number, log: Log, vhost = new VhostDevice(VSOCK_PATH)) {
    this.#cid = cid;
    this.#log = log;
    this.#vhost = vhost;
    this.#config.setUint32(0, cid, true);
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  get queueOwner(): QueueOwner {
    return this;
  }

  /** @throws HostError when the kernel has no vsock, or another VM has the address. */
  start(): void {
    try {
      const { features } = this.#vhost;
      for (const bit of ringFeatures) if ((features & featureMask(bit)) === 0n) this.features &= ~featureMask(bit);
      this.#takeAddress();
    } catch (error) {
      this.#vhost.close();
      if (!(error instanceof HostError)) throw error;
      const hint = error.errno === Errno.EADDRINUSE ? 'another VM has this cid' : VSOCK_HINT;
      throw new HostError(`vhost-vsock,cid=${this.#cid}: ${error.message}`, error.errno, { hint });
    }
  }

  #takeAddress(): void {
    this.#vhost.setVsockCid(this.#cid);
  }

  stop(): void {
    this.#vhost.close();
  }

  takeOver(wires: readonly QueueWires[]): boolean {
    const transport = this.#transport as VirtioTransport;
    this.#lent = wires;
    try {
      const accepted = featureMask(...ringFeatures.filter((bit) => transport.hasFeature(bit)));
      this.#vhost.start(transport.ram, accepted, wires);
      this.#vhost.setVsockRunning(true);
      return true;
    } catch (error) {
      this.#log.rationed('error', () => (error as Error).message);
      this.giveBack();
      return false;
    }
  }

  /** The kernel answers in the call. */
  giveBack(): undefined {
    const wires = this.#lent;
    this.#lent = [];
    if (wires.length === 0) return;
    try {
      this.#vhost.setVsockRunning(false);
    } catch {
      // It did not run yet.
    }
    this.#vhost.stop(wires);
    try {
      // Opened anew for the next driver, and so that nobody else takes the address meanwhile.
      this.#takeAddress();
    } catch (error) {
      this.#log.rationed('warn', () => (error as Error).message);
    }
  }

  readConfig(offset: number, size: AccessSize): number {
    return readBytes(this.#config, offset, size);
  }

  /** The kernel gets the kicks. */
  notify(): void {}

  reset(): void {}
}

export const vhostVsock = definePciDriver({
  ...vsockInfo,
  create: (options, env) =>
    new VirtioPci(new VhostVsock(options.cid, env.log), env, {
      mode: 'modern',
      notifyByIo: false,
      identity: { legacyDeviceId: 0, type: DeviceType.Vsock, classCode: 0x020000, subsystemId: 0 },
    }),
});
