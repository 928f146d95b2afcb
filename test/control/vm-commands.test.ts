/** The list of what may be asked of a running VM, and that nothing but the list is done. */
import { expect, test } from 'vitest';
import { type VmCommandName, vmCommands } from '../../control/vm-commands.ts';
import { ConfigError } from '../../devicemodel/core/errors.ts';
import { fakeTarget } from '../support/fake-command-target.ts';

const reason = 'planned';

test('each does to the VM what its summary says', async () => {
  const { commands, calls } = fakeTarget({ state: 'paused' });
  commands.run('power-off', { reason });
  expect(commands.run('destroy', { reason })).toBe(true);
  commands.run('shutdown', { reason });
  commands.run('wake', {});
  expect(commands.run('query', {})).toBe('paused');
  expect(await commands.run('blkrescan', { medium: '4,/disk,ro' })).toBe(true);
  expect(await commands.run('blkrescan', { medium: '5,/disk' })).toBe(false);
  await commands.run('eject', { slot: '7' });
  await commands.run('insert', { slot: '0:7:1', port: 2, medium: '/disc.iso' });
  expect(calls).toEqual([
    'poweroff: planned',
    'poweroff: planned',
    'shutdown: planned',
    'wake',
    'blkrescan 4,/disk,ro',
    'blkrescan 5,/disk',
    'medium of 7 port 0: out',
    'medium of 0:7:1 port 2: /disc.iso',
  ]);
});

test('a real-time VM is not destroyed by a manager, but powered off by who runs it', () => {
  const { commands, calls } = fakeTarget({ rtvm: true });
  expect(commands.run('destroy', { reason })).toBe(false);
  expect(calls).toEqual([]);
  commands.run('power-off', { reason });
  expect(calls).toEqual(['poweroff: planned']);
});

test('a guest with a life manager is asked by it, unless the power button is asked for', () => {
  const { target, commands, calls } = fakeTarget();
  target.guestAgent = { requestShutdown: () => void calls.push('life manager') };
  commands.run('shutdown', { reason });
  commands.run('shutdown', { reason, by: 'power-button' });
  expect(calls).toEqual(['shutdown: planned', 'life manager', 'shutdown: planned']);
});

test.each([
  ['power-off', {}, /^power-off: reason: /],
  ['destroy', { reason: '' }, /^destroy: reason: /],
  ['shutdown', { reason, by: 'force' }, /^shutdown: by: /],
  ['blkrescan', { medium: '' }, /^blkrescan: medium: expected SLOT,PATH/],
  ['blkrescan', { medium: 'x,/disk' }, /^blkrescan: medium: expected SLOT,PATH/],
  ['blkrescan', { medium: 7 }, /^blkrescan: medium: /],
  ['eject', { slot: 'x' }, /^eject: slot: expected SLOT or BUS:SLOT:FUNCTION/],
  ['eject', { slot: '7', port: 32 }, /^eject: port: /],
  ['insert', { slot: '7', medium: '' }, /^insert: medium: expected PATH/],
] as const)('%s with %o is refused before the VM hears of it', (name, args, message) => {
  const { commands, calls } = fakeTarget();
  const run = () => commands.run(name as VmCommandName, args as never);
  expect(run).toThrow(ConfigError);
  expect(run).toThrow(message);
  expect(calls).toEqual([]);
});

test('each says what it does', () => {
  for (const { summary } of Object.values(vmCommands)) expect(summary).toMatch(/^[A-Z].*\.$/s);
});
