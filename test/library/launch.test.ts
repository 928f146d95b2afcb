/** VMs launched by a program, on the embedded hypervisor. */
import { afterEach, describe, expect, test, vi } from 'vitest';
import { Vm } from '../../devicemodel/core/vm.ts';
import { ConfigError, type LaunchConfig, type LaunchedVm, launch, RefusedError } from '../../library/index.ts';
import { demoGuest, whyNoSoftHypervisor } from '../support/program.ts';
import { until } from '../support/pty.ts';

const running: LaunchedVm[] = [];
afterEach(async () => {
  for (const vm of running.splice(0)) {
    vm.ask('power-off', { reason: 'the test is over' });
    await vm.ended;
  }
});

async function demo(tag: string, bootargs: string, more: Partial<LaunchConfig> = {}) {
  const vm = await launch({
    name: `${tag}${process.pid % 100_000}`,
    hypervisor: 'soft',
    memory: '128M',
    kernel: demoGuest,
    bootargs,
    ...more,
  });
  running.push(vm);
  let text = '';
  vm.on('console', (data, port) => {
    expect(port).toBe('com1');
    text += Buffer.from(data).toString('latin1');
  });
  return { vm, text: () => text, shows: (what: string) => until(() => text.includes(what), `"${what}" in "${text}"`) };
}

const processListeners = () =>
  process.eventNames().map((name) => [String(name), process.listenerCount(name as 'exit')] as const);

