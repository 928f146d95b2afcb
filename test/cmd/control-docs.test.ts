/** docs/control.md names what scripts rely on: it grows with the plan and with the events. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { describeVm } from '../../cmd/dry-run.ts';
import { ManagerMessageId } from '../../control/manager-socket.ts';
import { VmEventCode } from '../../devicemodel/core/vm-events.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { repository } from '../support/program.ts';

const text = readFileSync(join(repository, 'docs/control.md'), 'utf8');

test('every member of the plan', async () => {
  const argv = ['--dry-run', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,null', '-k', '/k', 'vm'];
  const order = parseCommandLine(argv, pciDrivers);
  if (order.action !== 'dry-run') throw new Error('no dry run');
  const plan = await describeVm(order.config);
  const lists = [plan.pci, plan.memory, plan.com, plan.tables];
  const members = [plan, ...lists.map((list) => list[0] ?? {})].flatMap((part) => Object.keys(part));
  expect(members.length).toBeGreaterThan(20);
  expect(members.filter((name) => !new RegExp(`\\b${name}\\b`).test(text))).toEqual([]);
});

test.each(Object.entries(VmEventCode))('event %s', (_, code) => {
  expect(text).toContain(`"vm_event": ${code}`);
});

test.each(['DmStop', 'DmSuspend', 'DmResume', 'DmQuery', 'DmBlkrescan'] as const)('message %s', (name) => {
  expect(text).toContain(`| ${ManagerMessageId[name]}, ${name.slice(2).toLowerCase()} |`);
});
