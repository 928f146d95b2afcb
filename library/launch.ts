/** Launch a User VM from another program. */
import type { LaunchConfig } from '../config/launch-config.ts';
import { vmConfigOf } from '../config/launch-config.ts';
import { checkStart } from '../config/preflight.ts';
import type { VmCommandArgs, VmCommandName, VmCommandResult } from '../control/vm-commands.ts';
import { claimName } from '../control/vm-folder.ts';
import { EVENTS_BACKEND } from '../devicemodel/core/config.ts';
import type { PowerEvent } from '../devicemodel/core/device.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { Log } from '../devicemodel/core/log.ts';
import { createSinks } from '../devicemodel/core/log-sinks.ts';
import type { VmEvents, VmState } from '../devicemodel/core/vm-events.ts';
import { EventsBackend } from './events-backend.ts';
import { Launch } from './launcher.ts';

export interface LaunchExtras {
  /** Where lines for people go. Default: where `logger` of the configuration says, or nowhere. */
  readonly log?: Log;
}

/** A VM that runs, or ran. Its events: `console`, `event`, `state`, `reset`, `crash`, `started`, `wake`. */
export interface LaunchedVm extends VmEvents {
  readonly name: string;
  readonly state: VmState;
  /** Settled once the VM is gone and everything is released. Rejects with a DmError when the VM had to be given up. */
  readonly ended: Promise<PowerEvent>;
  /**
   * One of the commands of a running VM: `vm.ask('shutdown', { reason: 'asked by the user' })`.
   * @throws ConfigError for arguments that the command does not take.
   */
  ask<N extends VmCommandName>(name: N, args: VmCommandArgs<N>): VmCommandResult<N>;
  /**
   * Type on a serial port whose back end is `events`.
   * @returns how many bytes were taken: less than all while the guest does not read.
   * @throws ConfigError when the port has another back end.
   */
  type(data: string | Uint8Array, port?: `com${number}`): number;
}

const SILENT = { sink: 'console', level: 0 } as const;

/**
 * Launch a VM. It runs on this thread, between the turns of the event loop. As long as it runs the process does; a
 * process that exits nevertheless takes the VM with it. Signals of the process are not touched.
 * @returns once the guest runs. Output of its console is kept for the first listener.
 * @throws DmError: ConfigError for a VM that cannot be, HostError or HsmError for one that cannot be had here.
 */
export async function launch(input: LaunchConfig, extras: LaunchExtras = {}): Promise<LaunchedVm> {
  const { config, notices } = vmConfigOf(input);
  // Only what was named: the program's line on standard error is not ours to write.
  const sinks = config.logger.length === 0 ? [] : createSinks([SILENT, ...config.logger], config.name);
  const log = extras.log ?? new Log(sinks);
  for (const notice of notices) log[notice.level](notice.text);
  await checkStart(config, (text) => log.warn(text));

  const consoles = new Map<string, EventsBackend>();
  const releaseName = claimName(config.name, log);
  const release = () => {
    releaseName();
    for (const sink of sinks) sink.close();
  };
  let prepared: Launch;
  try {
    prepared = await Launch.prepare(config, {
      log,
      ownBackend: (port, text) => {
        if (text !== EVENTS_BACKEND) return undefined;
        const backend = new EventsBackend((data) => prepared.vm.emit('console', data, port));
        consoles.set(port, backend);
        return backend;
      },
    });
  } catch (error) {
    release();
    throw error;
  }
  const { vm, commands } = prepared;
  // Whoever sees the end may launch the next VM of that name.
  const ended = prepared.run().finally(release);
  await new Promise<void>((resolve, reject) => {
    vm.once('state', () => resolve());
    ended.then(() => resolve(), reject);
  });
  return {
    name: config.name,
    get state() {
      return vm.state;
    },
    ended,
    ask: (name, args) => commands.run(name, args),
    type: (data, port = 'com1') => {
      const backend = consoles.get(port);
      if (backend === undefined) throw new ConfigError(`${port} is not connected to "${EVENTS_BACKEND}"`);
      return backend.type(typeof data === 'string' ? Buffer.from(data) : data);
    },
    on: vm.on.bind(vm),
    once: vm.once.bind(vm),
    off: vm.off.bind(vm),
  };
}
