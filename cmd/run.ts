/** Run one User VM to its end, with the signals of the process. */
import type { FrontDoor } from '../control/front-doors.ts';
import { connectSignals } from '../control/signals.ts';
import { claimName } from '../control/vm-folder.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { ExitCode } from '../devicemodel/core/errors.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { Launch } from '../library/launcher.ts';

let running: Launch | undefined;

/** Something unforeseen was thrown: pause and destroy the VM at once, without waiting for anything. Safe at any time. */
export function abandonVm(): void {
  running?.abandon();
  running = undefined;
}

/** @returns the process's exit status: 0 after a power-off, 3 after a triple fault. @throws DmError if the VM cannot start or has to be given up. */
export async function runVm(config: VmConfig, log: Log): Promise<ExitCode> {
  let signals: FrontDoor | undefined;
  const releaseName = claimName(config.name, log);
  try {
    running = await Launch.prepare(config, {
      log,
      ownsThread: true,
      onCommands: (commands) => {
        signals = connectSignals(commands);
      },
    });
    const event = await running.run();
    return event.kind === 'poweroff' && event.by === 'triple-fault' ? ExitCode.TripleFault : ExitCode.Ok;
  } finally {
    running = undefined;
    signals?.close();
    releaseName();
  }
}
