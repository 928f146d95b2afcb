/** What those who listen hear of a VM, as the VM itself tells it. */
import { expect, test } from 'vitest';
import { EventStream } from '../../control/event-stream.ts';
import { makeVm } from '../support/small-vm.ts';

type SmallVm = ReturnType<typeof makeVm>;

/** A VM of which something is asked once its guest runs, and ended then. @returns the names of what was told. */
async function told(ask: (vm: SmallVm['vm']) => void): Promise<string[]> {
  const freezing = { freeze: () => {}, thaw: () => {} };
  const machine: SmallVm = makeVm((hsm) => Object.assign(hsm, { freezing }));
  const events = new EventStream();
  events.follow(machine.vm);
  machine.vm.once('started', () => {
    ask(machine.vm);
    setTimeout(() => machine.vm.power.request({ kind: 'poweroff', reason: 'the end' }), 20);
  });
  await machine.vm.run();
  return events.kept.map(({ source, event, data }) =>
    data === undefined ? `${source}.${event}` : `${source}.${event} ${JSON.stringify(data)}`,
  );
}

test.each<[string, (vm: SmallVm['vm']) => void, readonly string[]]>([
  ['nothing', () => {}, []],
  [
    'an operator who lets it stand still for a while',
    (vm) => {
      vm.pause();
      vm.resume();
    },
    ['vm.paused', 'vm.resumed'],
  ],
  [
    'an operator who wants it to start anew',
    (vm) => vm.reset('asked'),
    ['vm.rebooting {"kind":"full-reset","reason":"asked"}', 'vm.rebooted'],
  ],
  [
    'an operator who wants that of one that stands still',
    (vm) => {
      vm.pause();
      vm.reset('asked');
    },
    ['vm.paused', 'vm.resumed', 'vm.rebooting {"kind":"full-reset","reason":"asked"}', 'vm.rebooted'],
  ],
  [
    'a guest that resets itself',
    (vm) => vm.power.request({ kind: 'system-reset', reason: 'reset register' }),
    ['vm.rebooting {"kind":"system-reset","reason":"reset register"}', 'vm.rebooted'],
  ],
])('a reset is told apart from a pause: %s', async (_who, ask, between) => {
  // While its devices are taken down it stands still.
  expect(await told(ask)).toEqual(['vm.booted', ...between, 'vm.paused', 'vm.shutdown']);
});
