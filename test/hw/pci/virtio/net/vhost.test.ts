/** Queues served by the kernel: which orders it gets, and how kicks and interrupts are wired around it. */
import { writeSync } from 'node:fs';
import { afterEach, describe, expect, test } from 'vitest';
import type { MsiMessage } from '../../../../../devicemodel/core/device.ts';
import { ConfigError, HostError } from '../../../../../devicemodel/core/errors.ts';
import { GuestRam } from '../../../../../devicemodel/core/guest-buffers.ts';
import { memoryTable, type VhostOrder, VhostRequest } from '../../../../../devicemodel/core/host/vhost.ts';
import type { PciEnv } from '../../../../../devicemodel/hw/pci/driver.ts';
import { regionsOf, VhostDevice } from '../../../../../devicemodel/hw/pci/virtio/net/vhost.ts';
import type { QueueWires } from '../../../../../devicemodel/hw/pci/virtio/transport/device.ts';
import { VirtioPci } from '../../../../../devicemodel/hw/pci/virtio/transport/transport.ts';
import { parseVsockText } from '../../../../../devicemodel/hw/pci/virtio/vsock/options.ts';
import { VhostVsock, vhostVsock } from '../../../../../devicemodel/hw/pci/virtio/vsock/vsock.ts';
import { VirtioDriver, VirtioMachine } from '../../../../support/virtio-driver.ts';

const undo: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const step of undo.splice(0).reverse()) await step();
});

/** A kernel that takes every order. */
class FakeVhost extends VhostDevice {
  readonly calls: string[] = [];
  wires: readonly QueueWires[] = [];
  fail: string | undefined;
  constructor() {
    super('/dev/fake');
  }
  override get features(): bigint {
    return (1n << 32n) | (1n << 28n);
  }
  override open(): void {}
  override close(): void {
    this.calls.push('close');
  }
  override start(ram: GuestRam, features: bigint, wires: readonly QueueWires[]): void {
    this.wires = wires;
    super.start(ram, features, wires);
  }
  protected override order(name: VhostOrder, argument: ArrayBufferView | undefined): void {
    this.calls.push(name.replace('VHOST_', ''));
    if (name === this.fail) throw new HostError(`${name}: no`, 22);
    if (argument instanceof Uint32Array && name === 'VHOST_GET_VRING_BASE') argument[1] = 7;
  }
}

async function makeVsock(options: { irqfd?: boolean; fail?: string } = {}) {
  const machine = new VirtioMachine();
  undo.push(() => machine.dispose());
  const irqfds: Array<{ fd: number; data: number; assign: boolean }> = [];
  const base = machine.env();
  const irqfd = (fd: number, message: MsiMessage, assign: boolean) => {
    if (options.irqfd === false) throw new HostError('IRQFD: not here', 25);
    irqfds.push({ fd, data: message.data, assign });
  };
  const env: PciEnv = { ...base, hsm: { ...base.hsm, irqfd } };
  const kernel = new FakeVhost();
  kernel.fail = options.fail;
  const fn = new VirtioPci(new VhostVsock(5, env.log, kernel), env, {
    mode: 'modern',
    notifyByIo: false,
    identity: { legacyDeviceId: 0, type: 19, classCode: 0x020000 },
  });
  const driver = new VirtioDriver(machine, fn, 'modern');
  await fn.start();
  undo.push(() => fn.stop());
  const vectors = () => {
    for (const queue of [0, 1]) {
      driver.out(22, 2, queue);
      driver.out(26, 2, queue + 1);
    }
  };
  /** As Linux does: vectors before DRIVER_OK. */
  const init = (msix = true) => {
    if (msix) driver.enableMsix();
    driver.status = 3;
    driver.out(8, 4, 1);
    driver.out(12, 4, 1);
    driver.status = 0xb;
    for (let i = 0; i < 3; i++) driver.setUpQueue(i);
    if (msix) vectors();
    kernel.calls.length = 0;
    machine.ioeventfds.length = 0;
    irqfds.length = 0;
    driver.status = 0xf;
  };
  return { machine, driver, kernel, irqfds, init };
}

