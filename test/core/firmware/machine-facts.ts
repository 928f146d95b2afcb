/** What the firmware tables need to know of a recorded machine, from its command line. */
import { parseLpc } from '../../../config/slot.ts';
import type { AcpiInput } from '../../../devicemodel/core/firmware/acpi-tables.ts';
import type { TableContributor } from '../../../devicemodel/core/firmware/contribution.ts';
import { readCpuStates } from '../../../devicemodel/core/firmware/cpu-states.ts';
import type { MpInput } from '../../../devicemodel/core/firmware/mptable.ts';
import type { CpuStateQuery } from '../../../devicemodel/core/hsm/hsm.ts';
import type { IntxRoute } from '../../../devicemodel/hw/pci/host-aml.ts';
import { SCI_GSI } from '../../../devicemodel/hw/platform/pm.ts';
import { tpmTables } from '../../../devicemodel/hw/platform/tpm-tables.ts';
import { affinityOf, vcpuLapicIds } from '../../../hypervisor/acrn/cpus.ts';
import { pcAcpiInput } from '../../support/pc-tables.ts';
import { optionValues, RECORDED_HOST_LAPIC_IDS, type RecordedCase } from '../../support/recorded-cases.ts';

/** What the tables see of a driver: whether it asks for an INTx pin, and how many I/O BARs it has. */
interface DriverFacts {
  readonly intx: boolean;
  readonly ioBars: number;
}
const NOTHING: DriverFacts = { intx: false, ioBars: 0 };
const LEGACY_VIRTIO: DriverFacts = { intx: true, ioBars: 1 };

function driverFacts(driver: string, options: string): DriverFacts | undefined {
  switch (driver) {
    case 'hostbridge':
    case 'lpc':
    case 'ivshmem':
      return NOTHING;
    case 'virtio-blk':
    case 'virtio-console':
    case 'virtio-rnd':
      return LEGACY_VIRTIO;
    case 'wdt-i6300esb':
    case 'ahci':
      return { intx: true, ioBars: 0 };
    case 'uart':
      // The hypervisor's vUART has MSI-X and memory BARs; the emulated one an I/O BAR and INTx.
      return options.startsWith('vuart_idx') ? NOTHING : { intx: true, ioBars: 1 };
    default:
      return undefined;
  }
}

/** I/O BARs are given a page each; a bus has 32 ports of slack behind its last. */
const IO_BASE = 0x2000;
const IO_BAR_STRIDE = 0x1000;
const IO_SLACK = 0x20;
/**
 * The reference's second life after a reset: it forgets to release INTA#, so a function gets INTB# and both pins are
 * routed. A matter of PCI, not of the tables: they tell what they are given.
 */
const SECOND_PIN = /^reset_(cf9|kbd)/;

/** P- and C-states as the recorder hands them out, in the structs of PM_GET_CPU_STATE. */
function cpuStateSource(config: Record<string, unknown>) {
  const px = (config['px'] ?? []) as Record<string, number | string>[];
  const cx = (config['cx'] ?? []) as Record<string, number | string>[];
  const count = (n: number) => Uint8Array.of(n, 0, 0, 0, 0, 0, 0, 0);
  const number = (from: Record<string, number | string>, key: string) => Number(from[key] ?? 0);
  return {
    getCpuState(query: CpuStateQuery): Uint8Array | undefined {
      const out = new Uint8Array(48);
      const view = new DataView(out.buffer);
      switch (query.type) {
        case 'px-count':
          return px.length > 0 ? count(px.length) : undefined;
        case 'cx-count':
          return cx.length > 0 ? count(cx.length) : undefined;
        case 'px-data': {
          const state = px[query.state];
          if (state === undefined) return undefined;
          for (const [i, key] of ['freq', 'power', 'tlat', 'blat', 'control', 'status'].entries()) {
            view.setBigUint64(8 * i, BigInt(number(state, key)), true);
          }
          return out;
        }
        case 'cx-data': {
          const state = cx[query.state - 1];
          if (state === undefined) return undefined;
          out.set([number(state, 'space'), number(state, 'bit_width'), number(state, 'bit_offset')]);
          view.setUint8(3, number(state, 'access_size'));
          view.setBigUint64(4, BigInt(number(state, 'address')), true);
          view.setUint8(12, number(state, 'type'));
          view.setUint32(16, number(state, 'latency'), true);
          view.setBigUint64(24, BigInt(number(state, 'power')), true);
          return out;
        }
      }
    },
  };
}

