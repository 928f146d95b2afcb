/**
 * The wish to end belongs to the VM: it counts whatever the VM is doing, the VM ends once, and nothing is left.
 * Each test names a line without which it fails; it was tried.
 */
import { describe, expect, test } from 'vitest';
import type { Hsm, VmSpec } from '../../devicemodel/core/hsm/hsm.ts';
import type { FakeHsm } from '../support/fake-hsm.ts';
import { makeVm, methods } from '../support/small-vm.ts';

type SmallVm = ReturnType<typeof makeVm>;

const turn = () => new Promise<void>((resolve) => setImmediate(resolve));

/** Twice: the second one is for nothing. */
function powerOff({ vm }: SmallVm): void {
  vm.power.request({ kind: 'poweroff', reason: 'SIGINT' });
  vm.power.request({ kind: 'poweroff', reason: 'once more' });
}

/** Run to the end, and look at what is left. */
async function runToEnd(machine: SmallVm): Promise<void> {
  const states: string[] = [];
  machine.vm.on('state', (state) => states.push(state));
  expect(await machine.vm.run()).toEqual({ kind: 'poweroff', reason: 'SIGINT' });
  expect(states.filter((state) => state === 'ended')).toHaveLength(1);
  expect(machine.vm.state).toBe('ended');
  expect(machine.errors).toEqual([]);
  expect(machine.ramOut()).toBe(0);
  for (const hsm of machine.lives) {
    const calls = methods(hsm);
    expect(calls.filter((m) => m === 'close')).toHaveLength(1);
    expect(calls.filter((m) => m === 'destroyVm')).toHaveLength(calls.includes('createVm') ? 1 : 0);
    expect(hsm.vdevs).toEqual([]);
  }
}

const starts = (machine: SmallVm) => machine.lives.flatMap((hsm) => methods(hsm)).filter((m) => m === 'startVm').length;

// Mutation: `let event: PowerEvent | undefined;` in Vm.run, without what was asked before.
test('before run: no hypervisor is opened', async () => {
  const machine = makeVm(() => {});
  powerOff(machine);
  await runToEnd(machine);
  expect(machine.lives).toEqual([]);
});

describe('while a life is configured', () => {
  // Mutation: without checkWanted after openHsm, a VM is created for nothing.
  test('the hypervisor is being opened', async () => {
    const machine: SmallVm = makeVm(() => {}, {
      onOpen: async () => {
        await turn();
        powerOff(machine);
      },
    });
    await runToEnd(machine);
    expect(methods(machine.lives[0])).toEqual(['close']);
  });

  // Mutation: without `ending` in Life's call of createVm, it waits for a VM of that name for ever.
  test('the hypervisor waits for another VM of that name to go', async () => {
    const machine = makeVm((hsm) => {
      hsm.createVm = ((_spec: VmSpec, ending?: AbortSignal) =>
        new Promise((_resolve, reject) => {
          ending?.addEventListener('abort', () => reject(ending.reason));
        })) as Hsm['createVm'];
      setImmediate(() => powerOff(machine));
    });
    await runToEnd(machine);
    expect(methods(machine.lives[0])).toEqual(['close']);
  });

  // Mutation: without checkWanted after createVm, devices are built for nothing.
  test('the VM was just created', async () => {
    const machine = makeVm((hsm) => {
      const create = hsm.createVm.bind(hsm);
      hsm.createVm = async (spec) => {
        const created = await create(spec);
        powerOff(machine);
        return created;
      };
    });
    await runToEnd(machine);
    expect(methods(machine.lives[0])).toEqual(['createVm', 'pauseVm', 'destroyVm', 'close']);
  });

  // Mutation: without checkWanted after board.start, the guest is started.
  test('devices start', async () => {
    const machine: SmallVm = makeVm(() => {}, {
      onStart: async () => {
        await turn();
        powerOff(machine);
      },
    });
    await runToEnd(machine);
    expect(starts(machine)).toBe(0);
  });
});

describe('in the middle of a full reset', () => {
  // Mutation: `return event` at the end of Vm.#live, without what was asked meanwhile.
  test('the old life is taken down', async () => {
    const machine: SmallVm = makeVm((hsm) => void hsm.guest.outb(0x12, 1), {
      onStart: (parts) =>
        parts.undo.defer(async () => {
          await turn();
          powerOff(machine);
        }),
    });
    await runToEnd(machine);
    expect(machine.lives).toHaveLength(1);
  });

  // Mutation: `readonly #power = new PowerState()` in Life instead of Vm's own.
  test('the new life is built', async () => {
    const machine: SmallVm = makeVm((hsm) => void hsm.guest.outb(0x12, 1), {
      onOpen: async (life) => {
        await turn();
        if (life === 2) powerOff(machine);
      },
    });
    await runToEnd(machine);
    expect(starts(machine)).toBe(1);
  });
});

