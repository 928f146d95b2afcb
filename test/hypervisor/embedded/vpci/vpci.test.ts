/** The hypervisor's own PCI functions, by config space and registers as a guest sees them. */
import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import type { AccessSize } from '../../../../devicemodel/core/address.ts';
import type { IoRegion, MsiMessage } from '../../../../devicemodel/core/device.ts';
import type { IvshmemVdev, RootPortVdev, VuartVdev } from '../../../../devicemodel/core/hsm/vdev.ts';
import { silentLog } from '../../../../devicemodel/core/log.ts';
import type { OnBells } from '../../../../hypervisor/embedded/doorbells.ts';
import type {
  FunctionEventfds,
  VirtualFunction,
  VirtualFunctionHost,
} from '../../../../hypervisor/embedded/virtual-function.ts';
import { createIvshmem, type IvshmemRegion } from '../../../../hypervisor/embedded/vpci/ivshmem.ts';
import { createRootPort } from '../../../../hypervisor/embedded/vpci/root-port.ts';
import {
  createVuart,
  VUART_FIFO_BYTES,
  VUART_FIFO_RESERVE,
  type VuartWire,
} from '../../../../hypervisor/embedded/vpci/vuart.ts';
import { applyAccess, busAccesses, expectWithin } from '../../../support/bus-access.ts';

const SIZE = 0x20_0000;
const ivshmemVdev: IvshmemVdev = {
  type: 'ivshmem',
  bdf: { bus: 0, device: 5, function: 0 },
  registersBar: 0x8000_0000,
  msixBar: 0x8000_1000,
  memoryBar: 0x8020_0000,
  regionName: 'hv:/shm0',
  sizeBytes: SIZE,
};
const vuartVdev: VuartVdev = {
  type: 'vuart',
  bdf: { bus: 0, device: 6, function: 0 },
  registersBar: 0x8040_0000,
  msixBar: 0x8040_1000,
  vuartIndex: 1,
};
const rootPortVdev: RootPortVdev = {
  type: 'root-port',
  bdf: { bus: 0, device: 7, function: 0 },
  physicalBdf: { bus: 0, device: 0x1d, function: 0 },
  maxPayload: 1,
  primaryBus: 0,
  secondaryBus: 1,
  subordinateBus: 1,
  ptmCapOffset: 0x150,
};

/** A VM that knows what is where. */
class FakeHost implements VirtualFunctionHost {
  readonly vmid = 3;
  readonly log = silentLog;
  readonly messages: MsiMessage[] = [];
  readonly ranges: Array<{ base: number; size: number; region?: IoRegion }> = [];

  signal(message: MsiMessage): void {
    this.messages.push({ ...message });
  }
  addRegisters(base: number, size: number, region: IoRegion) {
    return this.#add({ base, size, region });
  }
  addMemory(base: number, bytes: Uint8Array) {
    return this.#add({ base, size: bytes.length });
  }
  at(base: number): IoRegion {
    return this.ranges.find((r) => r.base === base)?.region as IoRegion;
  }
  get bases(): number[] {
    return this.ranges.map((r) => r.base).sort((a, b) => a - b);
  }
  #add(range: { base: number; size: number; region?: IoRegion }) {
    this.ranges.push(range);
    return { dispose: () => void this.ranges.splice(this.ranges.indexOf(range), 1) };
  }
}

class FakeRegion implements IvshmemRegion {
  readonly regionId = 7;
  readonly bytes = new Uint8Array(SIZE);
  readonly hostAddress = undefined;
  readonly rung: Array<[number, number]> = [];
  disposals = 0;
  fromPeer: (vector: number) => void = () => {};
  ring(peer: number, vector: number): void {
    this.rung.push([peer, vector]);
  }
  onRing(handler: (vector: number) => void): void {
    this.fromPeer = handler;
  }
  dispose(): void {
    this.disposals++;
  }
}

function makeIvshmem() {
  const host = new FakeHost();
  const region = new FakeRegion();
  const fn = createIvshmem(ivshmemVdev, region, host);
  return { host, region, fn, registers: host.at(ivshmemVdev.registersBar), msix: host.at(ivshmemVdev.msixBar) };
}

