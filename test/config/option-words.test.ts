/** What an option of a device may be is said in the option's own words, never in those of the library that checks it. */
import { expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';

// Mutation: pass the library's message on: `Invalid type: Expected ("threads" | "io_uring") but received "uring"`.
test.each([
  ['virtio-blk,d.img,aio=uring', 'aio: must be threads or io_uring, got "uring"'],
  ['virtio-blk,d.img,transport=pci', 'transport: must be legacy or transitional or modern, got "pci"'],
  ['virtio-rnd,transport=modem', 'transport: must be legacy or transitional or modern, got "modem"'],
  ['virtio-net,tap=t0,transport=', 'transport: must be legacy or transitional or modern, got ""'],
  ['virtio-console,@pty:a,transport=1', 'transport: must be legacy or transitional or modern, got "1"'],
  ['virtio-gpio,@gpiochip0{0=a},transport=transitional', 'transport: must be legacy or modern, got "transitional"'],
  ['hostbridge,model=q35', 'model: must be i440fx, got "q35"'],
])('-s 3,%s', (slot, said) => {
  expect(() => parseCommandLine(['-k', 'k', '-s', `3,${slot}`, 'vm1'], pciDrivers)).toThrow(said);
});

test('no device says it in the library’s words', () => {
  for (const { name } of pciDrivers) {
    for (const options of ['transport=x', 'model=x', 'aio=x', 'cap=x', 'log=x', 'cid=x', 'blob=x', 'ptm=x', 'x=1']) {
      try {
        parseCommandLine(['-k', 'k', '-s', `3,${name},${options}`, 'vm1'], pciDrivers);
      } catch (error) {
        expect((error as Error).message).not.toMatch(/Invalid|Expected|received/);
      }
    }
  }
});

test.each([
  ['X', 1],
  ['', 1],
  ['6', 1],
  ['D', 0],
  ['debug', 0],
])('xhci,log=%s, which C takes, has %i warnings', (level, count) => {
  const order = parseCommandLine(['-k', 'k', '-s', `3,xhci,1-1,log=${level}`, 'vm1'], pciDrivers) as VmOrder;
  expect(order.notices.filter(({ text }) => text.includes(`log=${level} is none of F, W, I, D and V`))).toHaveLength(
    count,
  );
});

test.each(['log', 'cap'])('xhci,%s without a value, which C passes over, is a warning', (word) => {
  const order = parseCommandLine(['-k', 'k', '-s', `3,xhci,${word}`, 'vm1'], pciDrivers) as VmOrder;
  expect(order.notices.filter(({ text }) => text.endsWith(`"${word}" has no value and is ignored`))).toHaveLength(1);
});

test.each([
  ['virtio-rnd', 0],
  ['virtio-rnd,transport=modern', 0],
  ['virtio-rnd,kernel=on', 1],
  ['virtio-rnd,x,transport=modern,y', 2],
  ['virtio-rnd,transport', 1],
])('-s 3,%s, which C takes, has %i warnings', (slot, count) => {
  const order = parseCommandLine(['-k', 'k', '-s', `3,${slot}`, 'vm1'], pciDrivers) as VmOrder;
  const notices = order.notices.filter(({ text }) => text.includes('is no option of virtio-rnd and is ignored'));
  expect(notices).toHaveLength(count);
  for (const { text } of notices) expect(text).not.toContain('did you mean "transport"');
});

// Mutation: `ptm: must be boolean, got "1"`.
test.each([
  ['root-port', 'ptm', '1'],
  ['root-port', 'ptm', ''],
  ['root-port', 'ptm', 'off'],
  ['virtio-blk,d.img', 'ro', 'on'],
  ['virtio-blk,d.img', 'writeback', 'false'],
  ['virtio-blk,d.img', 'nocache', '0'],
])('-s 3,%s,%s=%s: a flag has no value', (device, flag, value) => {
  try {
    parseCommandLine(['-k', 'k', '-s', `3,${device},${flag}=${value}`, 'vm1'], pciDrivers);
    expect.unreachable();
  } catch (error) {
    const { message, hint } = error as { message: string; hint?: string };
    expect(`${message} ${hint}`).toMatch(new RegExp(`\\b${flag}:? takes no value`));
  }
});