// Mutation: without checkWanted after board.reset, the guest comes up again first.
test('in the middle of a system reset: the guest does not come up again', async () => {
  const machine: SmallVm = makeVm((hsm) => void hsm.guest.outb(0x11, 1), {
    onReset: async () => {
      await turn();
      powerOff(machine);
    },
  });
  await runToEnd(machine);
  expect(starts(machine)).toBe(1);
  expect(methods(machine.lives[0])).not.toContain('resetVm');
});

describe('in S3', () => {
  // Mutation: #wakeUp set after #pause: who listens to the states is not heard, and the VM sleeps for ever.
  test.each(['paused', 'suspended'])('at the moment it is %s', async (moment) => {
    const machine = makeVm((hsm) => void hsm.guest.outb(0x13, 1));
    machine.vm.on('state', (state) => {
      if (state === moment) powerOff(machine);
    });
    await runToEnd(machine);
    expect(starts(machine)).toBe(1);
  });

  // Mutation: without `this.#wakeUp?.()` in Life.#stir.
  test('while it sleeps', async () => {
    const machine = makeVm((hsm) => void hsm.guest.outb(0x13, 1));
    machine.vm.on('state', (state) => {
      if (state === 'suspended') setTimeout(() => powerOff(machine), 5);
    });
    await runToEnd(machine);
    expect(starts(machine)).toBe(1);
    expect(machine.trace).not.toContain('resume');
  });
});

describe('beside what the guest asks', () => {
  // Mutation: without `this.#event?.kind === 'poweroff'` in PowerState.request.
  test('a reset of the same moment does not take it back', async () => {
    const machine: SmallVm = makeVm((hsm) => void hsm.guest.outb(0x12, 1), { onStart: () => {} });
    const { vm } = machine;
    machine.vm.on('state', (state) => {
      if (state !== 'running') return;
      powerOff(machine);
      vm.power.request({ kind: 'system-reset', reason: 'too late' });
    });
    await runToEnd(machine);
    expect(machine.lives).toHaveLength(1);
  });

  // Mutation: without `#stir` in #onPowerRequest, an idle guest is waited for for ever.
  test('an idle guest', async () => {
    const machine = makeVm(() => setTimeout(() => powerOff(machine), 5));
    await runToEnd(machine);
  });

  // Mutation: without isGuestRunning in PowerState.request, the new guest is reset before it has begun.
  test('what is asked of a guest that is not there is for nothing', async () => {
    const machine: SmallVm = makeVm(() => setTimeout(() => powerOff(machine), 20), {
      onOpen: () => machine.vm.power.request({ kind: 'system-reset', reason: 'of what?' }),
    });
    await runToEnd(machine);
    expect(methods(machine.lives[0])).not.toContain('resetVm');
  });
});

describe('asked to shut down', () => {
  const asked = (machine: SmallVm) => machine.vm.shutDown('SIGINT');

  // Mutation: without `!isUp` in Vm.shutDown, the button of a machine that is being built is pressed.
  test('a guest that is not up yet is powered off', async () => {
    let presses = 0;
    const machine: SmallVm = makeVm(() => {}, {
      onStart: () => asked(machine),
      onPowerButton: () => {
        presses++;
        return true;
      },
    });
    await runToEnd(machine);
    expect(presses).toBe(0);
  });

  // Mutation: `|| this.#state === 'suspended'` in isUp: the button wakes it, and it does not know why.
  test('a guest in S3 is powered off', async () => {
    let presses = 0;
    const machine: SmallVm = makeVm((hsm) => void hsm.guest.outb(0x13, 1), { onPowerButton: () => ++presses > 0 });
    machine.vm.on('state', (state) => {
      if (state === 'suspended') asked(machine);
    });
    await runToEnd(machine);
    expect(presses).toBe(0);
    expect(starts(machine)).toBe(1);
  });

  // Mutation: without `this.#patience !== undefined` in Vm.shutDown.
  test('a second time, it is powered off', async () => {
    let presses = 0;
    const machine: SmallVm = makeVm(() => {}, { onPowerButton: () => ++presses > 0 });
    machine.vm.on('started', () => {
      asked(machine);
      setTimeout(() => asked(machine), 5);
    });
    await runToEnd(machine);
    expect(presses).toBe(1);
  });

  // Mutation: without `this.#power.shutdownReason = reason` in Vm.shutDown, it comes up again.
  test.each([
    ['full', 0x12],
    ['system', 0x11],
  ])('a %s reset is the end, too', async (_kind, port) => {
    const machine: SmallVm = makeVm(() => {}, { onPowerButton: () => true });
    machine.vm.on('started', () => {
      asked(machine);
      void (machine.lives[0] as FakeHsm).guest.outb(port, 1);
    });
    const event = await machine.vm.run();
    expect(event.kind).toBe('poweroff');
    expect(event.reason).toContain('SIGINT');
    expect(starts(machine)).toBe(1);
  });
});