class FakeWire implements VuartWire {
  isConnected = true;
  hasRoom = true;
  readonly sent: number[] = [];
  takenCount = 0;
  handlers = { receive: (_byte: number) => {}, changed: () => {} };
  send(byte: number): void {
    this.sent.push(byte);
  }
  consumed(): void {
    this.takenCount++;
  }
  attach(handlers: FakeWire['handlers']): void {
    this.handlers = handlers;
  }
  dispose(): void {}
}

function makeVuart() {
  const host = new FakeHost();
  const wire = new FakeWire();
  const fn = createVuart(vuartVdev, wire, host);
  const msix = host.at(vuartVdev.msixBar);
  enableMsix(fn, msix, 1);
  return { host, wire, fn, uart: host.at(vuartVdev.registersBar), msix };
}

/** The MSI-X capability is the first: at 0x40. Message control is its second word. */
const MSIX_CONTROL = 0x42;
const MSIX_ENABLE = 0x8000;

/** Vector v gets address FEE00000 and data 0x40 + v, unmasked. */
function enableMsix(fn: VirtualFunction, msix: IoRegion, vectors: number): void {
  for (let v = 0; v < vectors; v++) {
    msix.write(16 * v, 4, 0xfee0_0000);
    msix.write(16 * v + 8, 4, 0x40 + v);
    msix.write(16 * v + 12, 4, 0);
  }
  fn.writeConfig(MSIX_CONTROL, 2, MSIX_ENABLE);
}

/** PCI 3.0 §6.2.5.1. */
function sizeOfBar(fn: VirtualFunction, offset: number): number {
  const old = fn.readConfig(offset, 4);
  fn.writeConfig(offset, 4, 0xffff_ffff);
  const mask = fn.readConfig(offset, 4) & ~0xf;
  fn.writeConfig(offset, 4, old);
  return -mask >>> 0;
}

/** An engine that serves eventfds by itself: what it was asked for. */
function kernelEventfds() {
  const rings = new Map<string, number>();
  const messages = new Map<number, MsiMessage>();
  const watched = new Map<number, () => void>();
  const put = <K, V>(map: Map<K, V>, key: K, value: V) => {
    map.set(key, value);
    return { dispose: () => void map.delete(key) };
  };
  const eventfds: FunctionEventfds = {
    ring: (address, value, fd) => put(rings, `${address.toString(16)} ${value.toString(16)}`, fd),
    interrupts: (wanted) => wanted.map(({ fd, message }) => put(messages, fd, message)),
    watch: (fd, onSignal) => put(watched, fd, onSignal),
  };
  return { eventfds, rings, messages, watched };
}

