/**
 * Ports every PC guest touches and nobody emulates: reads give all ones, writes go nowhere, and no log line is made of
 * it. The hypervisor has the PICs, so their edge/level registers do nothing here.
 */
import { type AccessSize, allOnes } from '../../core/address.ts';
import type { IoRegion } from '../../core/device.ts';
import { io } from '../../core/firmware/aml-resources.ts';
import type { TableContributor } from '../../core/firmware/contribution.ts';
import type { AddressRange, IoBus, Registration } from '../../core/io-bus.ts';
import type { PlatformDevice } from './platform-device.ts';

const POST_PORT = 0x84;
const ELCR = { base: 0x4d0, size: 2 };

export const quietPorts: readonly AddressRange[] = [
  /** Extended RTC ports. */
  { base: 0x72, size: 2, name: 'rtc extended' },
  { base: 0x76, size: 2, name: 'rtc extended' },
  /** POST codes; Linux writes port 0x80 for a short delay. */
  { base: 0x80, size: 1, name: 'post' },
  { base: POST_PORT, size: 1, name: 'post' },
  /** Linux's other delay port (io_delay=0xed). */
  { base: 0xed, size: 1, name: 'io delay' },
  /** ELCR1, ELCR2. */
  { ...ELCR, name: 'elcr' },
];

/** Those of them that the guest is told to keep clear of. */
export const elcrTables: TableContributor = { motherboardResources: () => [io(ELCR.base, ELCR.size)] };
export const postTables: TableContributor = { motherboardResources: () => [io(POST_PORT, 1)] };

export class QuietPorts implements PlatformDevice, IoRegion {
  attach(pio: IoBus): Registration[] {
    return quietPorts.map((range) => pio.register(range, this));
  }

  reset(): void {}

  stop(): void {}

  read(_offset: number, size: AccessSize): number {
    return allOnes(size);
  }

  write(): void {}
}
