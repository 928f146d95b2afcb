/**
 * Signals of the process as commands. What each does: docs/exit-codes.md; one that comes again does not wait for storage
 * either. Compat: C dies of SIGTERM before the guest has enabled ACPI and leaves an unpaused VM behind, and ignores it after.
 */
import {
  type HandledSignal,
  listenForSignals,
  SignalAction,
  signalActions,
} from '../devicemodel/core/host/process-signals.ts';
import { ignoreOtherSignals } from '../devicemodel/core/host/signals.ts';
import type { FrontDoor } from './front-doors.ts';
import type { VmCommands } from './vm-commands.ts';

/** For the program: a process has one VM whose end is the end of the process. */
export function connectSignals(commands: VmCommands): FrontDoor {
  ignoreOtherSignals();
  const received = new Set<HandledSignal>();
  const stop = listenForSignals((signal) => {
    const reason = `received ${signal}`;
    const isRepeated = received.has(signal);
    received.add(signal);
    // Whoever sends it wants the VM to end in any case, which a life manager does not promise.
    if (signalActions[signal] === SignalAction.shutDown && !isRepeated) {
      commands.run('shutdown', { reason, by: 'power-button' });
    } else {
      commands.run('power-off', { reason, force: isRepeated });
    }
  });
  return { close: stop };
}
