/** A VM as front doors see it: real commands, and a note of what they did. */
import { EventEmitter } from 'eventemitter3';
import { type CommandTarget, commandsOf, type VmCommands } from '../../control/vm-commands.ts';
import type { Board } from '../../devicemodel/core/board.ts';
import type { VmEventMap, VmState } from '../../devicemodel/core/vm-events.ts';

export interface FakeTarget {
  readonly target: CommandTarget;
  readonly commands: VmCommands;
  /** `poweroff: REASON`, `forced poweroff: REASON`, `[patient ]shutdown: REASON`, `power button`, `wake`, `blkrescan MEDIUM`. */
  readonly calls: string[];
  readonly events: EventEmitter<VmEventMap>;
}

export interface FakeTargetOptions {
  readonly rtvm?: boolean;
  readonly state?: VmState;
  readonly onPowerOff?: () => void;
  /** Default: slot 4 has a drive without a medium. */
  readonly blkrescan?: (medium: string) => boolean | Promise<boolean>;
}

export function fakeTarget(options: FakeTargetOptions = {}): FakeTarget {
  const calls: string[] = [];
  const rescan = options.blkrescan ?? ((medium: string) => medium.startsWith('4,'));
  const target: CommandTarget = {
    vm: {
      config: { rtvm: options.rtvm ?? false } as CommandTarget['vm']['config'],
      state: options.state ?? 'running',
      board: {
        rescanBlockDevice: async (medium: string) => {
          calls.push(`blkrescan ${medium}`);
          return rescan(medium);
        },
        changeMedium: async (slot: string, port: number, medium: string | undefined) => {
          calls.push(`medium of ${slot} port ${port}: ${medium ?? 'out'}`);
        },
        resizeDisk: async (slot: string, sizeBytes: number | undefined) => {
          calls.push(`size of ${slot}: ${sizeBytes ?? 'as it is'}`);
          return sizeBytes ?? 4096;
        },
        setLink: async (slot: string, isUp: boolean) => void calls.push(`link of ${slot}: ${isUp ? 'up' : 'down'}`),
      } as Partial<Board> as Board,
      power: {
        request: (event) => {
          const isForced = event.kind === 'poweroff' && event.isForced === true;
          calls.push(`${isForced ? 'forced ' : ''}${event.kind}: ${event.reason}`);
          options.onPowerOff?.();
        },
      },
      shutDown: (reason, manner) => {
        calls.push(`${manner?.isPatient === true ? 'patient ' : ''}shutdown: ${reason}`);
        manner?.agent?.requestShutdown();
      },
      pressPowerButton: () => void calls.push('power button'),
      pause: () => void calls.push('pause'),
      resume: () => void calls.push('resume'),
      reset: (reason) => void calls.push(`reset: ${reason}`),
      wake: () => void calls.push('wake'),
    },
  };
  return { target, commands: commandsOf(target), calls, events: new EventEmitter<VmEventMap>() };
}