describe.skipIf(whyNoSoftHypervisor() !== undefined)('launch', () => {
  test('a process that exits with a VM pauses and destroys it first', async () => {
    const before = process.listeners('exit');
    const { vm, shows } = await demo('exit', 'demo=echo');
    await shows('> ');
    const abandon = vi.spyOn(Vm.prototype, 'abandon');
    for (const listener of process.listeners('exit')) if (!before.includes(listener)) listener(0);
    expect(abandon).toHaveBeenCalledTimes(1);
    abandon.mockRestore();
    await vm.ended.catch(() => {});
  });

  test('runs a VM to its end, and tells what happens to it', async () => {
    const { vm, text, shows } = await demo('one', 'demo=echo');
    const seen: unknown[] = [];
    vm.on('state', (state) => seen.push(state));
    vm.on('event', (event) => seen.push(event.type));
    await shows('> ');
    // Said before anybody could listen.
    expect(text()).toMatch(/^\s*acrn-dm demo guest/);
    expect(vm.state).toBe('running');
    expect(vm.type('hello\nexit\n')).toBe(11);
    expect(await vm.ended).toMatchObject({ kind: 'poweroff', reason: 'guest entered ACPI S5' });
    expect(text()).toContain('hello');
    expect(text()).toContain('Goodbye');
    expect(seen).toEqual(['poweroff', 'paused', 'ended']);
  });

  test('takes its name, as the program does, and gives it back at the end, or when it does not start', async () => {
    const name = `named${process.pid % 100_000}`;
    const { vm, shows } = await demo('named', 'demo=echo');
    await shows('> ');
    const again = launch({ name, hypervisor: 'soft', memory: '128M', kernel: demoGuest });
    await expect(again).rejects.toThrow(`a VM with the name "${name}" runs already, as process ${process.pid}`);
    expect(vm.state).toBe('running');
    vm.ask('power-off', { reason: 'the test asks' });
    await vm.ended;
    const broken = launch({ name, hypervisor: 'soft', memory: '128M', kernel: '/dev/null' });
    await expect(broken).rejects.toThrow('/dev/null');
    const { vm: next } = await demo('named', 'demo=echo');
    expect(next.name).toBe(name);
  });

  /** Mutation: without `#isFrozen` in SoftEngine.run the guest answers while it is paused. */
  test('pauses a guest, and lets it go on where it stood', async () => {
    const { vm, text, shows } = await demo('paused', 'demo=echo');
    await shows('> ');
    vm.ask('pause', {});
    vm.ask('pause', {}); // twice is once
    expect(vm.state).toBe('paused');
    vm.type('hello\n');
    await new Promise((resolve) => setTimeout(resolve, 200));
    expect(text()).not.toContain('hello');
    vm.ask('resume', {});
    expect(vm.state).toBe('running');
    await shows('hello');
    expect(() => vm.ask('resume', {})).toThrow(RefusedError);
    // A paused guest can be reset, and ended.
    vm.ask('pause', {});
    vm.ask('reset', { reason: 'a test' });
    await until(() => text().split('acrn-dm demo guest').length === 3, 'a second life');
    await until(() => vm.state === 'running', 'running');
    vm.ask('pause', {});
    vm.ask('power-off', { reason: 'a test' });
    expect(await vm.ended).toMatchObject({ kind: 'poweroff' });
  });

  /** Mutation: anything of a VM in a module: its stdio claim, its consoles, its loop, its signal hooks. */
  test('runs two VMs in one process, side by side', async () => {
    const before = processListeners();
    const first = await demo('first', 'demo=echo');
    const second = await demo('second', 'demo=echo');
    // Hooks for the end of the process come and go with a launch; signals stay the program's.
    for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP'] as const) {
      expect([signal, process.listenerCount(signal)]).toEqual([signal, new Map(before).get(signal) ?? 0]);
    }
    await Promise.all([first.shows('> '), second.shows('> ')]);
    first.vm.type('to the first\n');
    second.vm.type('to the second\n');
    await Promise.all([first.shows('to the first'), second.shows('to the second')]);
    expect(first.text()).not.toContain('second');
    expect(second.text()).not.toContain('first');
    // One ends, the other goes on.
    first.vm.ask('power-off', { reason: 'enough' });
    expect(await first.vm.ended).toEqual({ kind: 'poweroff', reason: 'enough', isForced: false });
    expect(second.vm.state).toBe('running');
    second.vm.type('exit\n');
    await second.vm.ended;
    expect(second.text()).toContain('Goodbye');
  });

  test('a busy guest does not keep another from running', async () => {
    const tours = await Promise.all([demo('a', 'demo=tour'), demo('b', 'demo=tour')]);
    for (const { vm } of tours) expect(await vm.ended).toMatchObject({ reason: 'guest entered ACPI S5' });
    for (const { text } of tours) expect(text()).toContain('Goodbye');
  });

  test('commands are asked of it by name', async () => {
    const { vm } = await demo('asked', 'demo=idle');
    expect(vm.ask('query', {})).toBe('running');
    expect(() => vm.ask('blkrescan', { medium: 'nonsense' })).toThrow(ConfigError);
    expect(await vm.ask('blkrescan', { medium: '4,/dev/null' })).toBe(false);
    vm.ask('shutdown', { reason: 'nobody listens to the button' });
    expect(await vm.ended).toMatchObject({ reason: 'nobody listens to the button' });
  });

  test.each<[string, LaunchConfig, string | RegExp]>([
    ['a mistake', { name: 'vm', kernel: demoGuest, memory: '1' }, 'memory: "1" has no unit'],
    ['a missing image', { name: 'vm', hypervisor: 'soft', kernel: '/nonexistent' }, '/nonexistent'],
    [
      'a missing disk',
      { name: 'vm', hypervisor: 'soft', kernel: demoGuest, pci: ['3,virtio-blk,/nonexistent'] },
      '/nonexistent: no such file or device',
    ],
    [
      'a group that does not exist',
      { name: 'vm', hypervisor: 'soft', kernel: demoGuest, socketGroup: 'no-such-group' },
      '--socket-group: there is no group "no-such-group"',
    ],
  ])('rejects for %s, and leaves nothing behind', async (_name, config, message) => {
    const before = processListeners();
    await expect(launch(config)).rejects.toThrow(message);
    expect(processListeners()).toEqual(before);
  });

  test('only a port that is connected to events can be typed on', async () => {
    const { vm } = await demo('mute', 'demo=idle', { com: ['com1,null'] });
    expect(() => vm.type('x')).toThrow('com1 is not connected to "events"');
  });
});
