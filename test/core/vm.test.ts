/** The life of a VM on the fake hypervisor: order of calls, unwinding from a failure of any call, resets, S3. */
import { constants } from 'node:os';
import { describe, expect, test } from 'vitest';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { FakeHsm, HsmMethod } from '../support/fake-hsm.ts';
import { END, makeVm, methods, START } from '../support/small-vm.ts';

describe('order of calls', () => {
  test('start and power-off', async () => {
    const { vm, trace, lives, ramOut } = makeVm((hsm) => void hsm.guest.outb(0x10, 1));
    const states: string[] = [];
    vm.on('state', (state) => states.push(state));
    const event = await vm.run();
    expect(event.kind).toBe('poweroff');
    expect(methods(lives[0])).toEqual([...START, ...END]);
    expect(trace).toEqual(['tables', 'load']);
    expect(states).toEqual(['running', 'paused', 'ended']);
    expect(ramOut()).toBe(0);
  });

  test('a full reset is a new life on a new descriptor; the VM is paused once', async () => {
    const { vm, lives, ramOut } = makeVm((hsm, life) => void hsm.guest.outb(life === 1 ? 0x12 : 0x10, 1));
    await vm.run();
    expect(lives.length).toBe(2);
    expect(methods(lives[0])).toEqual([...START, 'pauseVm', 'destroyIoreqClient', 'destroyVdev', 'destroyVm', 'close']);
    expect(methods(lives[1])).toEqual([...START, ...END]);
    expect(ramOut()).toBe(0);
  });

  // Mutation: without `loop.ended()` in Vm.#serve, signals for the guest's thread cut short what the next life is built with.
  test("the thread is the guest's while one is served, and not while a life is built or taken down", async () => {
    const whose: string[] = [];
    const note = (when: string) => void whose.push(`${when}: ${made.loop.hasGuest ? 'guest' : 'event loop'}`);
    const made = makeVm(
      (hsm, life) => {
        const { createVm, destroyVm } = hsm;
        hsm.createVm = (...args) => {
          note('createVm');
          return createVm.apply(hsm, args);
        };
        hsm.destroyVm = () => {
          note('destroyVm');
          destroyVm.apply(hsm);
        };
        if (life === 1) void hsm.guest.outb(0x11, 1);
        if (life < 3) void hsm.guest.outb(0x12, 1);
        else hsm.fail('startVm', 1, constants.errno.EIO);
      },
      { onStart: () => note('start'), onReset: () => note('reset') },
    );
    await expect(made.vm.run()).rejects.toBeInstanceOf(HsmError);
    const life = ['createVm', 'start', 'destroyVm'].map((when) => `${when}: event loop`);
    expect(whose).toEqual([...life.slice(0, 2), 'reset: guest', ...life.slice(2), ...life, ...life]);
    expect(made.loop.hasGuest).toBe(false);
  });

  // Mutation: requests of Life.run that flush with each `serve`; on the software CPU each byte on a UART is a system call then.
  test('what requests print goes out once for a turn, or when the loop says so', async () => {
    let flushes = 0;
    const { vm, loop } = makeVm((hsm) => void hsm.guest.outb(0x10, 1), { onFlush: () => void flushes++ });
    const { next } = loop;
    const seen: number[] = [];
    let turns = 0;
    loop.next = (hsm, server) => {
      if (turns++ > 0) return next.call(loop, hsm, server);
      for (let access = 0; access < 3; access++) server.serve();
      seen.push(flushes);
      server.flush();
      seen.push(flushes);
      return undefined;
    };
    await vm.run();
    expect([seen, flushes]).toEqual([[0, 1], turns + 1]);
  });

  test('a system reset creates vdevs again where the hypervisor accepts it: after RESET_VM', async () => {
    const { vm, trace, lives } = makeVm((hsm) => {
      void hsm.guest.outb(0x11, 1);
      void hsm.guest.outb(0x10, 1);
    });
    await vm.run();
    expect(methods(lives[0])).toEqual([
      ...START,
      'pauseVm',
      'clearIoreqs',
      'destroyVdev',
      'resetVm',
      'createVdev',
      'setVcpuRegs',
      'startVm',
      ...END,
    ]);
    expect(trace).toEqual(['tables', 'load', 'reset', 'tables', 'load']);
  });

  test('S3 waits for a wake-up and starts in real mode at the waking vector', async () => {
    const { vm, trace, lives } = makeVm((hsm) => {
      void hsm.guest.outb(0x13, 1);
      void hsm.guest.outb(0x10, 1);
    });
    vm.on('state', (state) => {
      if (state === 'suspended') setImmediate(() => vm.wake());
    });
    await vm.run();
    expect(methods(lives[0])).toEqual([
      ...START,
      'pauseVm',
      'clearIoreqs',
      'resetVm',
      'setVcpuRegs',
      'startVm',
      ...END,
    ]);
    expect(trace).toEqual(['tables', 'load', 'suspend', 'resume']);
    const regs = (lives[0] as FakeHsm).calls.filter((c) => c.method === 'setVcpuRegs')[1]?.args[1];
    // 0x9a010 >> 4 = 0x9a01: the guest's real-mode code segment.
    expect(regs).toMatchObject({
      rip: 0n,
      cr0: 0x30n,
      cs: { selector: 0x9a01, base: 0x9a010n, limit: 0xffff, attributes: 0x9f },
    });
  });

  test('an event at the very moment of going to sleep wakes the VM', async () => {
    const { vm, lives } = makeVm(
      (hsm) => {
        void hsm.guest.outb(0x13, 1);
        void hsm.guest.outb(0x10, 1);
      },
      { onSuspend: () => vm.wake() },
    );
    await vm.run();
    expect(methods(lives[0]).filter((m) => m === 'startVm')).toHaveLength(2);
  });

  test('power-off while suspended ends the VM without starting it again', async () => {
    const { vm, trace, lives } = makeVm((hsm) => void hsm.guest.outb(0x13, 1));
    vm.on('state', (state) => {
      if (state === 'suspended') setImmediate(() => vm.power.request({ kind: 'poweroff', reason: 'SIGINT' }));
    });
    expect((await vm.run()).kind).toBe('poweroff');
    expect(trace).not.toContain('resume');
    expect(methods(lives[0]).filter((m) => m === 'startVm')).toHaveLength(1);
  });
});

