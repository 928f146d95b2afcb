/** Local APIC ids as the VM's tables have them: one byte, and 255 is all CPUs (MultiProcessor Specification §4.3.1). */
import { ConfigError, ExitCode } from '../errors.ts';

const MAX_LAPIC_ID = 254;

/** @throws ConfigError (69) for a CPU that no table can name. */
export function checkLapicId(lapicId: number): void {
  if (lapicId <= MAX_LAPIC_ID) return;
  throw new ConfigError(
    `a CPU with local APIC id ${lapicId} cannot be named in the VM's tables, which have 8 bits for it`,
    { hint: `give the VM CPUs with ids up to ${MAX_LAPIC_ID} by --cpu_affinity`, exitCode: ExitCode.Unavailable },
  );
}
