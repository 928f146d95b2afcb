/** Which CPU the device thread is on, by the exits it gets. */
import { expect, test } from 'vitest';
import { CpuFollower } from '../../../hypervisor/kvm/cpu-follower.ts';

function follower(cpus: readonly (number | undefined)[]) {
  /** CPU numbers, and 'any'. */
  const moves: Array<number | 'any'> = [];
  const it = new CpuFollower(cpus, { pin: (cpu) => void moves.push(cpu), unpin: () => void moves.push('any') });
  const exits = (vcpu: number, count: number) => {
    for (let i = 0; i < count; i++) it.onExit(vcpu);
  };
  return { it, moves, exits };
}

test('it goes to the CPU of a vCPU that alone keeps it busy, once', () => {
  const { moves, exits } = follower([2, 5]);
  exits(1, 10);
  expect(moves).toEqual([]);
  exits(1, 10_000);
  expect(moves).toEqual([5]);
});

test('two that take turns are not followed', () => {
  const { moves, exits } = follower([2, 5]);
  for (let i = 0; i < 1000; i++) {
    exits(0, 1);
    exits(1, 1);
  }
  expect(moves).toEqual([]);
});

test('the majority decides: one that asks now and then does not take it away, one that asks for long does', () => {
  const { moves, exits } = follower([2, 5]);
  for (let i = 0; i < 1000; i++) {
    exits(0, 10);
    exits(1, 2);
  }
  expect(moves).toEqual([2]);
  exits(1, 1000);
  expect(moves).toEqual([2, 'any', 5]);
});

test('with other work than exits it leaves the vCPU its CPU', () => {
  const { it, moves, exits } = follower([2, 5]);
  for (let i = 0; i < 100; i++) {
    exits(0, 100);
    it.onOther();
  }
  expect(moves).toEqual([2]);
  for (let i = 0; i < 20; i++) it.onOther();
  expect(moves).toEqual([2, 'any']);
  it.leave();
  expect(moves).toEqual([2, 'any']);
});

test('a vCPU that may run anywhere is not followed', () => {
  const { it, moves, exits } = follower([undefined, 5]);
  exits(0, 1000);
  it.leave();
  expect(moves).toEqual([]);
});

test('at the end it may run anywhere again', () => {
  const { it, moves, exits } = follower([2]);
  exits(0, 1000);
  it.leave();
  expect(moves).toEqual([2, 'any']);
});
