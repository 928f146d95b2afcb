/**
 * The devices there are. A new one is one line, in {@link pciDrivers} or in {@link platformDrivers}: `eager(driver)` for
 * a small PCI one, `lazy(…)` for one whose module costs start-up time when nobody uses it.
 */
import { BugError, ConfigError } from '../core/errors.ts';
import { ahciCdInfo, ahciInfo } from './pci/ahci/options.ts';
import type { PciDriver, PciDriverInfo } from './pci/driver.ts';
import { dummy } from './pci/dummy.ts';
import { amdHostBridge, hostBridge } from './pci/host-bridge.ts';
import { ivshmem } from './pci/ivshmem.ts';
import { lpc } from './pci/lpc.ts';
import { igdLpcInfo, passthruInfo } from './pci/passthru/options.ts';
import { piix4Pm } from './pci/piix4-pm.ts';
import { rootPort } from './pci/root-port.ts';
import { pciUart } from './pci/uart.ts';
import { blockInfo } from './pci/virtio/block/options.ts';
import { consoleInfo } from './pci/virtio/console/options.ts';
import { gpioInfo } from './pci/virtio/gpio/options.ts';
import { gpuInfo } from './pci/virtio/gpu/options.ts';
import { heciInfo } from './pci/virtio/heci/options.ts';
import { i2cInfo } from './pci/virtio/i2c/options.ts';
import { inputInfo } from './pci/virtio/input/options.ts';
import { netInfo } from './pci/virtio/net/options.ts';
import { rpmbInfo } from './pci/virtio/rpmb/options.ts';
import { rngInfo } from './pci/virtio/transport/options.ts';
import { vsockInfo } from './pci/virtio/vsock/options.ts';
import { wdtI6300esb } from './pci/wdt-i6300esb.ts';
import { xhciInfo } from './pci/xhci/options.ts';
import { acpidevPt } from './platform/acpidev/acpidev.ts';
import type { PlatformDriver } from './platform/driver.ts';
import { fwCfg } from './platform/fw-cfg.ts';
import { mmiodevPt } from './platform/mmiodev-pt.ts';
import { ssram } from './platform/ssram/driver.ts';
import { testdev } from './platform/testdev.ts';
import { vtpm2 } from './platform/vtpm2.ts';

// biome-ignore lint/suspicious/noExplicitAny: drivers of all option types in one list
export type AnyPciDriver = PciDriver<any>;

/** What the command line and help need of a driver, and how to get at the rest. */
// biome-ignore lint/suspicious/noExplicitAny: as AnyPciDriver
export interface PciDriverEntry extends PciDriverInfo<any> {
  load(): AnyPciDriver | Promise<AnyPciDriver>;
}

/** For a module that may be loaded at every start. */
function eager(driver: AnyPciDriver): PciDriverEntry {
  return { ...driver, load: () => driver };
}

/**
 * For a module that is loaded when a VM has such a device. The options stand in a small module of their own, since the
 * command line checks them before that.
 */
// biome-ignore lint/suspicious/noExplicitAny: as AnyPciDriver
function lazy(info: PciDriverInfo<any>, load: () => Promise<AnyPciDriver>): PciDriverEntry {
  return { ...info, load };
}

export const pciDrivers: readonly PciDriverEntry[] = [
  eager(hostBridge),
  eager(amdHostBridge),
  eager(lpc),
  eager(ivshmem),
  eager(pciUart),
  eager(rootPort),
  eager(dummy),
  eager(wdtI6300esb),
  eager(piix4Pm),
  lazy(blockInfo, async () => (await import('./pci/virtio/block/block.ts')).virtioBlk),
  lazy(netInfo, async () => (await import('./pci/virtio/net/net.ts')).virtioNet),
  lazy(consoleInfo, async () => (await import('./pci/virtio/console/console.ts')).virtioConsole),
  lazy(inputInfo, async () => (await import('./pci/virtio/input/input.ts')).virtioInput),
  lazy(vsockInfo, async () => (await import('./pci/virtio/vsock/vsock.ts')).vhostVsock),
  lazy(i2cInfo, async () => (await import('./pci/virtio/i2c/i2c.ts')).virtioI2c),
  lazy(gpioInfo, async () => (await import('./pci/virtio/gpio/gpio.ts')).virtioGpio),
  lazy(gpuInfo, async () => (await import('./pci/virtio/gpu/virtio-vga.ts')).virtioGpu),
  lazy(
    {
      ...passthruInfo,
      checkHost: async (slots, context) => (await import('./pci/passthru/checks.ts')).checkPassthrough(slots, context),
    },
    async () => (await import('./pci/passthru/passthru.ts')).passthru,
  ),
  lazy(
    {
      ...igdLpcInfo,
      checkHost: async (_slots, { hostTree }) => (await import('./pci/passthru/checks.ts')).checkIgdLpc(hostTree),
    },
    async () => (await import('./pci/passthru/igd-lpc.ts')).igdLpc,
  ),
  lazy(ahciInfo, async () => (await import('./pci/ahci/ahci.ts')).ahci),
  lazy(ahciCdInfo, async () => (await import('./pci/ahci/ahci.ts')).ahciCd),
  lazy(xhciInfo, async () => (await import('./pci/xhci/xhci.ts')).xhci),
  lazy(rngInfo, async () => (await import('./pci/virtio/rng.ts')).virtioRnd),
  lazy(heciInfo, async () => (await import('./pci/virtio/heci/heci.ts')).virtioHeci),
  lazy(rpmbInfo, async () => (await import('./pci/virtio/rpmb/rpmb.ts')).virtioRpmb),
];