describe('doorbells in the kernel', () => {
  const own = [10, 11, 12, 13, 14, 15, 16, 17];
  function make() {
    const kernel = kernelEventfds();
    const host = Object.assign(new FakeHost(), { eventfds: kernel.eventfds });
    let handler: OnBells = () => {};
    const bells = {
      own,
      disposals: 0,
      onPeers: (on: OnBells) => void (handler = on),
      dispose: () => void bells.disposals++,
    };
    const region = Object.assign(new FakeRegion(), { bells });
    const fn = createIvshmem(ivshmemVdev, region, host);
    return {
      ...kernel,
      host,
      fn,
      bells,
      msix: host.at(ivshmemVdev.msixBar),
      setPeer: (vmid: number, fds?: number[]) => handler(vmid, fds),
    };
  }
  const at = (base: number, vmid: number, vector: number) =>
    `${(base + 0xc).toString(16)} ${((vmid << 16) | vector).toString(16)}`;
  /** MSI-X on, and vector 2 to an address. */
  const unmask = (msix: IoRegion, fn: VirtualFunction, data = 0x41) => {
    let capability = fn.readConfig(0x34, 1);
    while (fn.readConfig(capability, 1) !== 0x11) capability = fn.readConfig(capability + 1, 1);
    fn.writeConfig(capability + 2, 2, 0x8000);
    for (const [offset, value] of [0xfee0_0000, 0, data, 0].entries()) msix.write(2 * 16 + 4 * offset, 4, value);
  };

  test('a write of the register rings the vector of the VM it names, its own included, wherever the register is', () => {
    const { rings, fn, setPeer } = make();
    expect(rings.get(at(0x8000_0000, 3, 7))).toBe(17);
    expect(rings.size).toBe(8);
    setPeer(5, [50, 51]);
    expect(rings.get(at(0x8000_0000, 5, 1))).toBe(51);
    fn.writeConfig(0x10, 4, 0x9000_0000);
    expect(rings.get(at(0x9000_0000, 5, 1))).toBe(51);
    expect(rings.size).toBe(10);
    setPeer(5);
    expect(rings.size).toBe(8);
  });

  // Mutation: without the comparison in #route, each write of the table takes the irqfd away and makes it again.
  test('a vector with a message interrupts in the kernel; masked, it becomes pending here', () => {
    const { messages, watched, msix, fn, host } = make();
    expect([...watched.keys()]).toEqual(own);
    unmask(msix, fn);
    expect([...messages]).toEqual([[12, { address: 0xfee0_0000, data: 0x41 }]]);
    expect(watched.has(12)).toBe(false);
    msix.write(2 * 16 + 12, 4, 1);
    expect(messages.size).toBe(0);
    watched.get(12)?.();
    expect(host.messages).toEqual([]);
    msix.write(2 * 16 + 12, 4, 0);
    expect(host.messages).toEqual([{ address: 0xfee0_0000, data: 0x41 }]);
    expect(messages.size).toBe(1);
  });

  test('the end takes everything away', () => {
    const { rings, messages, watched, msix, fn, bells, setPeer } = make();
    unmask(msix, fn);
    setPeer(5, [50]);
    fn.dispose();
    expect([rings.size, messages.size, watched.size, bells.disposals]).toEqual([0, 0, 0, 1]);
  });
});

describe('ivshmem', () => {
  test('the header says what it is and where its BARs are', () => {
    const { fn } = makeIvshmem();
    expect(fn.readConfig(0, 4)).toBe(0x1110_1af4);
    expect(fn.readConfig(8, 4)).toBe(0x0500_0001);
    expect(fn.readConfig(0x2c, 4)).toBe(0x0007_8086); // region id as subsystem id
    expect([0x10, 0x14, 0x18, 0x1c].map((at) => fn.readConfig(at, 4))).toEqual([
      0x8000_0000, 0x8000_1000, 0x8020_000c, 0,
    ]);
    expect(fn.readConfig(0x34, 1)).toBe(0x40);
    expect(fn.readConfig(0x40, 4)).toBe(0x0007_0011); // MSI-X, 8 vectors
  });

  test('BARs have their sizes, and stay where they were after being sized', () => {
    const { fn, host } = makeIvshmem();
    expect([0x10, 0x14, 0x18].map((at) => sizeOfBar(fn, at))).toEqual([0x100, 0x1000, SIZE]);
    expect(host.bases).toEqual([0x8000_0000, 0x8000_1000, 0x8020_0000]);
  });

  test('a moved BAR answers at its new place only', () => {
    const { fn, host } = makeIvshmem();
    fn.writeConfig(0x10, 4, 0x9000_0000);
    fn.writeConfig(0x18, 4, 0xa000_0000);
    expect(host.bases).toEqual([0x8000_1000, 0x9000_0000, 0xa000_0000]);
    expect(host.at(0x9000_0000).read(8, 4)).toBe(3);
  });

  test('the memory BAR can go above 4 GiB', () => {
    const { fn, host } = makeIvshmem();
    fn.writeConfig(0x1c, 4, 0x40);
    expect(host.bases).toContain(0x40_8020_0000);
  });

  test('registers: mask and status are kept, the position is the VM id, the doorbell reads 0', () => {
    const { registers } = makeIvshmem();
    for (const offset of [0, 4, 8]) registers.write(offset, 4, 0xabcd_0123);
    expect([0, 4, 8, 12, 16].map((at) => registers.read(at, 4))).toEqual([0xabcd_0123, 0xabcd_0123, 3, 0, 0]);
    expect(registers.read(8, 1)).toBe(0); // only dwords are honoured
  });

  test('the doorbell rings the peer in its upper half by the vector in its lower', () => {
    const { registers, region } = makeIvshmem();
    registers.write(12, 4, 0x0002_0005);
    registers.write(12, 2, 0x0005);
    expect(region.rung).toEqual([[2, 5]]);
  });

  test('a ring becomes the message of its vector, if there is one and MSI-X is on', () => {
    const { fn, host, region, msix } = makeIvshmem();
    region.fromPeer(0); // off
    enableMsix(fn, msix, 8);
    for (const vector of [0, 7, 8]) region.fromPeer(vector);
    expect(host.messages).toEqual([
      { address: 0xfee0_0000, data: 0x40 },
      { address: 0xfee0_0000, data: 0x47 },
    ]);
  });

  test('a masked vector is pending until it is unmasked', () => {
    const { fn, host, region, msix } = makeIvshmem();
    enableMsix(fn, msix, 8);
    msix.write(16 * 2 + 12, 4, 1);
    region.fromPeer(2);
    expect([host.messages.length, msix.read(0x800, 4)]).toEqual([0, 4]);
    msix.write(16 * 2 + 12, 4, 0);
    expect([host.messages.map((m) => m.data), msix.read(0x800, 4)]).toEqual([[0x42], 0]);
  });

  test('the function mask holds back all vectors', () => {
    const { fn, host, region, msix } = makeIvshmem();
    enableMsix(fn, msix, 8);
    fn.writeConfig(MSIX_CONTROL, 2, MSIX_ENABLE | 0x4000);
    region.fromPeer(1);
    expect(host.messages).toEqual([]);
    fn.writeConfig(MSIX_CONTROL, 2, MSIX_ENABLE);
    expect(host.messages.map((m) => m.data)).toEqual([0x41]);
  });

  test('disposing takes everything away', () => {
    const { fn, host, region } = makeIvshmem();
    fn.dispose();
    expect([host.ranges.length, region.disposals]).toEqual([0, 1]);
  });
});

