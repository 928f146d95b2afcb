/** One piece of work after the other. */
import { expect, test } from 'vitest';
import { InTurn } from '../../devicemodel/core/in-turn.ts';

test('a piece begins when the one before is over, also one that failed', async () => {
  const turns = new InTurn();
  const order: string[] = [];
  let goOn = () => {};
  const first = turns.run(async () => {
    order.push('first');
    await new Promise<void>((resolve) => {
      goOn = resolve;
    });
    throw new Error('no');
  });
  const second = turns.run(async () => order.push('second'));
  const idle = turns.idle().then(() => order.push('idle'));
  await Promise.resolve();
  await Promise.resolve();
  expect(order).toEqual(['first']);
  goOn();
  await expect(first).rejects.toThrow('no');
  expect(await second).toBe(2);
  await idle;
  expect(order).toEqual(['first', 'second', 'idle']);
});