/** Devices that options of their own put on the board: `--vtpm2 …`. */
export const platformDrivers = [acpidevPt, mmiodevPt, vtpm2, ssram, fwCfg, testdev] as const;
export type PlatformOptionName = (typeof platformDrivers)[number]['name'];

// biome-ignore lint/suspicious/noExplicitAny: drivers of all option types in one list
export type AnyPlatformDriver = PlatformDriver<PlatformOptionName, any>;

/** @throws BugError for a name that no option has. */
export function platformDriver(name: string): AnyPlatformDriver {
  const driver: AnyPlatformDriver | undefined = platformDrivers.find((d) => d.name === name);
  if (driver === undefined) throw new BugError(`there is no platform device ${name}`);
  return driver;
}

/** Drivers that are gone, with what became of them. */
const obsolete: Readonly<Record<string, string>> = {
  'pci-gvt': 'GVT-g is no longer supported: pass a virtual function through instead',
  'virtio-hdcp': 'HDCP by virtio is no longer supported',
  npk: 'the trace hub is no longer supported',
  'virtio-coreu': 'CoreU by virtio is no longer supported',
  'virtio-audio': 'audio by virtio is no longer supported: pass the audio device through instead',
  'virtio-ipu': 'IPU by virtio is no longer supported: pass the device through instead',
  'virtio-hyper_dmabuf': 'hyper_dmabuf is no longer supported: use ivshmem',
};

/** What other programs call it. */
const OTHER_NAMES: Readonly<Record<string, string>> = {
  e1000: 'virtio-net',
  'e1000-82545em': 'virtio-net',
  rtl8139: 'virtio-net',
  nvme: 'virtio-blk',
  ide: 'ahci',
  sata: 'ahci',
  ehci: 'xhci',
  uhci: 'xhci',
  usb: 'xhci',
  vga: 'virtio-gpu',
  'virtio-vga': 'virtio-gpu',
  'vfio-pci': 'passthru',
  vfio: 'passthru',
  watchdog: 'wdt-i6300esb',
  wdt: 'wdt-i6300esb',
  'virtio-serial': 'virtio-console',
  rng: 'virtio-rnd',
};

/** What a name on the command line stands for. */
export type PciDriverLookup =
  | { readonly kind: 'driver'; readonly entry: PciDriverEntry }
  | { readonly kind: 'obsolete'; readonly message: string }
  | { readonly kind: 'unknown'; readonly message: string; readonly hint: string };

export function lookupPciDriver(name: string, drivers: readonly PciDriverEntry[] = pciDrivers): PciDriverLookup {
  const entry = drivers.find((d) => d.name === name || d.aliases?.includes(name) === true);
  if (entry !== undefined) return { kind: 'driver', entry };
  const gone = Object.hasOwn(obsolete, name) ? obsolete[name] : undefined;
  if (gone !== undefined) return { kind: 'obsolete', message: `device "${name}" is obsolete: ${gone}` };
  const names = drivers.flatMap((d) => [d.name, ...(d.aliases ?? [])]);
  // All names are in small letters.
  const meant = name.toLowerCase();
  const other = Object.hasOwn(OTHER_NAMES, meant) ? OTHER_NAMES[meant] : undefined;
  const near = names.find((known) => known === other) ?? nearest(meant, names);
  return {
    kind: 'unknown',
    message: `unknown device "${name}"`,
    hint: near === undefined ? '-s help lists the devices' : `did you mean "${near}"?`,
  };
}

/** @throws ConfigError with one clear line for every name that is not a driver. */
export async function loadPciDriver(name: string): Promise<AnyPciDriver> {
  const found = lookupPciDriver(name);
  if (found.kind === 'driver') return found.entry.load();
  throw new ConfigError(found.message, found.kind === 'unknown' ? { hint: found.hint } : {});
}

/** Letters of a name in which two slips leave nothing of it. */
const SHORT_NAME = 2;

/** The candidate a typing error away, or undefined. */
function nearest(name: string, candidates: readonly string[]): string | undefined {
  // What a device does stands last: `virtio-vsock` is a slip for `vhost-vsock`, and `net` for `virtio-net`.
  const sameKind = candidates.filter((candidate) => candidate.split('-').at(-1) === name.split('-').at(-1));
  if (sameKind.length === 1) return sameKind[0];
  // What all begin with says nothing: `virtio-9p` is no slip for `virtio-gpu`.
  const own = name.replace(/^virtio-/, '').length;
  const limit = own <= SHORT_NAME ? 1 : Math.max(1, Math.floor(name.length / 3));
  let best: string | undefined;
  let bestDistance = limit + 1;
  for (const candidate of candidates) {
    const distance = editDistance(name, candidate, limit);
    if (distance < bestDistance) [best, bestDistance] = [candidate, distance];
  }
  return best;
}

/** Levenshtein distance; anything beyond `limit` counts as limit + 1. */
function editDistance(a: string, b: string, limit: number): number {
  if (Math.abs(a.length - b.length) > limit) return limit + 1;
  let row = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      const replace = (row[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replace, (row[j] as number) + 1, (next[j - 1] as number) + 1));
    }
    row = next;
  }
  return row[b.length] as number;
}
