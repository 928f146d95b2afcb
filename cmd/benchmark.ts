/** `acrn-dm --benchmark[=json]`: what `measureHypervisor` finds, for people or as JSON. */
import type { VmConfig } from '../devicemodel/core/config.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { type BenchmarkResult, measureHypervisor } from '../library/benchmark.ts';
import { version } from './version.ts';

/** Of the JSON form; docs/embedded-hypervisor.md says what its members are. */
const SCHEMA_VERSION = 1;

/** @returns lines for standard output. @throws DmError */
export async function benchmark(config: VmConfig, format: 'text' | 'json', log: Log): Promise<string[]> {
  const result = await measureHypervisor(config, log);
  return format === 'json' ? [JSON.stringify(benchmarkJson(result), undefined, 2)] : benchmarkLines(result);
}

export function benchmarkJson(result: BenchmarkResult) {
  return { schemaVersion: SCHEMA_VERSION, version: version(), ...result };
}

export function benchmarkLines(result: BenchmarkResult): string[] {
  const { hypervisor, vcpus, instructionsPerSecond, portExitsPerSecond, mmioExitsPerSecond } = result;
  const line = (what: string, perSecond: number, unit: number, letter: string) =>
    `  ${what.padEnd(13)}${(perSecond / unit).toFixed(1).padStart(8)} ${letter} a second`;
  return [
    `hypervisor ${hypervisor}, ${vcpus} vCPU${vcpus === 1 ? '' : 's'}, median of ${result.rounds} rounds each`,
    `${line('instructions', instructionsPerSecond, 1e6, 'M')} of CPU time`,
    line('port exits', portExitsPerSecond, 1e3, 'k'),
    line('MMIO exits', mmioExitsPerSecond, 1e3, 'k'),
  ];
}