const ring = ['SET_VRING_NUM', 'SET_VRING_BASE', 'SET_VRING_ADDR', 'SET_VRING_CALL', 'SET_VRING_KICK'];

describe('vhost-vsock', () => {
  test('DRIVER_OK hands two queues to the kernel, with kicks by ioeventfd and interrupts by irqfd', async () => {
    const { kernel, irqfds, machine, init } = await makeVsock();
    init();
    expect(kernel.calls).toEqual(['SET_OWNER', 'SET_FEATURES', 'SET_MEM_TABLE', ...ring, ...ring, 'VSOCK_SET_RUNNING']);
    expect(machine.ioeventfds.map((e) => [e.assign, e.spec.space, e.spec.address])).toEqual([
      [true, 'mmio', 0x80043000],
      [true, 'mmio', 0x80043004],
    ]);
    expect(irqfds.map((i) => [i.assign, i.data])).toEqual([
      [true, 0x41],
      [true, 0x42],
    ]);
  });

  test('reset takes them back, and the next driver gets the same again', async () => {
    const { driver, kernel, irqfds, machine, init } = await makeVsock();
    init();
    kernel.calls.length = 0;
    machine.ioeventfds.length = 0;
    irqfds.length = 0;
    driver.status = 0;
    expect(kernel.calls).toEqual([
      'VSOCK_SET_RUNNING',
      'GET_VRING_BASE',
      'GET_VRING_BASE',
      'close',
      'VSOCK_SET_GUEST_CID',
    ]);
    expect(machine.ioeventfds.map((e) => e.assign)).toEqual([false, false]);
    expect(irqfds.map((i) => i.assign)).toEqual([false, false]);
    init();
    expect(kernel.calls).toHaveLength(14);
  });

  test('a vector that is masked goes through here, and by irqfd again when it is not', async () => {
    const { driver, kernel, irqfds, machine, init } = await makeVsock();
    init();
    irqfds.length = 0;
    driver.fn.writeBar(1, 16 + 12, 4, 1);
    expect(irqfds.map((i) => [i.assign, i.data])).toEqual([[false, 0x41]]);
    writeSync((kernel.wires[0] as QueueWires).callFd, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0));
    await new Promise((resolve) => setTimeout(resolve, 20));
    expect(machine.msis).toEqual([]);
    driver.fn.writeBar(1, 16 + 12, 4, 0);
    expect(machine.msis.map((m) => m.data)).toEqual([0x41]);
    expect(irqfds.map((i) => [i.assign, i.data])).toEqual([
      [false, 0x41],
      [true, 0x41],
    ]);
  });

  test.each([
    ['no irqfd', true],
    ['no MSI-X', false],
  ])('%s: interrupts are delivered from here', async (_name, msix) => {
    const { driver, kernel, machine, init } = await makeVsock({ irqfd: false });
    init(msix);
    writeSync((kernel.wires[1] as QueueWires).callFd, Uint8Array.of(1, 0, 0, 0, 0, 0, 0, 0));
    if (msix) await expect.poll(() => machine.msis.map((m) => m.data)).toEqual([0x42]);
    else await expect.poll(() => machine.intx).toBe(true);
    driver.status = 0;
  });

  test('a kick that comes through the request page is passed on', async () => {
    const { driver, kernel, init } = await makeVsock();
    init();
    const { readSync } = await import('node:fs');
    const { kickFd } = kernel.wires[1] as QueueWires;
    readSync(kickFd, new Uint8Array(8));
    driver.kick(1);
    const count = new BigUint64Array(1);
    readSync(kickFd, new Uint8Array(count.buffer));
    expect(count[0]).toBe(1n);
  });

  test('a kernel that refuses leaves one line and no wires', async () => {
    const { machine, irqfds, init } = await makeVsock({ fail: 'VHOST_SET_MEM_TABLE' });
    init();
    expect(machine.lines.filter((l) => l.startsWith('error'))).toHaveLength(1);
    expect(machine.ioeventfds.map((e) => e.assign)).toEqual([true, true, false, false]);
    expect(irqfds.map((i) => i.assign)).toEqual([true, true, false, false]);
  });

  test('the address is in the configuration', async () => {
    const { driver } = await makeVsock();
    expect([driver.readConfig(0, 4), driver.readConfig(4, 4)]).toEqual([5, 0]);
  });

  test('a host without it: one clear error', async () => {
    const machine = new VirtioMachine();
    undo.push(() => machine.dispose());
    const env = machine.env();
    const fn = new VirtioPci(new VhostVsock(5, env.log, new VhostDevice('/dev/nonexistent')), env, {
      mode: 'modern',
      identity: { legacyDeviceId: 0, type: 19, classCode: 0x020000 },
    });
    await expect(fn.start()).rejects.toThrow(/vhost-vsock,cid=5/);
    await fn.stop();
  });

  test.each(['', 'x=1', 'cid=2', 'cid=abc', 'cid=4294967295'])('"%s" is refused', (text) => {
    const check = async () => {
      const { checkOptions } = await import('../../../../../devicemodel/core/options.ts');
      return checkOptions(vhostVsock.options, parseVsockText(text));
    };
    return expect(check()).rejects.toThrow(ConfigError);
  });
});

