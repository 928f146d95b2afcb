/** Real eventfds, watched by Node's event loop. */
import { readlinkSync } from 'node:fs';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { signalEventfd, takeSharedEventfd } from '../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import type { EventfdHost } from './eventfd-host.ts';

export const hostEventfds: EventfdHost = {
  check(fd) {
    try {
      // The whole: a file may have such a name, and its path begins with a slash.
      return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[eventfd]' ? 0 : Errno.EINVAL;
    } catch {
      return Errno.EBADF;
    }
  },

  signal(fd) {
    signalEventfd(fd);
  },

  watch(fd, onSignal) {
    const stop = watchFd(fd, () => {
      // Those of doorbells are other VMs', too.
      if (takeSharedEventfd(fd) !== 0) onSignal();
    });
    return { dispose: stop };
  },
};
