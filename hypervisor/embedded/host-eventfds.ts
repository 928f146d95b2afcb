/** Real eventfds, watched by Node's event loop. */
import { readlinkSync } from 'node:fs';
import { Errno, native, watchFd } from '../../devicemodel/core/host/libc.ts';
import type { EventfdHost } from './eventfd-host.ts';

const one = Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0);

export const hostEventfds: EventfdHost = {
  check(fd) {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).includes('[eventfd]') ? 0 : Errno.EINVAL;
    } catch {
      return Errno.EBADF;
    }
  },

  signal(fd) {
    native('int64_t write(int, const void *, size_t)')(fd, one, one.length);
  },

  watch(fd, onSignal) {
    const count = new Uint8Array(8);
    const stop = watchFd(fd, () => {
      if (native('int64_t read(int, void *, size_t)')(fd, count, count.length) === count.length) onSignal();
    });
    return { dispose: stop };
  },
};
