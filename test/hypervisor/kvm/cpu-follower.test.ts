/** Which CPU the device thread is on, by the exits it gets. */
import { expect, test } from 'vitest';
import { CpuFollower } from '../../../hypervisor/kvm/cpu-follower.ts';

/** Not for the device thread. */
const FORBIDDEN = 9;

function follower(cpus: readonly (number | undefined)[]) {
  /** CPU numbers, and 'any'. */
  const moves: Array<number | 'any'> = [];
  const pin = (cpu: number) => cpu !== FORBIDDEN && moves.push(cpu) > 0;
  const it = new CpuFollower(cpus, { pin, unpin: () => moves.push('any') });
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

// Mutation: weigh an exit of another vCPU as one of the candidate's.
test('of two that ask nearly as often neither is followed', () => {
  const { moves, exits } = follower([2, 5]);
  for (let i = 0; i < 1000; i++) {
    exits(0, 11);
    exits(1, 9);
  }
  expect(moves).toEqual([]);
});

// Mutation: `this.#isPinned = true` whatever became of it.
test('where it may not go it is not taken to be, and nobody brings it back', () => {
  const { it, moves, exits } = follower([FORBIDDEN, 5]);
  exits(0, 1000);
  it.leave();
  expect(moves).toEqual([]);
  exits(1, 1000);
  expect(moves).toEqual([5]);
});
