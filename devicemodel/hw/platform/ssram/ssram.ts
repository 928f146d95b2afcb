/** `--ssram`, the device: parts of caches at addresses of the guest, and the table that tells it of them. */
import type { Gpa } from '../../../core/address.ts';
import { HostError } from '../../../core/errors.ts';
import type { DeviceTable } from '../../../core/firmware/contribution.ts';
import { readCpuid } from '../../../core/host/cpuid.ts';
import { openTcc, type TccBuffer, type TccDriver, type TccRegion } from '../../../core/host/tcc-buffer.ts';
import type { RamMapping } from '../../../core/hsm/hsm.ts';
import type { Registration } from '../../../core/io-bus.ts';
import type { PlatformEnv } from '../driver.ts';
import { passthroughOf } from '../host-devices.ts';
import type { PlatformDevice } from '../platform-device.ts';
import { type CacheHierarchy, cacheHierarchy, placeBuffers, type SsramBuffer, ssramBuffers } from './buffers.ts';
import { MAX_SSRAM_BYTES, type SsramOptions } from './options.ts';
import { guestRtct, isVersion2 } from './rtct.ts';

const CPUID_CACHES = 4;
/** Where the range ends, unless a graphics device has memory there. */
const RANGE_END: Gpa = 0x8000_0000;

/** What it needs of this host. */
export interface SsramHost {
  openTcc(): TccDriver;
  caches(): CacheHierarchy;
}
const thisHost: SsramHost = { openTcc, caches: () => cacheHierarchy((subleaf) => readCpuid(CPUID_CACHES, subleaf)) };

export class Ssram implements PlatformDevice {
  readonly #regions: SsramOptions['regions'];
  readonly #env: PlatformEnv;
  readonly #host: SsramHost;
  readonly #taken: TccBuffer[] = [];
  #rtct: Uint8Array | undefined;

  constructor({ regions }: SsramOptions, env: PlatformEnv, host: SsramHost = thisHost) {
    this.#regions = regions;
    this.#env = env;
    this.#host = host;
  }

  attach(): Registration[] {
    return [];
  }

  tables(): readonly DeviceTable[] {
    return this.#rtct === undefined ? [] : [{ signature: 'RTCT', bytes: this.#rtct }];
  }

  /** Compat: as C, whose mask clears the bit of the size: 16 MiB below the end where that is a multiple of them. */
  get reservedMemory(): { readonly base: Gpa; readonly size: number } {
    const end = this.#env.reservedBelow?.() ?? RANGE_END;
    const base = end - MAX_SSRAM_BYTES;
    return { base: base - (Math.floor(base / MAX_SSRAM_BYTES) % 2) * MAX_SSRAM_BYTES, size: MAX_SSRAM_BYTES };
  }

  /** @throws HostError that says what of the host is missing, ConfigError for vCPUs without a cache in common. */
  start(): void {
    const { hsm, vcpus } = this.#env;
    const passthrough = passthroughOf(hsm, '--ssram');
    let tcc: TccDriver;
    try {
      tcc = this.#host.openTcc();
    } catch (error) {
      const { errno, message } = error as HostError;
      throw new HostError(`--ssram: ${message}`, errno, {
        cause: error,
        hint: 'cache is given away by the kernel module tcc_buffer (Intel TCC), on processors that have it',
      });
    }
    try {
      const caches = this.#host.caches();
      const host = tcc.rtct();
      // Compat: C leaves the table out then, and the start fails when it is written.
      if (!isVersion2(host)) throw new HostError('--ssram: the RTCT of this host is not of version 2', 0);
      const buffers = ssramBuffers(this.#regions, vcpus?.() ?? [], caches);
      placeBuffers(buffers, this.reservedMemory.base, caches);
      const regions = tcc.regions();
      const ways = new Map<SsramBuffer, number>();
      for (const buffer of buffers) {
        if (buffer.sizeBytes === 0) continue;
        const { region, address } = this.#take(tcc, regions, buffer);
        ways.set(buffer, region.ways);
        const mapping: RamMapping = {
          gpa: buffer.gpa,
          sizeBytes: buffer.sizeBytes,
          // Nobody here may look at it.
          bytes: new Uint8Array(0),
          hostAddress: address,
          writable: true,
        };
        // It takes the place of RAM where the guest has so much.
        passthrough.unmapMmio({ gpa: buffer.gpa, physicalAddress: 0, sizeBytes: buffer.sizeBytes });
        hsm.mapRam(mapping);
      }
      this.#rtct = guestRtct(buffers, ways, caches, host);
    } finally {
      tcc.close();
    }
  }

  #take(tcc: TccDriver, regions: readonly TccRegion[], buffer: SsramBuffer): { region: TccRegion; address: bigint } {
    const { level, sizeBytes, pcpus } = buffer;
    const [pcpu = 0] = pcpus;
    let refusal = 'no region of it is large enough';
    for (const region of regions) {
      if (region.level !== level || region.sizeBytes < sizeBytes || !region.hasCpu(pcpu)) continue;
      try {
        const taken = tcc.request(region, sizeBytes);
        this.#taken.push(taken);
        return { region, address: taken.address };
      } catch (error) {
        refusal = (error as Error).message;
      }
    }
    throw new HostError(`--ssram: ${sizeBytes} bytes of the L${level} cache of CPU ${pcpu}: ${refusal}`, 0);
  }

  /** The hypervisor keeps a mapping until the VM is destroyed, as it does RAM's. */
  stop(): void {
    for (const buffer of this.#taken.splice(0)) buffer.dispose();
    this.#rtct = undefined;
  }

  reset(): void {}
}
