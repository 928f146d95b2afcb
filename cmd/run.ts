/** Run one User VM to its end. */
import type { VmConfig } from '../devicemodel/core/config.ts';
import { type ExitCode, HostError } from '../devicemodel/core/errors.ts';
import type { Log } from '../devicemodel/core/log.ts';

/** @returns the process's exit status: 0 after a power-off. @throws DmError if the VM cannot start or has to be given up. */
export async function runVm(config: VmConfig, _log: Log): Promise<ExitCode> {
  throw new HostError(`VM "${config.name}" cannot be run yet`, 0);
}

/** Something unforeseen was thrown: pause and destroy the VM at once, without waiting for anything. Safe at any time. */
export function abandonVm(): void {}
