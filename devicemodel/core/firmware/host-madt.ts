/**
 * Which local APIC id each physical CPU has, from the host's own MADT. The hypervisor numbers CPUs in the order of
 * that table, `--cpu_affinity` and the guest's tables speak of local APIC ids.
 */
import { BugError, ConfigError, ExitCode } from '../errors.ts';

/** Where Linux shows the table. */
export const HOST_MADT_PATH = '/sys/firmware/acpi/tables/APIC';

const MADT_HEADER_BYTES = 44;
const LOCAL_APIC = 0;
const ENABLED = 1;

/**
 * Local APIC ids of the enabled CPUs, in table order: index = physical CPU id (ACPI 6.4 §5.2.12.2).
 * @throws ConfigError if there is none.
 */
export function parseHostMadt(table: Uint8Array): readonly number[] {
  const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
  const end = table.length < MADT_HEADER_BYTES ? 0 : Math.min(view.getUint32(4, true), table.length);
  const ids: number[] = [];
  for (let at = MADT_HEADER_BYTES; at + 2 <= end; ) {
    const length = view.getUint8(at + 1);
    if (length < 2) break;
    if (view.getUint8(at) === LOCAL_APIC && length >= 8 && at + 8 <= end) {
      if ((view.getUint32(at + 4, true) & ENABLED) !== 0) ids.push(view.getUint8(at + 3));
    }
    at += length;
  }
  if (ids.length === 0) {
    throw new ConfigError(`${HOST_MADT_PATH}: no enabled CPU in the table`, { exitCode: ExitCode.Unavailable });
  }
  return ids;
}

/** Physical CPUs (hypervisor numbering) of an affinity bitmap, lowest first: vCPU n runs on the nth. */
export function cpusOfAffinity(affinity: bigint): readonly number[] {
  const cpus: number[] = [];
  for (let cpu = 0, rest = affinity; rest !== 0n; cpu++, rest >>= 1n) {
    if ((rest & 1n) !== 0n) cpus.push(cpu);
  }
  return cpus;
}

/**
 * Local APIC id of each vCPU, in vCPU order.
 * @throws ConfigError if there are more vCPUs than bits in the bitmap (the tables of such a guest cannot be right).
 */
export function guestLapicIds(hostIds: readonly number[], affinity: bigint, vcpuCount: number): readonly number[] {
  const cpus = cpusOfAffinity(affinity);
  if (cpus.length < vcpuCount) {
    throw new ConfigError(
      `--cpu_affinity: the VM has ${vcpuCount} vCPU${vcpuCount === 1 ? '' : 's'}, but ${cpus.length === 0 ? 'no CPU is' : `only ${cpus.length} of them ${cpus.length === 1 ? 'has' : 'have'} a CPU`} given`,
      { hint: 'give --cpu_affinity one local APIC id per vCPU of the scenario' },
    );
  }
  return cpus.slice(0, vcpuCount).map((cpu) => {
    const id = hostIds[cpu];
    if (id === undefined) throw new BugError(`physical CPU ${cpu} is not in the host's table of ${hostIds.length}`);
    return id;
  });
}
