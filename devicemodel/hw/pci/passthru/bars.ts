/**
 * Base address registers of a host function, and what they become in the guest. Kind and place are in the register, the
 * size is the kernel's (`resource`): sizing a BAR would disturb a driver that still has the function.
 */
import { type BarIndex, type BarSpec, Cfg, decodeBar } from '../../../chips/pci-config-space.ts';
import { hex } from '../../../core/address.ts';
import { ConfigError, ExitCode } from '../../../core/errors.ts';
import { alignUp, KiB } from '../../../core/units.ts';
import type { ConfigCopy } from './capabilities.ts';
import { type HostFunction, type HostResource, ResourceFlag } from './host-function.ts';

const LAST_BAR = 5;
/** The hypervisor maps pages. */
const PAGE = 4 * KiB;
/** What `vmsix_on_msi` takes: one page for the table. */
const MSIX_TABLE_BYTES = PAGE;

export interface HostBar {
  readonly index: BarIndex;
  readonly kind: BarSpec['kind'];
  /** On the host. */
  readonly address: number;
  readonly sizeBytes: number;
  readonly prefetchable: boolean;
}

/**
 * The registers in use.
 * @throws ConfigError for one that the hypervisor cannot map.
 */
export function readHostBars(fn: HostFunction, config: ConfigCopy): HostBar[] {
  const bars: HostBar[] = [];
  const resources = fn.readResources();
  for (let i = 0; i <= LAST_BAR; i++) {
    const resource = resources[i] as HostResource;
    if (resource.sizeBytes === 0) continue;
    const bar = hostBar(i as BarIndex, config.get32(Cfg.Bar0 + 4 * i), resource, config.get32(Cfg.Bar0 + 4 * i + 4));
    if (bar.kind === 'mem64') {
      if (i === LAST_BAR) {
        throw refused(`BAR ${i} of ${fn.name} is 64 bits wide, and there is no register for its upper half`);
      }
      i++;
    }
    if (bar.kind !== 'io' && bar.address % PAGE !== 0) {
      throw refused(
        `BAR ${bar.index} of ${fn.name} is at ${hex(bar.address)}, which is not the start of a page: other devices may share the page`,
        `add pci=resource_alignment=${fn.name} to the boot arguments of the Service VM`,
      );
    }
    bars.push(bar);
  }
  return bars;
}

function hostBar(index: BarIndex, register: number, resource: HostResource, upper: number): HostBar {
  const { sizeBytes, flags } = resource;
  // The registers of a virtual function read as zero (SR-IOV 1.1 §3.4.1.11): the kernel knows where they are.
  if (register === 0) {
    const kind = (flags & ResourceFlag.Io) !== 0 ? 'io' : (flags & ResourceFlag.Mem64) !== 0 ? 'mem64' : 'mem32';
    return { index, kind, address: resource.base, sizeBytes, prefetchable: (flags & ResourceFlag.Prefetch) !== 0 };
  }
  return { index, sizeBytes, ...decodeBar(register, upper) };
}

/**
 * What the guest gets: I/O where it is on the host, memory in whole pages.
 * @param tableBar where the hypervisor is to put an MSI-X table of its own.
 * @throws ConfigError if that register is in use.
 */
export function guestBars(fn: HostFunction, bars: readonly HostBar[], tableBar: number | undefined): BarSpec[] {
  const specs: BarSpec[] = bars.map(({ index, kind, address, sizeBytes, prefetchable }) =>
    kind === 'io'
      ? { index, kind, sizeBytes, fixedAddress: address }
      : { index, kind, sizeBytes: alignUp(sizeBytes, PAGE), prefetchable },
  );
  if (tableBar === undefined) return specs;
  const taken = bars.find((bar) => bar.index === tableBar || (bar.kind === 'mem64' && bar.index + 1 === tableBar));
  if (taken !== undefined) {
    // Compat: C puts the table over what is there.
    throw refused(`vmsix_on_msi: ${fn.name} uses BAR ${tableBar} itself`, freeBars(bars));
  }
  return [...specs, { index: tableBar as BarIndex, kind: 'mem32', sizeBytes: MSIX_TABLE_BYTES, prefetchable: false }];
}

function freeBars(bars: readonly HostBar[]): string {
  const taken = new Set(bars.flatMap(({ index, kind }) => (kind === 'mem64' ? [index, index + 1] : [index])));
  const free = [0, 1, 2, 3, 4, 5].filter((index) => !taken.has(index));
  return free.length === 0 ? 'it uses all six' : `these are free: ${free.join(', ')}`;
}

function refused(text: string, hint?: string): ConfigError {
  return new ConfigError(text, { exitCode: ExitCode.Unavailable, ...(hint === undefined ? {} : { hint }) });
}