test('the memory table joins chunks that touch in both address spaces', () => {
  const chunk = (base: number, size: number, hostAddress: bigint) => ({
    base,
    bytes: new Uint8Array(size),
    hostAddress,
  });
  const ram = new GuestRam([
    chunk(0, 0x1000, 0x7000_0000n),
    chunk(0x1000, 0x1000, 0x7000_1000n),
    chunk(0x2000, 0x1000, 0x9000_0000n),
  ]);
  const view = new DataView(memoryTable(regionsOf(ram)).buffer);
  expect(view.getUint32(0, true)).toBe(2);
  expect([view.getBigUint64(8, true), view.getBigUint64(16, true), view.getBigUint64(24, true)]).toEqual([
    0n,
    0x2000n,
    0x7000_0000n,
  ]);
  expect([view.getBigUint64(40, true), view.getBigUint64(48, true), view.getBigUint64(56, true)]).toEqual([
    0x2000n,
    0x1000n,
    0x9000_0000n,
  ]);
});

test('ioctl numbers are those of <linux/vhost.h>', () => {
  // _IOC(dir, 0xAF, number, size): write 1, read 2.
  const ioc = (dir: number, number: number, size: number) => ((dir << 30) | (size << 16) | (0xaf << 8) | number) >>> 0;
  expect(VhostRequest).toEqual({
    VHOST_GET_FEATURES: ioc(2, 0x00, 8),
    VHOST_SET_FEATURES: ioc(1, 0x00, 8),
    VHOST_SET_OWNER: ioc(0, 0x01, 0),
    VHOST_SET_MEM_TABLE: ioc(1, 0x03, 8),
    VHOST_SET_VRING_NUM: ioc(1, 0x10, 8),
    VHOST_SET_VRING_ADDR: ioc(1, 0x11, 40),
    VHOST_SET_VRING_BASE: ioc(1, 0x12, 8),
    VHOST_GET_VRING_BASE: ioc(3, 0x12, 8),
    VHOST_SET_VRING_KICK: ioc(1, 0x20, 8),
    VHOST_SET_VRING_CALL: ioc(1, 0x21, 8),
    VHOST_NET_SET_BACKEND: ioc(1, 0x30, 8),
    VHOST_VSOCK_SET_GUEST_CID: ioc(1, 0x60, 8),
    VHOST_VSOCK_SET_RUNNING: ioc(1, 0x61, 4),
  });
});
