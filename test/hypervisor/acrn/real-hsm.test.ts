/**
 * The back end of ACRN on the HSM driver of this machine: this thread in ATTACH, and another one. Skipped without
 * /dev/acrn_hsm; the rig has one (test/rig/hsm.sh).
 */
import { closeSync, openSync } from 'node:fs';
import { describe } from 'vitest';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { openAcrnHsm } from '../../../hypervisor/acrn/acrn-hsm.ts';
import { findHsmNode } from '../../../hypervisor/acrn/node.ts';
import { describeHsm } from '../../support/hsm-conformance.ts';

describe.skipIf(findHsmNode() === undefined).each([
  ['this thread waits', true],
  ['another thread waits', false],
] as const)('%s', (what, isInterruptible) => {
  describeHsm(`acrn, ${what},`, async () => {
    const fds = [new Eventfd(), new Eventfd()] as const;
    const notEventfd = openSync('/dev/null', 'r+');
    return {
      hsm: openAcrnHsm(isInterruptible),
      eventfd: fds[0].fd,
      otherEventfd: fds[1].fd,
      notEventfd,
      takesSlotsTwice: true,
      dispose: () => {
        for (const fd of fds) fd.dispose();
        closeSync(notEventfd);
      },
    };
  });
});
