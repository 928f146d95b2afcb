/** What may be paused and reset, and when. That a guest stands still is shown in test/library/launch.test.ts. */
import { describe, expect, test } from 'vitest';
import { RefusedError } from '../../devicemodel/core/errors.ts';
import { makeVm, methods } from '../support/small-vm.ts';

type SmallVm = ReturnType<typeof makeVm>;

function refusal(work: () => void): RefusedError {
  try {
    work();
  } catch (error) {
    if (error instanceof RefusedError) return error;
    throw error;
  }
  throw new Error('not refused');
}
const end = (machine: SmallVm) => machine.vm.power.request({ kind: 'poweroff', reason: 'the end' });

describe('a pause', () => {
  test.each([
    ['a hypervisor that cannot let it go on', {}, 'this hypervisor cannot'],
    ['a real-time VM', { rtvm: true }, 'a real-time VM is not paused'],
  ])('is refused by %s', async (_who, config, message) => {
    const refusals: RefusedError[] = [];
    const machine: SmallVm = makeVm(() => {}, {}, config);
    machine.vm.on('started', () => {
      refusals.push(refusal(() => machine.vm.pause()));
      end(machine);
    });
    await machine.vm.run();
    expect(refusals).toMatchObject([{ kind: 'impossible', message: expect.stringContaining(message) }]);
    expect(refusals[0]?.hint).toBeDefined();
  });

  test('is not for a VM that does not run', () => {
    const { vm } = makeVm(() => {});
    expect(refusal(() => vm.pause())).toMatchObject({ kind: 'wrong-state' });
    expect(refusal(() => vm.resume())).toMatchObject({ kind: 'wrong-state' });
    expect(refusal(() => vm.reset('why'))).toMatchObject({ kind: 'wrong-state' });
  });
});

test('a reset from outside is another life', async () => {
  const machine: SmallVm = makeVm(() => {});
  machine.vm.on('started', () => (machine.lives.length === 1 ? machine.vm.reset('asked') : end(machine)));
  await machine.vm.run();
  expect(machine.lives).toHaveLength(2);
  expect(methods(machine.lives[0]).at(-1)).toBe('close');
});

test.each([
  ['its watchdog', 'watchdog', [{ cause: 'watchdog', vcpus: ['fake'] }]],
  ['the guest itself', undefined, []],
] as const)('a reset by %s: what is told of the guest, which stands still then', async (_who, by, told) => {
  const machine: SmallVm = makeVm(() => {});
  const seen: unknown[] = [];
  let resets = 0;
  machine.vm.on('crash', (crash) => seen.push({ ...crash, state: machine.vm.state }));
  machine.vm.on('started', () => {
    machine.vm.power.request({ kind: 'system-reset', reason: 'why', ...(by === undefined ? {} : { by }) });
  });
  machine.vm.on('state', (state) => {
    if (state === 'running' && ++resets === 2) end(machine);
  });
  await machine.vm.run();
  expect(seen).toEqual(told.map((crash) => ({ ...crash, vcpus: expect.arrayContaining(['fake']), state: 'paused' })));
  // Read between PAUSE_VM and RESET_VM: registers of vCPUs that run would not be theirs.
  const calls = methods(machine.lives[0]);
  expect(calls.indexOf('pauseVm')).toBeLessThan(calls.indexOf('resetVm'));
});

describe('a guest that stands still', () => {
  /** A VM that is paused once it runs, on a hypervisor that can do it. */
  function paused(then: (machine: SmallVm) => void) {
    const calls: string[] = [];
    const machine: SmallVm = makeVm(() => {}, { onPowerButton: () => calls.push('button') > 0 });
    machine.vm.on('started', () => {
      if (machine.lives.length > 1) return end(machine);
      const freezing = { freeze: () => void calls.push('freeze'), thaw: () => void calls.push('thaw') };
      Object.defineProperty(machine.lives[0], 'freezing', { value: freezing });
      machine.vm.pause();
      then(machine);
    });
    return { machine, calls };
  }

  test.each([
    ['by a manager', { isPatient: true }],
    ['by a signal', {}],
  ])('goes on to hear that it is to shut down: %s', async (_who, manner) => {
    const { machine, calls } = paused(({ vm }) => {
      vm.shutDown('asked', manner);
      expect(vm.state).toBe('running');
      setTimeout(() => vm.power.request({ kind: 'poweroff', reason: 'the guest', by: 'guest' }), 5);
    });
    expect((await machine.vm.run()).reason).toBe('the guest');
    expect(calls).toEqual(['freeze', 'thaw', 'button']);
  });

  test('is not what a reset brings: it cannot be resumed meanwhile', async () => {
    const { machine, calls } = paused(({ vm }) => {
      vm.reset('asked');
      expect(refusal(() => vm.resume())).toMatchObject({ kind: 'wrong-state' });
    });
    await machine.vm.run();
    expect(machine.lives).toHaveLength(2);
    expect(calls).toEqual(['freeze', 'thaw']);
  });
});

test.each([
  ['the guest', { kind: 'full-reset', reason: 'reset register' }, undefined, 0],
  ['the guest, in part', { kind: 'system-reset', reason: 'reset register' }, undefined, 0],
  ['its watchdog', { kind: 'system-reset', reason: 'watchdog', by: 'watchdog' }, 'watchdog', 1],
] as const)(
  'where nobody wants a new start, a reset by %s is the end, and says so',
  async (_who, reset, by, crashes) => {
    const afterEnd = { onPoweroff: 'exit', onReboot: 'stay', onCrash: 'exit' } as const;
    const machine: SmallVm = makeVm(() => {}, {}, { afterEnd });
    let told = 0;
    machine.vm.on('crash', () => told++);
    machine.vm.on('started', () => machine.vm.power.request(reset));
    const event = await machine.vm.run();
    expect(event).toMatchObject({ kind: 'poweroff', instead: 'reset', reason: expect.stringContaining(reset.reason) });
    expect((event as { by?: string }).by).toBe(by);
    expect(told).toBe(crashes);
  },
);
