/** What `--dry-run` says of functions that are passed through. */
import { hex } from '../devicemodel/core/address.ts';
import { formatSize } from '../devicemodel/core/units.ts';
import type { PassthroughReport } from '../devicemodel/hw/pci/function.ts';

/** Lines below the one that names the function. */
export function passthroughLines(report: PassthroughReport): string[] {
  const indent = '         ';
  const lines = report.notes.map((note) => `${indent}note: ${note}`);
  if (report.isAbsent === true) return lines;
  const driver = report.driver === undefined ? 'no driver' : `driver ${report.driver}`;
  const group = report.iommuGroup === undefined ? '' : `, IOMMU group ${report.iommuGroup}`;
  const reset = report.hasReset ? '' : ', no reset';
  lines.unshift(`${indent}is ${report.physical} of the host: ${driver}${group}${reset}`);
  for (const bar of report.bars) {
    lines.push(`${indent}bar${bar.index} is at ${hex(bar.address)} on the host, ${formatSize(bar.sizeBytes)}`);
  }
  if (report.interrupts.length > 0) lines.push(`${indent}interrupts by ${report.interrupts.join(' or ')}`);
  if (report.physicalPin !== undefined) lines.push(`${indent}INTx from line ${report.physicalPin} of the host`);
  if (report.rootPort !== undefined) {
    lines.push(`${indent}behind a virtual root port in this slot, at ${report.rootPort.endpoint}`);
  }
  if (report.reservedMemory !== undefined) {
    const { base, sizeBytes } = report.reservedMemory;
    lines.push(`${indent}reserves ${hex(base)}-${hex(base + sizeBytes - 1)} of guest memory`);
  }
  if (report.hasAml === true) lines.push(`${indent}described to the guest by ACPI`);
  return lines;
}
