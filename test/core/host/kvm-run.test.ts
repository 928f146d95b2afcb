import { expect, test } from 'vitest';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { closeFd, OpenFlag, openFile } from '../../../devicemodel/core/host/files.ts';
import { kvmRun } from '../../../devicemodel/core/host/kvm-run.ts';

test('what the kernel answers comes back as it is', () => {
  const fd = openFile('/dev/null', OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  const run = kvmRun(fd, 'a file that is no vCPU');
  expect(run.enter()).toBe(-Errno.ENOTTY);
  closeFd(fd);
  expect(run.enter()).toBe(-Errno.EBADF);
  run.dispose();
});

test('each vCPU has its own', () => {
  const fd = openFile('/dev/null', OpenFlag.ReadWrite | OpenFlag.CloseOnExec);
  const open = kvmRun(fd, 'a file that is no vCPU');
  const closed = kvmRun(-1, 'no file');
  expect([open.enter(), closed.enter(), open.enter()]).toEqual([-Errno.ENOTTY, -Errno.EBADF, -Errno.ENOTTY]);
  open.dispose();
  closed.dispose();
  closeFd(fd);
});
