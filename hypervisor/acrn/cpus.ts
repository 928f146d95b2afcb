/**
 * The Service VM's CPUs, as its ACPI tells: --cpu_affinity names them by local APIC id, the hypervisor wants a bitmap of
 * physical CPUs. Physical CPU n is the n-th enabled local APIC of the MADT, which holds because the Service VM's CPUs
 * start from physical CPU 0 in the hypervisor's own order.
 */
import fs from 'node:fs';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { ConfigError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { VcpuPlacement } from '../hypervisor.ts';

export const HOST_MADT_PATH = '/sys/firmware/acpi/tables/APIC';

/** CPUs ACRN can name. [ACRN_PLATFORM_LAPIC_IDS_MAX] */
const MAX_PCPUS = 64;

/** ACPI 6.5 §5.2.6: header of every table. §5.2.12: the MADT's own fields before its entries. */
const Header = { signature: 0, length: 4, entries: 44 } as const;
/** §5.2.12.2: Processor Local APIC structure. */
const LocalApic = { type: 0, size: 8, id: 3, flags: 4, enabled: 1 } as const;

/** What `affinityOf` found. */
export interface CpuAffinity {
  /** Bit n = physical CPU n. */
  readonly bitmap: bigint;
  /** Ids no enabled CPU has; see {@link affinityOf}. */
  readonly unknownIds: readonly number[];
}

/**
 * Local APIC ids of the enabled CPUs, in table order: the index is the physical CPU.
 * @throws ConfigError if the bytes are no MADT with a CPU in it.
 */
export function parseMadt(bytes: Uint8Array): number[] {
  const fail = (what: string) => {
    throw new ConfigError(`host MADT: ${what}`, { exitCode: ExitCode.DataError });
  };
  if (bytes.length < Header.entries) fail(`${bytes.length} bytes are no ACPI table`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const signature = String.fromCharCode(...bytes.subarray(Header.signature, Header.signature + 4));
  if (signature !== 'APIC') fail(`the signature is "${signature.replace(/\P{ASCII}|\p{Cc}/gu, '?')}"`);
  const end = Math.min(view.getUint32(Header.length, true), bytes.length);
  const ids: number[] = [];
  for (let at: number = Header.entries; at + 2 <= end; ) {
    const type = view.getUint8(at);
    const size = view.getUint8(at + 1);
    if (size < 2 || at + size > end) break;
    if (type === LocalApic.type && size >= LocalApic.size) {
      const isEnabled = (view.getUint32(at + LocalApic.flags, true) & LocalApic.enabled) !== 0;
      if (isEnabled && ids.length < MAX_PCPUS) ids.push(view.getUint8(at + LocalApic.id));
    }
    at += size;
  }
  if (ids.length === 0) fail('it has no enabled CPU');
  return ids;
}

/** @throws HostError if the table cannot be read; ConfigError as {@link parseMadt}. */
export function readHostMadt(path: string = HOST_MADT_PATH): number[] {
  let bytes: Uint8Array;
  try {
    bytes = fs.readFileSync(path);
  } catch (error) {
    const { code, errno } = error as NodeJS.ErrnoException;
    const noAccess = code === 'EACCES' || code === 'EPERM';
    throw new HostError(`${path}: cannot be read: ${code ?? (error as Error).message}`, Math.abs(errno ?? 0), {
      exitCode: noAccess ? ExitCode.NoPermission : ExitCode.Unavailable,
      hint: noAccess ? 'run as root' : 'it tells which CPU a local APIC id means; is this the Service VM?',
    });
  }
  return parseMadt(bytes);
}

/**
 * Bitmap of physical CPUs for CREATE_VM.
 * Compat: an id that no CPU has stands for the last CPU that can be named (bit 63), as in the C device model; the
 * caller should say so, the hypervisor decides.
 * @param hostLapicIds by physical CPU, from {@link readHostMadt}.
 */
export function affinityOf(lapicIds: readonly number[], hostLapicIds: readonly number[]): CpuAffinity {
  let bitmap = 0n;
  const unknownIds: number[] = [];
  for (const id of lapicIds) {
    const pcpu = hostLapicIds.indexOf(id);
    if (pcpu < 0) unknownIds.push(id);
    bitmap |= 1n << BigInt(pcpu < 0 ? MAX_PCPUS - 1 : pcpu);
  }
  return { bitmap, unknownIds };
}

/**
 * Local APIC ids the guest's vCPUs show in ACPI and MP tables: vCPU n runs on the n-th CPU of the bitmap and has its id.
 * Compat: a CPU the MADT does not know has id 0, as in the C device model.
 * @throws ConfigError if the VM has more vCPUs than the bitmap has CPUs.
 */
export function vcpuLapicIds(bitmap: bigint, vcpuCount: number, hostLapicIds: readonly number[]): number[] {
  const ids: number[] = [];
  for (let pcpu = 0; pcpu < MAX_PCPUS && ids.length < vcpuCount; pcpu++) {
    if (((bitmap >> BigInt(pcpu)) & 1n) === 1n) ids.push(hostLapicIds[pcpu] ?? 0);
  }
  if (ids.length < vcpuCount) {
    const known = hostLapicIds.join(', ');
    const hint = `give a local APIC id for each vCPU; this host has ${known}`;
    if (ids.length === 0) throw noAffinity(hint);
    throw new ConfigError(
      `--cpu_affinity: the hypervisor gives this VM ${vcpuCount} vCPUs, but ${ids.length} of its CPUs are named`,
      { hint },
    );
  }
  return ids;
}

/** ACRN's tables name each vCPU by the CPU it runs on. */
export function affinityProblems(config: Pick<VmConfig, 'cpuAffinity'>): ConfigError[] {
  return config.cpuAffinity.length > 0 ? [] : [noAffinity('grep apicid /proc/cpuinfo shows the ids of a Service VM')];
}

function noAffinity(hint: string): ConfigError {
  return new ConfigError('--cpu_affinity is missing: which CPUs does this VM run on? ACRN needs to know', { hint });
}

/** The placement of a VM on ACRN. @throws ConfigError or HostError, while there is no VM yet. */
export function acrnCpus(config: VmConfig, log: Log): VcpuPlacement {
  const hostIds = readHostMadt();
  const { bitmap, unknownIds } = affinityOf(config.cpuAffinity, hostIds);
  if (unknownIds.length > 0) {
    log.warn(`--cpu_affinity: no CPU has local APIC id ${unknownIds.join(', ')}; this host has ${hostIds.join(', ')}`);
  }
  // Refused here rather than when the tables are written.
  vcpuLapicIds(bitmap, 1, hostIds);
  return { affinity: bitmap, lapicIds: (count) => vcpuLapicIds(bitmap, count, hostIds) };
}