describe('asked by its life manager', () => {
  const asked = (machine: SmallVm, calls: string[]) =>
    machine.vm.shutDown('acrnctl stop', {
      isPatient: true,
      agent: { requestShutdown: () => void calls.push('shutdown') },
    });

  // Mutation: let `vmCommands.shutdown` speak to the life manager itself: the wish is nobody's then.
  test('a guest that does not shut down has its time, and is then powered off', async () => {
    const calls: string[] = [];
    const machine: SmallVm = makeVm(
      () => {},
      { onPowerButton: () => calls.push('button') > 0 },
      { shutdownTimeoutMs: 60 },
    );
    machine.vm.on('started', () => asked(machine, calls));
    const event = await machine.vm.run();
    expect(event.reason).toContain('acrnctl stop, and the guest did not shut down in time');
    expect(calls).toEqual(['shutdown']);
  });

  test('a reset of its own accord is the end', async () => {
    const machine: SmallVm = makeVm(() => {});
    machine.vm.on('started', () => {
      asked(machine, []);
      void (machine.lives[0] as FakeHsm).guest.outb(0x12, 1);
    });
    expect((await machine.vm.run()).kind).toBe('poweroff');
    expect(starts(machine)).toBe(1);
  });
});

describe('asked patiently', () => {
  const asked = (machine: SmallVm) => machine.vm.shutDown('acrnctl stop', { isPatient: true });

  // Mutation: without `isPatient && isUp` in Vm.shutDown the power of a guest that is booting is cut at once.
  test('a guest that has not enabled its button has its time, and is then powered off', async () => {
    let presses = 0;
    const machine: SmallVm = makeVm(
      () => {},
      {
        onPowerButton: () => {
          presses++;
          return false;
        },
      },
      { shutdownTimeoutMs: 60 },
    );
    const seen: string[] = [];
    machine.vm.on('started', () => {
      asked(machine);
      asked(machine); // again: not a reason to cut
      setTimeout(() => seen.push(machine.vm.state), 20);
    });
    const event = await machine.vm.run();
    expect(seen).toEqual(['running']);
    expect(presses).toBe(2);
    expect(event.reason).toBe('acrnctl stop, and the guest did not shut down in time');
  });

  // Mutation: without the look at `suspended`: its power is cut, or its button wakes it.
  test('a guest in S3 sleeps on', async () => {
    let presses = 0;
    const machine: SmallVm = makeVm((hsm) => void hsm.guest.outb(0x13, 1), { onPowerButton: () => ++presses > 0 });
    const seen: string[] = [];
    machine.vm.on('state', (state) => {
      if (state !== 'suspended') return;
      asked(machine);
      machine.vm.pressPowerButton();
      setTimeout(() => {
        seen.push(machine.vm.state);
        machine.vm.power.request({ kind: 'poweroff', reason: 'enough' });
      }, 20);
    });
    expect((await machine.vm.run()).reason).toBe('enough');
    expect(seen).toEqual(['suspended']);
    expect(presses).toBe(0);
  });
});

// Mutation: a `let` of this module instead of `#power` in Vm (tried with a static field): both end with the first.
test('two VMs in one process know nothing of each other', async () => {
  const first = makeVm(() => {});
  const second = makeVm(() => {});
  const ends: string[] = [];
  const runs = [
    first.vm.run().then((event) => ends.push(`first ${event.reason}`)),
    second.vm.run().then((event) => ends.push(`second ${event.reason}`)),
  ];
  await turn();
  await turn();
  first.vm.power.request({ kind: 'poweroff', reason: 'one' });
  await runs[0];
  expect(ends).toEqual(['first one']);
  expect(second.vm.state).toBe('running');
  second.vm.power.request({ kind: 'poweroff', reason: 'two' });
  await runs[1];
  expect(ends).toEqual(['first one', 'second two']);
});
