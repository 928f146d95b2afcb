/** The vCPUs of a VM and where they run. `--cpu_affinity` names CPUs by local APIC id, as on a Service VM of ACRN. */
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { ConfigError, ExitCode } from '../../devicemodel/core/errors.ts';
import { readCpuinfo } from '../../devicemodel/core/host/cpuinfo.ts';
import { IOREQ_SLOTS } from '../../devicemodel/core/ioreq-page.ts';

/** CPU numbers of Linux by local APIC id. @param text of /proc/cpuinfo. */
export function parseCpuinfo(text: string): Map<number, number> {
  const cpus = new Map<number, number>();
  for (const block of text.split(/\n\s*\n/)) {
    const field = (name: string) => new RegExp(`^${name}\\s*:\\s*(\\d+)\\s*$`, 'm').exec(block)?.[1];
    const cpu = field('processor');
    const id = field('apicid');
    if (cpu !== undefined && id !== undefined) cpus.set(Number(id), Number(cpu));
  }
  return cpus;
}

export interface VcpuCpus {
  /** CPU of each vCPU; undefined: any. One vCPU at least. */
  readonly cpus: readonly (number | undefined)[];
  /** Ids that no CPU of this machine has. */
  readonly unknownIds: readonly number[];
}

/** One vCPU for each CPU named, on it where there is one; one anywhere if none is named. */
export function vcpuCpus({ cpuAffinity }: Pick<VmConfig, 'cpuAffinity'>, cpuinfo: string = readCpuinfo()): VcpuCpus {
  if (cpuAffinity.length === 0) return { cpus: [undefined], unknownIds: [] };
  const byId = parseCpuinfo(cpuinfo);
  return {
    cpus: cpuAffinity.map((id) => byId.get(id)),
    unknownIds: cpuAffinity.filter((id) => !byId.has(id)),
  };
}

/** @returns why there cannot be so many. */
export function vcpuProblems({ cpuAffinity }: Pick<VmConfig, 'cpuAffinity'>): ConfigError[] {
  if (cpuAffinity.length <= IOREQ_SLOTS) return [];
  return [
    new ConfigError(`--cpu_affinity names ${cpuAffinity.length} CPUs; a User VM has at most ${IOREQ_SLOTS} vCPUs`, {
      exitCode: ExitCode.Usage,
    }),
  ];
}
