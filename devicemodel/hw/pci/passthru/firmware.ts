/** What the guest's firmware tables say of a passed-through function: AML of known devices, the user's, and the NHLT. */
import { tableGpa } from '../../../core/firmware/acpi-tables.ts';
import type { Aml } from '../../../core/firmware/aml.ts';
import type { DeviceTable, PciFunctionAml } from '../../../core/firmware/contribution.ts';
import { nhltTable } from '../../../core/firmware/tables.ts';
import type { PciEnv } from '../driver.ts';
import type { PciIdentity } from '../function.ts';
import { isAudioController, passthroughAml } from './aml.ts';
import { readDsdtFile } from './dsdt-option.ts';
import { readHostNhlt } from './nhlt.ts';

const INTEL = 0x8086;

export interface FunctionFirmware {
  readonly aml: (() => PciFunctionAml) | undefined;
  readonly tables: (() => readonly DeviceTable[]) | undefined;
}

/** Files are read when the tables are written for the first time; a plan for another machine leaves them out. */
export function firmwareOf(env: PciEnv, identity: PciIdentity, dsdtFile: string | undefined): FunctionFirmware {
  const { vendorId, deviceId } = identity;
  const isPlan = env.hostTree?.isPlan === true;
  if (isAudioController(vendorId, deviceId)) {
    if (isPlan) return { aml: undefined, tables: undefined };
    const nhlt = once(() => readHostNhlt(env.hostTree?.root));
    const known = () => {
      const place = { base: tableGpa('NHLT'), sizeBytes: nhlt().length };
      return passthroughAml(env.bdf, vendorId, deviceId, { nhlt: place }) as PciFunctionAml;
    };
    return { aml: once(known), tables: () => [nhltTable(nhlt())] };
  }
  const known = passthroughAml(env.bdf, vendorId, deviceId);
  if (dsdtFile !== undefined && (known !== undefined || vendorId !== INTEL)) {
    const why = known === undefined ? 'only devices of Intel have it' : 'there is AML for this device';
    env.log.warn(`dsdt=${dsdtFile} is ignored: ${why}`);
  } else if (dsdtFile !== undefined && !isPlan) {
    const user = once((): Aml => readDsdtFile(dsdtFile, (line) => env.log.warn(line)) ?? []);
    return { aml: () => ({ bdf: env.bdf, aml: user }), tables: undefined };
  }
  return { aml: known === undefined ? undefined : () => known, tables: undefined };
}

/** The tables are written anew at every reset; a file is read once. */
function once<T>(make: () => T): () => T {
  let made: { readonly value: T } | undefined;
  return () => {
    made ??= { value: make() };
    return made.value;
  };
}
