/** When the device thread waits for what the kernel copies, and when it has learned not to. */
import { expect, test } from 'vitest';
import { PROMPT_NS, PromptWait } from '../../../devicemodel/hw/storage/prompt-wait.ts';
import { FakeClock } from '../../support/fake-clock.ts';

function setUp() {
  const clock = new FakeClock();
  const wait = new PromptWait(clock);
  /** Waits of this length each. @returns how many of them began. */
  const waits = (count: number, tookNs: number, isWhole: boolean) => {
    let begun = 0;
    for (let i = 0; i < count; i++) {
      if (wait.begin() === 0) continue;
      begun++;
      clock.advance(tookNs);
      wait.end(isWhole);
    }
    return begun;
  };
  return { clock, wait, waits };
}

test('is as long as this thread may copy', () => {
  expect(setUp().wait.begin()).toBe(PROMPT_NS);
});

test('goes on while it helps, however long it takes', () => {
  expect(setUp().waits(1000, PROMPT_NS, true)).toBe(1000);
});

// Mutation: count waits that a signal ended as in vain.
test('says nothing when a signal ended it', () => {
  expect(setUp().waits(1000, PROMPT_NS / 2, false)).toBe(1000);
});

// Mutation: without the rest, storage that hangs costs each kick a millisecond.
test('in vain four times rests for 20 ms, then twice as long each time, up to a second', () => {
  const { clock, waits } = setUp();
  for (const restMs of [20, 40, 80, 160, 320, 640, 1000, 1000]) {
    expect(waits(100, PROMPT_NS, false)).toBe(4);
    clock.advance(restMs * 1e6 - 1);
    expect(waits(1, 0, true)).toBe(0);
    clock.advance(1);
  }
});

test('one that helped begins anew', () => {
  const { clock, waits } = setUp();
  expect(waits(100, PROMPT_NS, false)).toBe(4);
  clock.advance(20_000_000);
  expect(waits(100, PROMPT_NS, false)).toBe(4);
  clock.advance(40_000_000);
  expect(waits(3, PROMPT_NS, false)).toBe(3);
  expect(waits(1, 0, true)).toBe(1);
  expect(waits(100, PROMPT_NS, false)).toBe(4);
  clock.advance(20_000_000);
  expect(waits(1, 0, true)).toBe(1);
});
