/** Eventfds that another process has, too. */
import { afterEach, expect, test } from 'vitest';
import { Eventfd, takeSharedEventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { setNonBlocking } from '../../../devicemodel/core/host/files.ts';
import { hostEventfds } from '../../../hypervisor/embedded/host-eventfds.ts';

const eventfd = new Eventfd();
afterEach(() => void eventfd.take());

test.each([true, false])('the count is taken; O_NONBLOCK set: %s', (isNonBlocking) => {
  setNonBlocking(eventfd.fd, isNonBlocking, 'eventfd');
  for (let i = 0; i < 3; i++) eventfd.signal();
  expect(takeSharedEventfd(eventfd.fd)).toBe(3);
  setNonBlocking(eventfd.fd, true, 'eventfd');
});

// Mutation: read(2), and this thread waits for ever.
test('who shares it cleared O_NONBLOCK, and has taken the count itself: there is none, and nothing waits', () => {
  setNonBlocking(eventfd.fd, false, 'eventfd');
  try {
    expect(takeSharedEventfd(eventfd.fd)).toBe(0);
  } finally {
    setNonBlocking(eventfd.fd, true, 'eventfd');
  }
});

test('a watched one tells of each signal', async () => {
  setNonBlocking(eventfd.fd, false, 'eventfd');
  try {
    for (let i = 0; i < 3; i++) {
      const heard = new Promise<void>((resolve) => {
        const watch = hostEventfds.watch(eventfd.fd, () => {
          watch.dispose();
          resolve();
        });
      });
      eventfd.signal();
      await heard;
    }
  } finally {
    setNonBlocking(eventfd.fd, true, 'eventfd');
  }
});
