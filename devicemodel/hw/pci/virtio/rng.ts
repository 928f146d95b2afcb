/** virtio-rnd, the entropy device (Virtio 1.2 §5.4): fills what the driver gives it from the host's generator. */
import { closeSync, openSync } from 'node:fs';
import { HostError } from '../../../core/errors.ts';
import { readSome } from '../../../core/host/read-file.ts';
import type { Log } from '../../../core/log.ts';
import { definePciDriver } from '../driver.ts';
import type { Chain } from './ring/chain.ts';
import type { ChainServer, SliceBudget } from './ring/serve-chains.ts';
import type { Virtqueue } from './ring/virtqueue.ts';
import { DeviceType, ringFeatures, serveSlice, type VirtioDevice, type VirtioTransport } from './transport/device.ts';
import { rngInfo, type TransportMode } from './transport/options.ts';
import { VirtioPci } from './transport/transport.ts';

const QUEUE_SIZE = 64;
const SOURCE = '/dev/random';
/** A request gets no more than this at once; §5.4.6: the device may fill less than was asked for. */
const MAX_FILL_BYTES = 64 * 1024;
/** Two rings full, or what takes the kernel about a millisecond to make. */
const BUDGET: SliceBudget = { chains: 2 * QUEUE_SIZE, cost: 4 * MAX_FILL_BYTES };

export class VirtioRng implements VirtioDevice, ChainServer {
  readonly name = 'virtio-rnd';
  readonly features: bigint;
  readonly queueSizes = [QUEUE_SIZE];
  readonly configSizeBytes = 0;
  readonly #log: Log;
  #transport: VirtioTransport | undefined;
  #fd: number | undefined;

  constructor(mode: TransportMode, log: Log) {
    this.features = ringFeatures(mode);
    this.#log = log;
  }

  attach(transport: VirtioTransport): void {
    this.#transport = transport;
  }

  start(): void {
    try {
      this.#fd = openSync(SOURCE, 'r');
    } catch (error) {
      const { errno, code } = error as NodeJS.ErrnoException;
      throw new HostError(`${SOURCE}: ${code}`, Math.abs(errno ?? 0));
    }
  }

  notify(queue: Virtqueue): void {
    serveSlice(this.#transport, queue, BUDGET, this);
  }

  serveChain(queue: Virtqueue, chain: Chain): number {
    const filled = this.#fill(chain);
    queue.push(chain, filled);
    return filled;
  }

  /** @returns bytes written. */
  #fill(chain: Chain): number {
    const wanted = Math.min(chain.writableBytes, MAX_FILL_BYTES);
    let done = 0;
    try {
      while (done < wanted && this.#fd !== undefined && chain.seek(done, true)) {
        const i = chain.segment;
        const bytes = chain.ram.bytes[chain.chunk[i] as number] as Uint8Array;
        const length = Math.min(wanted - done, (chain.length[i] as number) - chain.within);
        const got = readSome(this.#fd, bytes, (chain.offset[i] as number) + chain.within, length, null);
        if (got === 0) break;
        done += got;
      }
    } catch (error) {
      this.#log.guest(() => `${SOURCE}: ${(error as Error).message}`);
    }
    return done;
  }

  reset(): void {}

  stop(): void {
    if (this.#fd !== undefined) closeSync(this.#fd);
    this.#fd = undefined;
  }
}

export const virtioRnd = definePciDriver({
  ...rngInfo,
  create: (options, env) =>
    new VirtioPci(new VirtioRng(options.transport, env.log), env, {
      mode: options.transport,
      identity: { legacyDeviceId: 0x1005, type: DeviceType.Entropy, classCode: 0x100000 },
    }),
});
