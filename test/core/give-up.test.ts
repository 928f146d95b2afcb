/** A device that cannot go on while the guest stands still: the VM ends with its error, and the guest does not run again. */
import { expect, test } from 'vitest';
import type { BoardParts } from '../../devicemodel/core/board.ts';
import { HostError } from '../../devicemodel/core/errors.ts';
import { END, makeVm, methods } from '../support/small-vm.ts';

const error = new HostError('the disk is gone', 0);

// Mutations: without #checkFailure behind it, each of these runs the guest once more; a suspended one at its waking vector.
test.each(['paused', 'suspended'])('in S3, at the moment it is %s', async (moment) => {
  let parts: BoardParts | undefined;
  const machine = makeVm((hsm) => void hsm.guest.outb(0x13, 1), { onStart: (board) => void (parts = board) });
  machine.vm.on('state', (state) => {
    if (state === moment && methods(machine.lives[0]).includes('startVm')) parts?.waits.giveUp(error);
  });
  await expectEnd(machine);
  expect(machine.trace).not.toContain('resume');
});

test('asleep for a while', async () => {
  let parts: BoardParts | undefined;
  const machine = makeVm((hsm) => void hsm.guest.outb(0x13, 1), { onStart: (board) => void (parts = board) });
  machine.vm.on('state', (state) => {
    if (state === 'suspended') setTimeout(() => parts?.waits.giveUp(error), 5);
  });
  await expectEnd(machine);
});

test('in the very access that asks for S3', async () => {
  let parts: BoardParts | undefined;
  const machine = makeVm((hsm) => void hsm.guest.outb(0x13, 1), {
    onStart: (board) => {
      parts = board;
      const { request } = board.power;
      board.power.request = (event) => {
        parts?.waits.giveUp(error);
        request.call(board.power, event);
      };
    },
  });
  await expectEnd(machine);
});

test('in a system reset', async () => {
  let parts: BoardParts | undefined;
  const machine = makeVm((hsm) => void hsm.guest.outb(0x11, 1), {
    onStart: (board) => void (parts = board),
    onReset: () => parts?.waits.giveUp(error),
  });
  await expectEnd(machine);
  expect(methods(machine.lives[0])).not.toContain('resetVm');
});

async function expectEnd(machine: ReturnType<typeof makeVm>): Promise<void> {
  await expect(machine.vm.run()).rejects.toBe(error);
  const calls = methods(machine.lives[0]);
  expect(calls.filter((method) => method === 'startVm')).toHaveLength(1);
  expect(calls.slice(-2)).toEqual(END.slice(-2));
  expect(machine.ramOut()).toBe(0);
}
