/** Which hypervisor runs a VM, and what the user is told about it. This host has no ACRN. */
import { existsSync } from 'node:fs';
import { expect, test } from 'vitest';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { Log } from '../../devicemodel/core/log.ts';
import { findHsmNode } from '../../hypervisor/acrn/node.ts';
import { chooseHypervisor } from '../../hypervisor/choose.ts';
import { kvmObstacle } from '../../hypervisor/kvm/index.ts';

function listening() {
  const lines: string[] = [];
  return { lines, log: new Log([{ maxLevel: 5, write: (_level, line) => void lines.push(line) }]) };
}

const hasKvm = kvmObstacle() === undefined || kvmObstacle() === 'no permission';

test.skipIf(findHsmNode() !== undefined || hasKvm)(
  'auto falls back to the software engine and says so in one line',
  async () => {
    const { lines, log } = listening();
    expect((await chooseHypervisor({ hypervisor: 'auto' }, log)).kind).toBe('soft');
    expect(lines).toEqual(['no ACRN or KVM on this machine: using the embedded software hypervisor']);
  },
);

test('an engine that was asked for is taken without a word', async () => {
  const { lines, log } = listening();
  expect((await chooseHypervisor({ hypervisor: 'soft' }, log)).kind).toBe('soft');
  expect((await chooseHypervisor({ hypervisor: 'kvm' }, log)).kind).toBe('kvm');
  expect((await chooseHypervisor({ hypervisor: 'acrn' }, log)).kind).toBe('acrn');
  expect(lines).toEqual([]);
});

test('a root port by itself is offered by the embedded hypervisor only', async () => {
  const { log } = listening();
  const offers = async (hypervisor: 'acrn' | 'kvm' | 'soft') =>
    (await chooseHypervisor({ hypervisor }, log)).ownRootPorts;
  expect([await offers('acrn'), await offers('kvm'), await offers('soft')]).toEqual([undefined, true, true]);
});

// Mutation: without withAlternative in choose.ts, the user hears of ACRN alone.
test.skipIf(findHsmNode() !== undefined)(
  'ACRN that is not there: the cause, the status, and what else there is',
  async () => {
    const { log } = listening();
    const acrn = await chooseHypervisor({ hypervisor: 'acrn' }, log);
    await expect(acrn.open({ name: 'vm' } as never, log)).rejects.toMatchObject({
      message: expect.stringContaining('/dev/acrn_hsm'),
      exitCode: ExitCode.Unavailable,
      hint: 'boot the ACRN hypervisor with an HSM kernel, or use --hypervisor kvm or soft',
    });
  },
);

// A machine may have the node and a CPU without VT-x and AMD-V: then it opens.
test.skipIf(existsSync('/dev/kvm'))(
  'KVM that was asked for and is not there: the cause, the status, and what else there is',
  async () => {
    const { log } = listening();
    const kvm = await chooseHypervisor({ hypervisor: 'kvm' }, log);
    await expect(kvm.open({ name: 'vm', cpuAffinity: [] } as never, log)).rejects.toMatchObject({
      message: expect.stringContaining('/dev/kvm: open: ENOENT'),
      exitCode: ExitCode.Unavailable,
      hint: expect.stringContaining('--hypervisor soft'),
    });
  },
);

// Mutation: one loop kept in softHypervisor instead of a new one each time.
test('two VMs in one process have loops of their own', async () => {
  const { log } = listening();
  const hypervisor = await chooseHypervisor({ hypervisor: 'soft' }, log);
  const [first, second] = [await hypervisor.loop(log), await hypervisor.loop(log)];
  try {
    expect(first).not.toBe(second);
    expect(first.clock).not.toBe(second.clock);
    await first.stop();
    // The other one's timers go on.
    await new Promise<void>((resolve) => {
      second.clock.createTimer(resolve).arm(second.clock.nowNs() + 1e6);
    });
  } finally {
    await second.stop();
  }
});
