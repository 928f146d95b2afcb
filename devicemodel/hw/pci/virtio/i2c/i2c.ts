/** virtio-i2c (Virtio 1.2 §5.17): chosen clients of the host's I2C buses, on one bus of the guest's. Modern only, as with C. */
import { type I2cBus, LinuxI2cBus, MAX_MESSAGE } from '../../../../core/host/i2c-dev.ts';
import type { Log } from '../../../../core/log.ts';
import { definePciDriver } from '../../driver.ts';
import type { Chain } from '../ring/chain.ts';
import { type ChainServer, SLICE_BYTES, type SliceBudget } from '../ring/serve-chains.ts';
import type { Virtqueue } from '../ring/virtqueue.ts';
import {
  DeviceType,
  Feature,
  featureMask,
  serveSlice,
  type VirtioDevice,
  type VirtioTransport,
} from '../transport/device.ts';
import { VirtioPci } from '../transport/transport.ts';
import { type I2cClient, i2cAml, i2cClients } from './aml.ts';
import { type I2cBusOptions, i2cInfo } from './options.ts';

const QUEUE_SIZE = 64;
/** VIRTIO_I2C_F_ZERO_LENGTH_REQUEST (§5.17.3). */
const ZERO_LENGTH = 0;
/** §5.17.6, struct virtio_i2c_out_hdr: u16 address in bits 7:1, u16 padding, u32 flags. */
const HEADER_BYTES = 8;
const RequestFlag = { FailNext: 1 << 0, Read: 1 << 1 } as const;
const MessageStatus = { Ok: 0, Error: 1 } as const;
/** A slow bus takes a millisecond for each message, and the slice's time is up after one. */
const BUDGET: SliceBudget = { chains: 16, cost: SLICE_BYTES };
/** What a client without a name in the DSDT may be called. */
const NO_NODE = 'default';

/** The buses and the clients on them. */
export type OpenBuses = () => ReadonlyArray<{ readonly bus: I2cBus; readonly addresses: readonly number[] }>;

export class VirtioI2c implements VirtioDevice, ChainServer {
  readonly name = 'virtio-i2c';
  readonly features = featureMask(ZERO_LENGTH, Feature.Version1);
  readonly queueSizes = [QUEUE_SIZE];
  readonly configSizeBytes = 0;
  readonly #open: OpenBuses;
  readonly #busOf = new Map<number, I2cBus>();
  readonly #buses: I2cBus[] = [];
  /** A request of the group failed: those that follow do too. */
  #failNext = false;
  #transport: VirtioTransport | undefined;

  constructor(open: OpenBuses) {
    this.#open = open;
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  /** @throws HostError */
  start(): void {
    for (const { bus, addresses } of this.#open()) {
      this.#buses.push(bus);
      for (const address of addresses) this.#busOf.set(address, bus);
    }
  }

  stop(): void {
    this.#busOf.clear();
    for (const bus of this.#buses.splice(0)) bus.close();
  }

  driverLeft(): void {
    this.reset();
  }

  reset(): void {
    this.#failNext = false;
  }

  notify(queue: Virtqueue): void {
    serveSlice(this.#transport, queue, BUDGET, this);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    queue.push(chain, this.#request(chain));
    return 0;
  }

  /** @returns bytes written. */
  #request(chain: Chain): number {
    const inBytes = chain.writableBytes - 1;
    if (chain.readableBytes < HEADER_BYTES || inBytes < 0) return 0;
    const flags = chain.readU32(4);
    const isRead = (flags & RequestFlag.Read) !== 0;
    const isDone =
      !this.#failNext && this.#transfer(chain, isRead ? inBytes : chain.readableBytes - HEADER_BYTES, isRead);
    // §5.17.6.3: the last request of a group ends the failing.
    this.#failNext = (flags & RequestFlag.FailNext) !== 0 && !isDone;
    chain.writeU8(inBytes, isDone ? MessageStatus.Ok : MessageStatus.Error);
    return inBytes + 1;
  }

  #transfer(chain: Chain, length: number, isRead: boolean): boolean {
    const address = chain.readU16(0);
    // Bit 0 and bits 15:8 are reserved; ten-bit addresses are not offered.
    const bus = this.#busOf.get(address >>> 1);
    if ((address & ~0xfe) !== 0 || bus === undefined || length > MAX_MESSAGE) return false;
    if (!isRead) chain.copyOut(HEADER_BYTES, bus.data, 0, length);
    if (!bus.transfer(address >>> 1, length, isRead)) return false;
    if (isRead) chain.copyIn(0, bus.data, 0, length);
    return true;
  }
}

/** Clients with a node in the DSDT, by address. Compat: as C, an unknown name is none, with a warning. */
function describedClients(buses: readonly I2cBusOptions[], log: Log): I2cClient[] {
  const clients = buses.flatMap((bus) => bus.clients).sort((a, b) => a.address - b.address);
  return clients.flatMap(({ address, node }) => {
    if (node === undefined || node === NO_NODE) return [];
    const known = i2cClients.find((name) => name === node);
    if (known === undefined) {
      log.warn(`0x${address.toString(16)}@${node}: there is no node "${node}", only ${i2cClients.join(', ')}`);
    }
    return known ?? [];
  });
}

export const virtioI2c = definePciDriver({
  ...i2cInfo,
  create: (options, env) => {
    const open: OpenBuses = () =>
      options.buses.map(({ bus, clients }) => {
        const addresses = clients.map((c) => c.address);
        return { bus: new LinuxI2cBus(bus, addresses), addresses };
      });
    const clients = describedClients(options.buses, env.log);
    return new VirtioPci(new VirtioI2c(open), env, {
      mode: 'modern',
      notifyByIo: false,
      aml: (at, ordinal) => i2cAml(at.bdf, ordinal, clients),
      // Compat: class, revision and subsystem as C has them.
      identity: {
        legacyDeviceId: 0,
        type: DeviceType.I2c,
        classCode: 0x050000,
        modernRevisionId: 0,
        subsystemId: 0xfff6,
      },
    });
  },
});
