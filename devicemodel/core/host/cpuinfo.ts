/** What Linux says of this machine's CPUs. */
import { readFileSync } from 'node:fs';

const CPUINFO_PATH = '/proc/cpuinfo';

/** @returns nothing where it cannot be read. */
export function readCpuinfo(): string {
  try {
    return readFileSync(CPUINFO_PATH, 'utf8');
  } catch {
    return '';
  }
}

/**
 * Whether its CPU can run guests: VT-x or AMD-V. Where nothing is told of the CPU, nothing is known against it.
 * @param text of /proc/cpuinfo.
 */
export function hasVirtualization(text: string): boolean {
  return text === '' || /^flags\s*:.*\b(vmx|svm)\b/m.test(text);
}