describe('vUART', () => {
  const Reg = { data: 0, ier: 1, iir: 2, lcr: 3, mcr: 4, lsr: 5, msr: 6, scratch: 7 } as const;

  test('the header is the MCS9900 with one vector', () => {
    const { fn } = makeVuart();
    expect(fn.readConfig(0, 4)).toBe(0x9900_9710);
    expect(fn.readConfig(8, 4)).toBe(0x0700_0200); // simple communication, 16550
    expect(fn.readConfig(0x2c, 4)).toBe(0x1000_a000);
    expect(fn.readConfig(MSIX_CONTROL, 2) & 0x7ff).toBe(0);
    expect([0x10, 0x14].map((at) => sizeOfBar(fn, at))).toEqual([0x1000, 0x1000]);
  });

  test('what is sent goes down the wire, what comes is read in order', () => {
    const { uart, wire } = makeVuart();
    for (const byte of [0x68, 0x69]) uart.write(Reg.data, 1, byte);
    for (const byte of [1, 2, 3]) wire.handlers.receive(byte);
    expect(wire.sent).toEqual([0x68, 0x69]);
    expect(uart.read(Reg.lsr, 1) & 1).toBe(1);
    expect([uart.read(0, 1), uart.read(0, 1), uart.read(0, 1)]).toEqual([1, 2, 3]);
    expect(uart.read(Reg.lsr, 1) & 1).toBe(0);
    expect(wire.takenCount).toBe(3);
  });

  test('a received byte sends the message, if its interrupt is on', () => {
    const { uart, wire, host } = makeVuart();
    wire.handlers.receive(1);
    expect(host.messages).toEqual([]);
    uart.write(Reg.ier, 1, 1);
    wire.handlers.receive(2);
    expect(host.messages.length).toBe(2); // enabling found one, and another came
    expect(uart.read(Reg.iir, 1) & 0xf).toBe(0xc);
  });

  test('THRE is pending after it was enabled, and reading IIR takes it back', () => {
    const { uart } = makeVuart();
    uart.write(Reg.ier, 1, 2);
    expect(uart.read(Reg.iir, 1)).toBe(2);
    expect(uart.read(Reg.iir, 1)).toBe(1);
    uart.write(Reg.data, 1, 0x41);
    expect(uart.read(Reg.iir, 1)).toBe(2);
  });

  test('without room at the other end THRE waits until there is some', () => {
    const { uart, wire, host } = makeVuart();
    uart.write(Reg.ier, 1, 2);
    uart.read(Reg.iir, 1);
    wire.hasRoom = false;
    uart.write(Reg.data, 1, 0x41);
    expect([uart.read(Reg.iir, 1), uart.read(Reg.lsr, 1) & 0x60]).toEqual([1, 0]);
    const before = host.messages.length;
    wire.hasRoom = true;
    wire.handlers.changed();
    expect([host.messages.length - before, uart.read(Reg.iir, 1), uart.read(Reg.lsr, 1) & 0x60]).toEqual([1, 2, 0x60]);
  });

  test('with nobody there sending works and is lost', () => {
    const { uart, wire } = makeVuart();
    wire.isConnected = false;
    uart.write(Reg.data, 1, 0x41);
    expect([wire.sent, uart.read(Reg.lsr, 1) & 0x60]).toEqual([[], 0x60]);
  });

  test('loopback returns bytes and modem lines without the wire', () => {
    const { uart, wire } = makeVuart();
    uart.write(Reg.mcr, 1, 0x10 | 0x0a);
    uart.write(Reg.data, 1, 0x55);
    expect([uart.read(Reg.data, 1), wire.sent]).toEqual([0x55, []]);
    expect(uart.read(Reg.msr, 1) & 0xf0).toBe(0x90); // RTS as CTS, OUT2 as DCD
  });

  test('the divisor latch hides the data and interrupt registers', () => {
    const { uart, wire } = makeVuart();
    uart.write(Reg.lcr, 1, 0x83);
    uart.write(Reg.data, 1, 0x0c);
    uart.write(Reg.ier, 1, 0x01);
    expect([uart.read(0, 1), uart.read(1, 1)]).toEqual([0x0c, 0x01]);
    uart.write(Reg.lcr, 1, 3);
    expect([uart.read(Reg.ier, 1), wire.sent]).toEqual([0, []]);
  });

  test('where the sender does not wait, the oldest byte on the wire goes, and overrun is said once', () => {
    const { uart, wire } = makeVuart();
    // One byte is in the receiver, the rest on the wire: the next one is too many.
    for (let i = 0; i < 1 + VUART_FIFO_BYTES; i++) wire.handlers.receive(i & 0xff);
    expect([uart.read(Reg.lsr, 1) & 2, wire.takenCount]).toEqual([0, 1]);
    wire.handlers.receive(0xee);
    expect(uart.read(Reg.lsr, 1) & 2).toBe(2);
    expect(uart.read(Reg.lsr, 1) & 2).toBe(0);
    expect(wire.takenCount).toBe(2); // what had to go frees its place with the sender
    expect([uart.read(0, 1), uart.read(0, 1)]).toEqual([0, 2]);
  });

  test('a message goes out for a new reason or cause, not for every access while one stands', () => {
    const { uart, wire, host } = makeVuart();
    uart.write(Reg.ier, 1, 1);
    wire.handlers.receive(1);
    const before = host.messages.length;
    for (const register of [Reg.iir, Reg.lsr, Reg.msr, Reg.scratch]) uart.read(register, 1);
    expect(host.messages.length).toBe(before);
    wire.handlers.receive(2);
    expect(host.messages.length).toBe(before + 1);
  });

  test('THRE is not offered while there is no room', () => {
    const { uart, wire } = makeVuart();
    wire.hasRoom = false;
    uart.write(Reg.data, 1, 0x41);
    uart.write(Reg.ier, 1, 2);
    expect(uart.read(Reg.iir, 1)).toBe(1);
  });

  test('the reserve lets a driver send a burst for one THRE', () => {
    expect(VUART_FIFO_RESERVE).toBeGreaterThanOrEqual(16);
  });
});

