import { afterEach, describe, expect, test } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../../devicemodel/core/host/fd-watch.ts';
import { EventLoopPoll } from '../../../hypervisor/turn-loop/event-loop-poll.ts';

/** Keeps the thread from the event loop. */
function spin(ms: number): void {
  const end = performance.now() + ms;
  while (performance.now() < end);
}

const cleanups: Array<() => void> = [];
afterEach(() => {
  for (const cleanup of cleanups.splice(0)) cleanup();
});

describe('turns of the event loop beside a busy guest', () => {
  test('a descriptor that became readable asks for one', async () => {
    const poll = new EventLoopPoll(1);
    const eventfd = new Eventfd();
    let heard = 0;
    const unwatch = watchFd(eventfd.fd, () => {
      heard++;
      eventfd.take();
    });
    cleanups.push(unwatch, () => eventfd.dispose());
    await poll.turn(); // libuv registers the descriptor
    eventfd.signal();
    spin(3); // the descriptor is asked every 2 ms
    expect(poll.pending).toBe(true);
    await poll.turn();
    expect(heard).toBe(1);
  });

  // Mutation: without freshEventLoopTimeoutMs in `pending`, it waits for the turn that comes without a reason.
  test('a timer of Node that is due asks for one, though it does not show in the descriptor', async () => {
    const poll = new EventLoopPoll(1);
    await poll.turn();
    await poll.turn();
    setTimeout(() => {}, 1);
    spin(4);
    expect(poll.pending).toBe(true);
  });

  test('microtasks show nowhere: there is a turn now and then without a reason', async () => {
    const poll = new EventLoopPoll(1);
    await poll.turn();
    spin(20); // one every 10 ms
    expect(poll.pending).toBe(true);
  });

  test('what is handed to the event loop unseen can ask for one', async () => {
    const poll = new EventLoopPoll(1000); // does not look by itself in this test
    poll.requestTurn();
    expect(poll.pending).toBe(true);
    await poll.turn();
    expect(poll.pending).toBe(false);
  });

  test('a watch that a device adds while it is served asks for one: libuv does not look at it before', async () => {
    const poll = new EventLoopPoll(1000); // does not look by itself in this test
    const eventfd = new Eventfd();
    cleanups.push(
      watchFd(eventfd.fd, () => {}),
      () => eventfd.dispose(),
    );
    expect(poll.pending).toBe(true);
    await poll.turn();
    expect(poll.pending).toBe(false);
  });

  test('asked by short requests, it looks at the clock now and then', async () => {
    const poll = new EventLoopPoll(3);
    await poll.turn();
    spin(60);
    expect([poll.pending, poll.pending, poll.pending]).toEqual([false, false, true]);
  });
});
