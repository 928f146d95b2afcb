/**
 * The ways in from outside while a VM runs: signals, `--cmd_monitor`, acrnctl's socket. Everything here only asks the
 * VM; what it does about it is core/vm.ts.
 */
import type { CharBackends } from '../devicemodel/core/char-backend.ts';
import type { Clock } from '../devicemodel/core/clock.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import type { Disposer } from '../devicemodel/core/disposer.ts';
import { listenForSignals, SignalAction, signalActions } from '../devicemodel/core/host/process-signals.ts';
import { ignoreOtherSignals } from '../devicemodel/core/host/signals.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { Vm } from '../devicemodel/core/vm.ts';
import type { VmEvent } from '../devicemodel/core/vm-events.ts';
import type { PmVuart } from './life-manager.ts';

export interface Control {
  readonly vm: Vm;
  readonly config: VmConfig;
  readonly clock: Clock;
  readonly log: Log;
  readonly undo: Disposer;
}

/**
 * What each signal does: docs/exit-codes.md.
 * Compat: C dies of SIGTERM before the guest has enabled ACPI and leaves an unpaused VM behind, and ignores it after.
 */
export function connectSignals(control: Control): void {
  const { vm, undo } = control;
  ignoreOtherSignals();
  const stop = listenForSignals((signal) => {
    const reason = `received ${signal}`;
    if (signalActions[signal] === SignalAction.shutDown) vm.shutDown(reason);
    else vm.power.request({ kind: 'poweroff', reason });
  });
  undo.defer(stop);
}

/** `--cmd_monitor`: listens before the VM starts. @returns where VM events go. */
export async function startCmdMonitor(control: Control, path: string): Promise<(event: VmEvent) => void> {
  const { vm, config, clock, log, undo } = control;
  const { CmdMonitor } = await import('./cmd-monitor.ts');
  const monitor = new CmdMonitor({
    path,
    log,
    clock,
    handlers: {
      destroy: () => {
        // The hypervisor lets nobody pause a real-time VM.
        if (config.rtvm) return false;
        vm.power.request({ kind: 'poweroff', reason: 'asked by the command monitor' });
        return true;
      },
      blkrescan: async (argument) => (await vm.board?.rescanBlockDevice(argument)) ?? false,
    },
  });
  await monitor.start();
  undo.defer(() => monitor.stop());
  return (event) => monitor.emitVmEvent(event);
}

/**
 * `--pm_notify_channel uart --pm_by_vuart ...`: the line on which the guest's life manager listens.
 * @returns undefined where the options name none. @throws HostError
 */
export async function startLifeManagerLine(control: Control, consoles: CharBackends): Promise<PmVuart | undefined> {
  const { vm, config, log, undo } = control;
  if (config.pmByVuart === undefined) return undefined;
  const { PmVuart } = await import('./life-manager.ts');
  const line = consoles.open('life manager', config.pmByVuart);
  await line.start();
  const manager = new PmVuart({
    line,
    relay: config.pmNotifyChannel === 'uart,allow_trigger_s5',
    onPowerOff: (reason) => vm.power.request({ kind: 'poweroff', reason }),
    log,
  });
  await manager.start();
  undo.defer(() => manager.stop());
  return manager;
}

/** The socket of acrnctl and acrnd. Started once the guest runs: nobody can know of it earlier. */
export async function startMonitorSocket(control: Control, lifeManager: PmVuart | undefined): Promise<void> {
  const { vm, config, log, undo } = control;
  const { MonitorSocket } = await import('./monitor-socket.ts');
  const socket = new MonitorSocket({
    vmName: config.name,
    log,
    handlers: {
      forceStop: () => vm.power.request({ kind: 'poweroff', reason: 'acrnctl stop --force' }),
      stop: () => {
        if (lifeManager !== undefined) return lifeManager.requestShutdown();
        vm.shutDown('acrnctl stop');
        return 0;
      },
      resume: () => {
        vm.wake();
        return 0;
      },
      query: () => (vm.state === 'suspended' ? 'suspended' : 'running'),
      blkrescan: async (argument) => ((await vm.board?.rescanBlockDevice(argument)) === true ? 0 : -1),
    },
  });
  await socket.start();
  undo.defer(() => socket.stop());
}