describe('root port', () => {
  const fn = () => createRootPort(rootPortVdev);

  test('the header is a bridge to the secondary bus', () => {
    const port = fn();
    expect(port.readConfig(0, 4)).toBe(0x9d14_8086);
    expect(port.readConfig(8, 4)).toBe(0x0604_0001);
    expect(port.readConfig(0x0e, 1)).toBe(1);
    expect(port.readConfig(0x18, 4)).toBe(0x0001_0100);
  });

  test('PCI Express and PTM capabilities are there', () => {
    const port = fn();
    expect([port.readConfig(0x34, 1), port.readConfig(0x40, 1), port.readConfig(0x42, 2)]).toEqual([0x40, 0x10, 0x142]);
    expect([port.readConfig(0x44, 4), port.readConfig(0x48, 2)]).toEqual([1, 0x20]); // 256 bytes, capable and set
    expect([0x100, 0x104, 0x108].map((at) => port.readConfig(at, 4))).toEqual([0x0001_001f, 0x406, 0x3]);
  });

  test('without PTM the extended space is empty', () => {
    const port = createRootPort({ ...rootPortVdev, ptmCapOffset: undefined });
    expect(port.readConfig(0x100, 4)).toBe(0);
  });

  test('its windows are closed at power-on, and can be opened anywhere', () => {
    const port = fn();
    // Base above limit: ports, memory, prefetchable memory with 64-bit addresses (bit 0).
    expect([port.readConfig(0x1c, 2), port.readConfig(0x20, 4), port.readConfig(0x24, 4)]).toEqual([
      0x00f0, 0x0000_fff0, 0x0001_fff1,
    ]);
    for (const [at, size, value] of [
      [0x1c, 2, 0x4f3f],
      [0x20, 4, 0x801f_800f],
      [0x24, 4, 0x000f_000f],
      [0x28, 4, 0x40],
      [0x2c, 4, 0x41],
    ] as const) {
      port.writeConfig(at, size, value);
    }
    expect([0x1c, 0x20, 0x24, 0x28, 0x2c].map((at) => port.readConfig(at, at === 0x1c ? 2 : 4))).toEqual([
      0x4030, 0x8010_8000, 0x0001_0001, 0x40, 0x41,
    ]);
  });

  test('a guest may renumber buses, but not change the ids', () => {
    const port = fn();
    port.writeConfig(0x18, 4, 0x0005_0400);
    port.writeConfig(0, 4, 0xffff_ffff);
    expect([port.readConfig(0x18, 4), port.readConfig(0, 4)]).toEqual([0x0005_0400, 0x9d14_8086]);
  });
});

