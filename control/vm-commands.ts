/**
 * What anyone may ask of a running VM: the whole list. Front doors (signals, `--cmd_monitor`, acrnctl's socket, the life
 * manager's line, a program that launched the VM) translate their own words to these commands and do nothing else to it.
 */
import * as v from 'valibot';
import { ConfigError } from '../devicemodel/core/errors.ts';
import type { GuestAgent, Vm } from '../devicemodel/core/vm.ts';

/** The VM that is asked. */
export interface CommandTarget {
  readonly vm: Pick<
    Vm,
    'config' | 'state' | 'board' | 'power' | 'shutDown' | 'pressPowerButton' | 'pause' | 'resume' | 'reset' | 'wake'
  >;
  /** Who asks the guest to shut down, where the guest has a life manager that listens. */
  guestAgent?: GuestAgent;
}

interface Command<S extends v.GenericSchema, R> {
  /** What it does, and to a VM in which state. */
  readonly summary: string;
  readonly args: S;
  run(target: CommandTarget, args: v.InferOutput<S>): R;
}

function command<S extends v.GenericSchema, R>(spec: Command<S, R>): Command<S, R> {
  return spec;
}

/** For the log: who asked, and why. */
const reason = v.pipe(v.string(), v.nonEmpty());

const slot = v.pipe(v.string(), v.regex(/^(\d+|\d+:\d+:\d+)$/, 'expected SLOT or BUS:SLOT:FUNCTION'));
/** A drive of an ahci: where the controller is, and the port. */
const drive = {
  slot,
  port: v.optional(v.pipe(v.number(), v.integer(), v.minValue(0), v.maxValue(31)), 0),
};

/** @throws ConfigError while the VM has no devices: before its first life, and between two. */
function boardOf(vm: CommandTarget['vm']): NonNullable<CommandTarget['vm']['board']> {
  if (vm.board === undefined) throw new ConfigError('the VM has no devices now');
  return vm.board;
}

export const vmCommands = {
  shutdown: command({
    summary:
      'Ask the guest to shut down: by its life manager if there is one, unless the power button is asked for. A guest ' +
      'that does not listen to the button, or not in time, is powered off; with isPatient only when its time is over, and ' +
      'not at all while it is in S3.',
    args: v.object({
      reason,
      by: v.optional(v.picklist(['any', 'power-button']), 'any'),
      isPatient: v.optional(v.boolean(), false),
    }),
    run: ({ vm, guestAgent }, { reason, by, isPatient }): void => {
      vm.shutDown(reason, { isPatient, agent: by === 'any' ? guestAgent : undefined });
    },
  }),
  'press-power-button': command({
    summary: 'Press the power button of a VM that runs, whatever the guest makes of it.',
    args: v.object({}),
    run: ({ vm }): void => vm.pressPowerButton(),
  }),
  'power-off': command({
    summary:
      'End the VM without asking the guest. Heard in every state, from before the guest runs to within S3. With force ' +
      'storage that does not answer is not waited for.',
    args: v.object({ reason, force: v.optional(v.boolean(), false) }),
    run: ({ vm }, { reason, force }): void => vm.power.request({ kind: 'poweroff', reason, isForced: force }),
  }),
  reset: command({
    summary: 'Start the guest anew, without asking it.',
    args: v.object({ reason }),
    run: ({ vm }, args): void => vm.reset(args.reason),
  }),
  pause: command({
    summary: 'The guest stands still. Refused for a real-time VM, one that does not run, and on ACRN.',
    args: v.object({}),
    run: ({ vm }): void => vm.pause(),
  }),
  resume: command({
    summary: 'A guest that was paused goes on where it stood.',
    args: v.object({}),
    run: ({ vm }): void => vm.resume(),
  }),
  destroy: command({
    summary: 'As power-off, for a manager. A real-time VM is not to be paused by others. Result: whether it is done.',
    args: v.object({ reason }),
    run: ({ vm }, args): boolean => {
      if (vm.config.rtvm) return false;
      vm.power.request({ kind: 'poweroff', reason: args.reason });
      return true;
    },
  }),
  wake: command({
    summary: 'End S3. Does nothing in other states.',
    args: v.object({}),
    run: ({ vm }): void => vm.wake(),
  }),
  query: command({
    summary: 'Result: the state of the VM.',
    args: v.object({}),
    run: ({ vm }) => vm.state,
  }),
  blkrescan: command({
    summary: 'Give a virtio-blk that was started with nodisk its medium. Result: whether it has it now.',
    args: v.object({ medium: v.pipe(v.string(), v.regex(/^\s*\d+(:\d+:\d+)?,.+$/s, 'expected SLOT,PATH[,OPTIONS]')) }),
    run: async ({ vm }, args): Promise<boolean> => (await vm.board?.rescanBlockDevice(args.medium)) ?? false,
  }),
  eject: command({
    summary:
      'Take the medium out of a CD drive of ahci, whatever the guest thinks of it, once what is being read from it has ' +
      'come. Does nothing to an empty drive.',
    args: v.object({ ...drive }),
    run: async ({ vm }, { slot, port }): Promise<void> => boardOf(vm).changeMedium(slot, port, undefined),
  }),
  insert: command({
    summary:
      'Put a medium into an empty CD drive of ahci, or into a virtio-blk that was started with nodisk; the guest hears of it.',
    args: v.object({ ...drive, medium: v.pipe(v.string(), v.regex(/^[^,]/, 'expected PATH[,OPTIONS]')) }),
    run: async ({ vm }, { slot, port, medium }): Promise<void> => boardOf(vm).changeMedium(slot, port, medium),
  }),
  'resize-disk': command({
    summary:
      'Make the image of a virtio-blk larger, or without a size take note of the size it has on the host now; the guest ' +
      'hears of it. Result: the size in bytes.',
    args: v.object({ slot, sizeBytes: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))) }),
    run: async ({ vm }, args): Promise<number> => boardOf(vm).resizeDisk(args.slot, args.sizeBytes),
  }),
  'set-link': command({
    summary: 'The cable of a virtio-net, in or out; the guest sees its link come up or go down.',
    args: v.object({ slot, isUp: v.boolean() }),
    run: async ({ vm }, args): Promise<void> => boardOf(vm).setLink(args.slot, args.isUp),
  }),
};

type List = typeof vmCommands;
export type VmCommandName = keyof List;
export type VmCommandArgs<N extends VmCommandName> = v.InferInput<List[N]['args']>;
export type VmCommandResult<N extends VmCommandName> = ReturnType<List[N]['run']>;

/** The commands of one VM. */
export interface VmCommands {
  /** @throws ConfigError for arguments that the schema refuses: they may come from outside. */
  run<N extends VmCommandName>(name: N, args: VmCommandArgs<N>): VmCommandResult<N>;
}

export function commandsOf(target: CommandTarget): VmCommands {
  return {
    run: <N extends VmCommandName>(name: N, args: VmCommandArgs<N>) => {
      const { args: schema, run }: Command<v.GenericSchema, unknown> = vmCommands[name];
      const parsed = v.safeParse(schema, args);
      if (!parsed.success) {
        const [issue] = parsed.issues;
        const where = v.getDotPath(issue);
        throw new ConfigError(`${name}: ${where === null ? '' : `${where}: `}${issue.message}`);
      }
      return run(target, parsed.output) as VmCommandResult<N>;
    },
  };
}
