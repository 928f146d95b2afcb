/**
 * Which devices of the host are the guest's: what is plugged into ports that were given to it, or into hubs there, at the
 * start and at any time later. The hubs themselves stay the host's: each device has a root port of its own.
 */
import type { IoPatience } from '../../core/io-patience.ts';
import type { Log } from '../../core/log.ts';
import type { UsbDevice } from './device.ts';
import { HostDevice, type UsbHost } from './host-device.ts';
import type { HostUsbDevice } from './host-tree.ts';

/** The root ports, where devices come and go. */
export interface RootHub {
  connect(device: UsbDevice, preferred?: number): number | undefined;
  disconnect(device: UsbDevice): void;
}

/** The host's side; other than the real one in tests. */
export interface HostUsb extends UsbHost {
  list(): readonly HostUsbDevice[];
  /** Called after devices came or went. @returns how to stop. @throws HostError where nobody tells. */
  watch(onChange: () => void): () => void;
}

/** How long until what was just being reset is looked for again: nobody tells when it is over. */
const RESET_POLL_MS = 100;
/** A driver of the host has looked at its device by then, and a reset is over, unless something hangs. */
const GIVE_BACK_MS = 3000;

const isBeingReset = ({ deviceNumber }: HostUsbDevice) => deviceNumber === 0;
const kindOf = ({ path, id }: HostUsbDevice) => `${path} ${id}`;
const keyOf = ({ path, deviceNumber }: HostUsbDevice) => `${path} ${deviceNumber}`;

export class PortMapper {
  readonly #assigned: readonly string[];
  readonly #hub: RootHub;
  readonly #host: HostUsb;
  readonly #log: Log;
  readonly #patience: IoPatience;
  readonly #devices = new Map<string, HostDevice>();
  /** Port that a device at this path had: it gets it again. */
  readonly #ports = new Map<string, number>();
  /** Devices that the host takes for others after each reset, by {@link kindOf}: without end, if they are reset again. */
  readonly #lostByReset = new Set<string>();
  /** Devices that were pulled out and are not closed yet. */
  readonly #leaving = new Set<Promise<void>>();
  #unwatch: (() => void) | undefined;
  #lookLater: NodeJS.Timeout | undefined;

  /** @param assigned `1-2`: bus and port. @param patience with devices that hang in the host */
  constructor(assigned: readonly string[], hub: RootHub, host: HostUsb, log: Log, patience: IoPatience) {
    this.#assigned = assigned;
    this.#hub = hub;
    this.#host = host;
    this.#log = log;
    this.#patience = patience;
  }

  start(): void {
    try {
      this.#unwatch = this.#host.watch(() => this.#look());
    } catch (error) {
      this.#log.warn(`USB devices that are plugged in later are not seen: ${(error as Error).message}`);
    }
    this.#look();
  }

  /**
   * Everything goes back to the host. @returns when it did, or is waited for no longer, which is soon: something hangs
   * there, and is left to itself; `closed` then resolves when that came back, too.
   */
  async stop(): Promise<{ readonly isGivenBack: boolean; readonly closed: Promise<unknown> }> {
    this.#unwatch?.();
    this.#unwatch = undefined;
    clearTimeout(this.#lookLater);
    const devices = [...this.#devices.values()];
    this.#devices.clear();
    for (const device of devices) this.#hub.disconnect(device);
    const leaving = Promise.all(this.#leaving);
    const closing = devices.map((device) => ({ device, closed: device.close() }));
    const closed = Promise.all([leaving, ...closing.map((one) => one.closed)]);
    const given = await Promise.all([
      this.#patience.within(leaving, GIVE_BACK_MS),
      ...closing.map((one) => this.#isGivenBack(one.device, one.closed)),
    ]);
    return { isGivenBack: given.every((isBack) => isBack), closed };
  }

  async #isGivenBack(device: HostDevice, closed: Promise<void>): Promise<boolean> {
    const isBack = await this.#patience.within(closed, GIVE_BACK_MS);
    if (!isBack) this.#log.warn(`USB device ${device.name} is not given back: it hangs in the host`);
    return isBack;
  }

  #look(): void {
    const ours = this.#host.list().filter((where) => !where.isHub && this.#isOurs(where.path));
    const inReset = new Set(ours.filter(isBeingReset).map(({ path }) => path));
    const present = new Map(ours.filter((where) => !isBeingReset(where)).map((where) => [keyOf(where), where]));
    for (const [key, device] of this.#devices) {
      // One that does not come back from a reset leaves the tree, which the kernel tells.
      if (!present.has(key) && !inReset.has(device.where.path)) this.#remove(key, device);
    }
    for (const [key, where] of present) if (!this.#devices.has(key)) this.#add(key, where);
    clearTimeout(this.#lookLater);
    if (inReset.size > 0) this.#lookLater = setTimeout(() => this.#look(), RESET_POLL_MS);
  }

  #isOurs(path: string): boolean {
    return this.#assigned.some((port) => path === port || path.startsWith(`${port}.`));
  }

  #add(key: string, where: HostUsbDevice): void {
    const device = new HostDevice(where, this.#host, this.#log, !this.#lostByReset.has(kindOf(where)));
    const port = this.#hub.connect(device, this.#ports.get(where.path));
    if (port === undefined) {
      this.#log.warn(`USB device ${device.name} is left to the host: all ports of its kind are taken`);
      return;
    }
    this.#devices.set(key, device);
    this.#ports.set(where.path, port);
    this.#log.info(`USB device ${device.name} is plugged into port ${port}`);
  }

  #remove(key: string, device: HostDevice): void {
    this.#devices.delete(key);
    device.unplugged();
    if (device.isLostByReset && !this.#lostByReset.has(kindOf(device.where))) {
      this.#lostByReset.add(kindOf(device.where));
      this.#log.warn(`USB device ${device.name} does not survive a reset: it is given to the guest without one`);
    }
    this.#hub.disconnect(device);
    this.#log.info(`USB device ${device.name} is pulled out`);
    const left = device.close().finally(() => this.#leaving.delete(left));
    this.#leaving.add(left);
  }
}
