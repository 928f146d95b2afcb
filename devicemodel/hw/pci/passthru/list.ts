/** Which functions of the host can be passed through, and why others cannot: for `--list-passthru`. */
import { ConfigError } from '../../../core/errors.ts';
import type { StubDriver } from '../../../core/host/sysfs-pci.ts';
import type { PassthroughReport } from '../function.ts';
import { formatHostAddress } from './address.ts';
import { warningsFor } from './checks.ts';
import { type HostFunction, hostFunctions } from './host-function.ts';
import { inspectFunction, unavailable } from './inspect.ts';

export interface ListedFunction {
  /** As `0000:02:00.0`. */
  readonly address: string;
  readonly vendorId: number;
  readonly deviceId: number;
  /** Class 23:16, subclass 15:8, programming interface 7:0. */
  readonly classCode: number;
  readonly driver: string | null;
  readonly iommuGroup: string | null;
  readonly isVirtualFunction: boolean;
  readonly hasReset: boolean;
  readonly interrupts: readonly string[];
  readonly bars: PassthroughReport['bars'];
  /** Why it cannot be passed through; null: it can. */
  readonly obstacle: string | null;
  /** What to know before it is. */
  readonly warnings: readonly string[];
}

/**
 * Every function of the host, by address.
 * @param stub the driver that is to have a function before a VM can. @throws ConfigError if the host shows none.
 */
export function listPassthrough(root: string, stub?: StubDriver): ListedFunction[] {
  const functions = hostFunctions(root);
  if (functions.length === 0) {
    throw unavailable(
      `no PCI functions are in ${root === '' ? '' : `${root.replace(/\/+$/, '')}`}/sys/bus/pci/devices`,
    );
  }
  return functions.map((fn) => describe(fn, functions, stub));
}

function describe(fn: HostFunction, others: readonly HostFunction[], stub?: StubDriver): ListedFunction {
  const physical = formatHostAddress(fn.address);
  const options = {
    physical,
    keepGsi: false,
    d3hotReset: false,
    managed: false,
    vmsixOnMsiBar: undefined,
    irq: undefined,
  };
  const known = {
    address: physical,
    vendorId: fn.vendorId,
    deviceId: fn.deviceId,
    classCode: fn.classCode,
    driver: fn.driver ?? null,
    iommuGroup: fn.iommuGroup ?? null,
    isVirtualFunction: fn.isVirtualFunction,
    hasReset: fn.hasReset,
  };
  try {
    const found = inspectFunction(fn, options);
    return {
      ...known,
      interrupts: [
        ...(found.hasMsix ? ['MSI-X'] : []),
        ...(found.hasMsi ? ['MSI'] : []),
        ...(found.usesIntx ? ['INTx'] : []),
      ],
      bars: found.hostBars.map(({ index, kind, address, sizeBytes }) => ({ index, kind, address, sizeBytes })),
      obstacle: null,
      warnings: warningsFor(found, options, others, new Set([physical]), stub),
    };
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    return { ...known, interrupts: [], bars: [], obstacle: error.message, warnings: [] };
  }
}

/** A table for people, and below it what is to be said of single functions. */
export function formatList(functions: readonly ListedFunction[]): string[] {
  const hex = (value: number) => value.toString(16).padStart(4, '0');
  const rows = functions.map((fn) => [
    fn.address,
    `${hex(fn.vendorId)}:${hex(fn.deviceId)}`,
    hex(fn.classCode >>> 8),
    fn.driver ?? '-',
    fn.iommuGroup ?? '-',
    fn.hasReset ? 'yes' : 'no',
    fn.interrupts.join(' ') || '-',
    fn.obstacle === null ? (fn.warnings.length === 0 ? 'yes' : 'yes, see below') : `no: ${fn.obstacle}`,
  ]);
  const table = [
    ['FUNCTION', 'ID', 'CLASS', 'DRIVER', 'IOMMU', 'RESET', 'INTERRUPTS', 'CAN BE PASSED THROUGH'],
    ...rows,
  ];
  const widths = table.reduce<number[]>((most, row) => row.map((cell, i) => Math.max(cell.length, most[i] ?? 0)), []);
  const lines = table.map((row) =>
    row
      .map((cell, i) => cell.padEnd(widths[i] ?? 0))
      .join('  ')
      .trimEnd(),
  );
  const notes = functions.flatMap(({ warnings }) => warnings);
  return notes.length === 0 ? lines : [...lines, '', ...notes];
}
