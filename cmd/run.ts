/** Run one User VM to its end: choose the hypervisor, put the parts together, connect signals and control sockets. */
import {
  type Control,
  connectSignals,
  startCmdMonitor,
  startLifeManagerLine,
  startMonitorSocket,
} from '../control/front-doors.ts';
import { openSoftware, splitRam } from '../devicemodel/core/boot/loader.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { Disposer } from '../devicemodel/core/disposer.ts';
import { ExitCode } from '../devicemodel/core/errors.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { Vm } from '../devicemodel/core/vm.ts';
import type { VmEvent } from '../devicemodel/core/vm-events.ts';
import { pcBoard } from '../devicemodel/hw/board.ts';
import { CharBackendPool } from '../devicemodel/hw/uart/backends/pool.ts';
import { chooseHypervisor } from '../hypervisor/choose.ts';
import type { GuestLoop } from '../hypervisor/hypervisor.ts';

let running: Vm | undefined;
let runningLoop: GuestLoop | undefined;

/** Something unforeseen was thrown: pause and destroy the VM at once, without waiting for anything. Safe at any time. */
export function abandonVm(): void {
  running?.abandon();
  running = undefined;
  runningLoop?.stopNow();
}

/** @returns the process's exit status: 0 after a power-off. @throws DmError if the VM cannot start or has to be given up. */
export async function runVm(config: VmConfig, log: Log): Promise<ExitCode> {
  const hypervisor = await chooseHypervisor(config, log, { ownsThread: true });
  const undo = new Disposer();
  try {
    const cpus = hypervisor.cpus(config, log);
    const software = openSoftware(bootOf(config), splitRam(config.memoryBytes), log);
    undo.defer(() => software.close());
    const loop = hypervisor.loop();
    runningLoop = loop;
    undo.defer(() => loop.stop());
    const consoles = new CharBackendPool({ log, requestTurn: () => loop.requestTurn() });
    undo.defer(() => consoles.dispose());

    let publish: (event: VmEvent) => void = () => {};
    const onVmEvent = (event: VmEvent) => publish(event);
    const vm: Vm = new Vm(config, {
      openHsm: () => hypervisor.open(config, log),
      makeBoard: pcBoard({
        consoles,
        lapicIds: cpus.lapicIds,
        onVmEvent,
        onWake: () => vm.wake(),
      }),
      software,
      cpuAffinity: cpus.affinity,
      loop,
      onVmEvent,
      log,
    });
    running = vm;
    process.on('exit', abandonVm);
    undo.defer(() => void process.off('exit', abandonVm));
    const control: Control = { vm, config, clock: loop.clock, log, undo };
    connectSignals(control);
    const lifeManager = await startLifeManagerLine(control, consoles);
    if (config.cmdMonitorPath !== undefined) publish = await startCmdMonitor(control, config.cmdMonitorPath);
    vm.once('started', () => {
      void startMonitorSocket(control, lifeManager);
      loop.requestTurn();
    });
    await vm.run();
    return ExitCode.Ok;
  } finally {
    running = undefined;
    await undo.run();
  }
}

function bootOf(config: VmConfig): NonNullable<VmConfig['boot']> {
  if (config.boot === undefined) throw new TypeError('a VM without a boot image was let through');
  return config.boot;
}