describe('any guest', () => {
  const config = fc.array(
    fc.record({
      write: fc.boolean(),
      dword: fc.nat({ max: 0x3ff }),
      size: fc.constantFrom<AccessSize>(1, 2, 4),
      value: fc.oneof(fc.nat({ max: 0xffff_ffff }), fc.constantFrom(0, 0xffff_ffff)),
    }),
    { maxLength: 80 },
  );

  test('may access config space as it likes', () => {
    fc.assert(
      fc.property(config, (accesses) => {
        const host = new FakeHost();
        const functions = [
          createIvshmem(ivshmemVdev, new FakeRegion(), host),
          createVuart(vuartVdev, new FakeWire(), host),
          createRootPort(rootPortVdev),
        ];
        for (const fn of functions) {
          const ids = fn.readConfig(0, 4);
          for (const { write, dword, size, value } of accesses) {
            if (write) fn.writeConfig(4 * dword, size, value >>> (32 - 8 * size));
            else expectWithin(fn.readConfig(4 * dword, size), size);
          }
          expect(fn.readConfig(0, 4)).toBe(ids);
          fn.dispose();
        }
        expect(host.ranges).toEqual([]);
      }),
    );
  });

  test('may access registers and MSI-X tables as it likes', () => {
    fc.assert(
      fc.property(busAccesses(0x1000), (accesses) => {
        const { registers, msix } = makeIvshmem();
        const { uart } = makeVuart();
        for (const access of accesses) for (const region of [registers, msix, uart]) applyAccess(region, access);
      }),
    );
  });
});
