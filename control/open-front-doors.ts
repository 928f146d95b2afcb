/** Which ways in a VM has, by its configuration. */
import type { CharBackends } from '../devicemodel/core/char-backend.ts';
import type { Clock } from '../devicemodel/core/clock.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { Vm } from '../devicemodel/core/vm.ts';
import type { FrontDoors } from './front-doors.ts';
import type { CommandTarget, VmCommands } from './vm-commands.ts';

export interface DoorParts {
  readonly vm: Vm;
  readonly target: CommandTarget;
  readonly commands: VmCommands;
  readonly clock: Clock;
  readonly consoles: CharBackends;
  readonly log: Log;
}

/**
 * Those that are asked for are open when this returns, before the VM is created: whoever starts a VM may connect at once.
 * acrnctl's socket comes once the guest runs, since nobody can know of it earlier.
 * @throws ConfigError or HostError when one that was asked for cannot be opened.
 */
export async function openFrontDoors(doors: FrontDoors, parts: DoorParts): Promise<void> {
  const { vm, target, commands, clock, consoles, log } = parts;
  const { cmdMonitorPath, pmByVuart, pmNotifyChannel, name, socketGroup } = vm.config;
  if (pmByVuart !== undefined) {
    await doors.add(async (giveUp) => {
      const { PmVuart } = await import('./life-manager.ts');
      const line = consoles.open('life manager', pmByVuart);
      await line.start();
      const manager = new PmVuart({ line, relay: pmNotifyChannel === 'uart,allow_trigger_s5', commands, log });
      await manager.start(giveUp);
      target.guestAgent = manager;
      return manager;
    });
  }
  if (pmNotifyChannel === 'power_button') {
    await doors.add(async () => {
      const { HostPowerButton } = await import('./host-power-button.ts');
      return new HostPowerButton({ commands, log });
    });
  }
  if (cmdMonitorPath !== undefined) {
    await doors.add(async () => {
      const { CmdMonitor } = await import('./cmd-monitor.ts');
      const monitor = new CmdMonitor({ path: cmdMonitorPath, socketGroup, commands, events: vm, log, clock });
      await monitor.start();
      return monitor;
    });
  }
  vm.once('started', () => {
    const open = async () => {
      const { ManagerSocket } = await import('./manager-socket.ts');
      const socket = new ManagerSocket({ vmName: name, socketGroup, commands, log });
      await socket.start();
      return socket;
    };
    doors.add(open).catch((error: Error) => log.debug(`acrnctl cannot reach this VM: ${error.message}`));
  });
}
