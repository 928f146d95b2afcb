/** The one stream of events on Vm. */
import { expect, test, vi } from 'vitest';
import { makeVm } from '../support/small-vm.ts';

/** Mutation: Vm does not override `emit`. */
test('a listener that throws does so from the event loop: the VM ends in order, and others hear', async () => {
  const later: Array<() => void> = [];
  const queue = vi.spyOn(globalThis, 'queueMicrotask').mockImplementation((task) => void later.push(task));
  try {
    const { vm, lives } = makeVm((hsm) => void hsm.guest.outb(0x10, 1));
    vm.on('state', (state) => {
      throw new Error(`planned: ${state}`);
    });
    expect(await vm.run()).toMatchObject({ kind: 'poweroff' });
    expect(vm.state).toBe('ended');
    expect(lives[0]?.calls.at(-1)?.method).toBe('close');
  } finally {
    queue.mockRestore();
  }
  expect(later.length).toBeGreaterThan(0);
  expect(later[0]).toThrow('planned: running');
});

/** Mutation: the life does not listen to `wake`, or not any more after the first suspend. */
test('whoever emits wake ends S3, and nobody listens after the end', async () => {
  const { vm, lives } = makeVm((hsm) => {
    void hsm.guest.outb(0x13, 1);
    void hsm.guest.outb(0x13, 1);
    void hsm.guest.outb(0x10, 1);
  });
  let suspends = 0;
  vm.on('state', (state) => {
    if (state !== 'suspended') return;
    suspends++;
    setImmediate(() => vm.emit('wake'));
  });
  await vm.run();
  expect(suspends).toBe(2);
  expect(lives).toHaveLength(1);
  expect(vm.listenerCount('wake')).toBe(0);
});