/** Every call up to the running guest, failing with what a hypervisor answers. */
const failing: ReadonlyArray<readonly [HsmMethod, number]> = START.flatMap((method) =>
  [constants.errno.EINVAL, constants.errno.EPERM, constants.errno.ENOMEM, constants.errno.ENOTTY].map(
    (errno) => [method, errno] as const,
  ),
);

describe('a call that fails unwinds in order', () => {
  test.each(failing)('%s with errno %i', async (method, errno) => {
    const { vm, lives, ramOut } = makeVm((hsm) => hsm.fail(method, 1, errno));
    await expect(vm.run()).rejects.toBeInstanceOf(HsmError);
    const done = methods(lives[0]);
    // What was done before the failing call is undone, once, in reverse; nothing else is called.
    expect(done.slice(0, START.indexOf(method) + 1)).toEqual(START.slice(0, START.indexOf(method) + 1));
    const undo = done.slice(START.indexOf(method) + 1);
    const expected: HsmMethod[] = [];
    if (START.indexOf(method) > START.indexOf('createIoreqClient')) expected.push('pauseVm', 'destroyIoreqClient');
    if (START.indexOf(method) > START.indexOf('createVdev')) expected.push('destroyVdev');
    if (START.indexOf(method) > START.indexOf('createVm')) expected.push('pauseVm', 'destroyVm');
    expect(undo).toEqual([...expected, 'close']);
    expect(ramOut()).toBe(0);
    expect((lives[0] as FakeHsm).vdevs).toHaveLength(0);
  });

  test.each(END.filter((m) => m !== 'close'))(
    '%s at the end does not keep the others from being done',
    async (method) => {
      const { vm, lives, errors, ramOut } = makeVm((hsm) => {
        void hsm.guest.outb(0x10, 1);
        hsm.fail(method, 1, constants.errno.EINVAL);
      });
      expect((await vm.run()).kind).toBe('poweroff');
      expect(methods(lives[0]).slice(-1)).toEqual(['close']);
      expect(methods(lives[0])).toEqual(expect.arrayContaining(['destroyIoreqClient', 'destroyVdev', 'destroyVm']));
      // What was never paused the hypervisor does not take apart either: each refusal is said.
      expect(errors.length).toBeGreaterThan(0);
      expect(ramOut()).toBe(0);
    },
  );
});

test('a thread of the hypervisor is asked whether it comes round, as long as there is a VM', async () => {
  let asked = 0;
  const { vm, lives } = makeVm(
    (hsm) => {
      const thread = { what: 'the devices of this test', hasAnswered: false, ask: () => void asked++ };
      Object.assign(hsm, { thread });
      hsm.guest.outb(0x10, 1);
    },
    {
      onStart: () => {
        vm.threads?.ask();
        expect(vm.threads?.silent).toEqual(['the devices of this test']);
      },
    },
  );
  await vm.run();
  expect([asked, lives.length]).toEqual([1, 1]);
  vm.threads?.ask();
  expect(asked).toBe(1);
});

test('abandon pauses and destroys at once, whatever fails', async () => {
  const { vm, lives } = makeVm(() => {});
  vm.on('started', () => {
    setImmediate(() => vm.power.request({ kind: 'poweroff', reason: 'end of test' }));
    (lives[0] as FakeHsm).fail('pauseVm', 1, constants.errno.EPERM);
    vm.abandon();
    expect(methods(lives[0]).slice(-3)).toEqual(['pauseVm', 'destroyVm', 'close']);
  });
  await vm.run().catch(() => {});
  expect(methods(lives[0]).filter((m) => m === 'close').length).toBeGreaterThan(0);
});
