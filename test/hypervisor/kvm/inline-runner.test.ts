/** Where the device thread runs while it is the one vCPU's, too. */
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { availableParallelism, tmpdir } from 'node:os';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { readCpuinfo } from '../../../devicemodel/core/host/cpuinfo.ts';
import { silentLog } from '../../../devicemodel/core/log.ts';
import { openKvmHsm } from '../../../hypervisor/kvm/open.ts';
import { parseCpuinfo } from '../../../hypervisor/kvm/placement.ts';
import { FakeKvm } from '../../support/fake-kvm.ts';

/** Of the calling thread, as Linux lists them. */
function cpus(): string {
  return /^Cpus_allowed_list:\s*(\S+)/m.exec(readFileSync('/proc/thread-self/status', 'utf8'))?.[1] ?? '';
}

// Mutation: without unpinDeviceThread in dispose, the next VM of a served process is confined to the CPU of this one.
test.skipIf(availableParallelism() < 2)(
  'it is on the CPU of the vCPU, and at the end of the VM on any again',
  async () => {
    const before = cpus();
    const cpu = Number.parseInt(before, 10);
    const [id] = [...parseCpuinfo(readCpuinfo())].find((entry) => entry[1] === cpu) ?? [0];
    const runDirectory = mkdtempSync(join(tmpdir(), 'kvm-'));
    const config = { name: 'vm', scenarioPath: undefined, cpuAffinity: [id] };
    const hsm = await openKvmHsm({ config, log: silentLog, ownsThread: true, runDirectory, kvm: new FakeKvm() });
    try {
      await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n });
      expect(cpus()).toBe(`${cpu}`);
    } finally {
      hsm.close();
      rmSync(runDirectory, { recursive: true });
    }
    expect(cpus()).toBe(before);
  },
);
