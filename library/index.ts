/** The library: launch User VMs from another program. README.md shows how. */
export type { LaunchConfig } from '../config/launch-config.ts';
export type { VmCommandArgs, VmCommandName, VmCommandResult } from '../control/vm-commands.ts';
export type { PowerEvent } from '../devicemodel/core/device.ts';
export {
  BugError,
  ConfigError,
  DmError,
  ExitCode,
  GuestFault,
  HostError,
  RefusedError,
} from '../devicemodel/core/errors.ts';
export { HsmError } from '../devicemodel/core/hsm/errors.ts';
export { Log, LogLevel, type LogLevelName, type LogSink } from '../devicemodel/core/log.ts';
export type { VmEvent, VmEventMap, VmState } from '../devicemodel/core/vm-events.ts';
export { type LaunchExtras, type LaunchedVm, launch } from './launch.ts';