/** The TPM that --acpidev_pt passes through, as the recorded host's files describe it. */
function hostTpms({ argv, script }: RecordedCase): TableContributor[] {
  const files = (script.config['vfs'] ?? {}) as Record<string, { text?: string; hex?: string } | undefined>;
  return optionValues(argv, '--acpidev_pt').map((device) => {
    const [, start, end] =
      new RegExp(`(\\w+)-(\\w+) : ${device.replace(',', ':')}`).exec(files['/proc/iomem']?.text ?? '') ?? [];
    const base = Number.parseInt(start as string, 16);
    const table = Buffer.from(files['/sys/firmware/acpi/tables/TPM2']?.hex ?? '', 'hex');
    const log = table.length < 76 ? {} : { log: { gpa: 0xf000_0000, sizeBytes: table.readUInt32LE(64) } };
    return tpmTables({ base, sizeBytes: Number.parseInt(end as string, 16) + 1 - base, ...log });
  });
}

/** The TPM of swtpm, at the beginning of the window for devices of the board; C goes on without it where it has no path. */
function virtualTpms({ argv }: RecordedCase): TableContributor[] {
  const paths = optionValues(argv, '--vtpm2').filter((text) => text.startsWith('sock_path='));
  return paths.map(() => tpmTables({ base: 0xf000_0000, sizeBytes: 0x5000 }));
}

/** @returns undefined if a device is not known here: of passed-through functions only playing a case tells. */
export function machineFacts(recorded: RecordedCase): { acpi: AcpiInput; mp: MpInput } | undefined {
  const { name, argv, script } = recorded;
  const ids = optionValues(argv, '--cpu_affinity').flatMap((list) => list.split(',').map(Number));
  const { bitmap } = affinityOf(ids, RECORDED_HOST_LAPIC_IDS);
  const lapicIds = vcpuLapicIds(bitmap, new Set(ids).size, RECORDED_HOST_LAPIC_IDS);
  const isRtvm = argv.includes('--rtvm');

  const slots = optionValues(argv, '-s')
    .map((text) => {
      const [at, driver, ...options] = text.split(',') as [string, string, ...string[]];
      return { device: Number(at.split(':')[0]), driver, facts: driverFacts(driver, options.join(',')) };
    })
    // `bus:slot` and `slot:function` are both in use: 0:0 is the host bridge, 1:0 the LPC bridge in slot 1.
    .sort((a, b) => a.device - b.device);
  if (slots.some((slot) => slot.facts === undefined)) return undefined;

  const routes: IntxRoute[] = [];
  let pins = 0;
  for (const { device, facts } of slots) {
    if (facts?.intx !== true) continue;
    const gsi = 16 + pins;
    const link = pins + 1;
    routes.push({ device, pin: 1, gsi, link });
    if (SECOND_PIN.test(name)) routes.push({ device, pin: 2, gsi, link });
    pins++;
  }
  const ioBars = slots.reduce((sum, slot) => sum + (slot.facts?.ioBars ?? 0), 0);
  const lpc = slots.find((slot) => slot.driver === 'lpc');
  const com = optionValues(argv, '-l').map(parseLpc);
  const states = cpuStateSource(script.config);
  return {
    acpi: pcAcpiInput({
      cpus: lapicIds.map((lapicId, vcpu) => ({ lapicId, ...readCpuStates(states, vcpu) })),
      isRtvm,
      com: com.toSorted((a, b) => a.index - b.index),
      ...(lpc === undefined ? {} : { lpc: { bus: 0, device: lpc.device, function: 0 } }),
      ioWindow: { base: IO_BASE, end: IO_BASE + ioBars * IO_BAR_STRIDE + IO_SLACK },
      routes,
      devices: [...hostTpms(recorded), ...virtualTpms(recorded)],
    }),
    // The local APIC is passed through to RTVMs only. A system reset, unlike a full one, leaves the MP table as it was.
    mp: {
      lapicIds,
      lapicPassthrough: isRtvm,
      routes: name === 'reset_cf9_6' ? routes.filter((r) => r.pin === 1) : routes,
      sciGsi: SCI_GSI,
    },
  };
}
