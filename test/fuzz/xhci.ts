/**
 * A hostile guest at the xHCI controller: registers, rings, contexts and doorbells of any kind, while devices complete,
 * fail, come and go. What has to hold: nothing throws, what is in flight is bounded and comes back, guest memory is touched
 * only while a transfer is the guest's, and the host has all of its devices back in the end.
 */
import { IoPatience } from '../../devicemodel/core/io-patience.ts';
import { GuestMemory } from '../../devicemodel/core/memory.ts';
import { InputHub } from '../../devicemodel/hw/input/input-hub.ts';
import { XhciController } from '../../devicemodel/hw/pci/xhci/controller.ts';
import { AplCapabilities, plainCapabilities } from '../../devicemodel/hw/pci/xhci/extended-capabilities.ts';
import { type TransferStatus, UsbSpeed } from '../../devicemodel/hw/usb/device.ts';
import { PortMapper } from '../../devicemodel/hw/usb/port-mapper.ts';
import { UsbTablet } from '../../devicemodel/hw/usb/tablet.ts';
import { FakeClock } from '../support/fake-clock.ts';
import { FakeUsbDevice } from '../support/fake-usb-device.ts';
import { memoryLog } from '../support/memory-log.ts';
import { At, portRegister, Reg } from '../support/xhci-guest.ts';
import { FickleUsbHost } from './fickle-usb-host.ts';
import { Random } from './random.ts';

const RAM_BYTES = 0x10_0000;
/** More would not be a slice: a machine under load included. */
const SLOW_MS = 2000;
const MAX_IN_FLIGHT = 64 * 31 * 3 * 16;
const outcomes: readonly TransferStatus[] = [
  ...(['completed', 'completed', 'completed', 'stall', 'error', 'babble', 'cancelled', 'gone'] as const),
];
const registers = Object.values(Reg);
const areas = [At.commands, At.eventTable, At.contextArray, At.input, At.contexts, At.rings];

class HostileXhci {
  readonly #random: Random;
  readonly #ram = new Uint8Array(RAM_BYTES);
  readonly #memory = new GuestMemory([{ base: 0, bytes: this.#ram, hostAddress: undefined }]);
  readonly #clock = new FakeClock();
  readonly #hub = new InputHub();
  readonly controller: XhciController;
  readonly #host: FickleUsbHost;
  readonly #mapper: PortMapper;
  #devices: FakeUsbDevice[] = [];
  /** Slots may have something with them still. */
  readonly #pulledOut: FakeUsbDevice[] = [];
  #command = 0;
  /** A driver that seldom writes what spoils everything: it gets further. */
  readonly #isTame: boolean;
  events = 0;

  constructor(random: Random) {
    this.#random = random;
    this.#isTame = random.oneIn(2);
    const { log } = memoryLog();
    const patience = new IoPatience(60_000);
    this.#host = new FickleUsbHost(random);
    this.controller = new XhciController(
      {
        memory: this.#memory,
        clock: this.#clock,
        log,
        patience,
        setLine: () => {},
        sendMessage: () => this.events++,
      },
      random.oneIn(2) ? plainCapabilities : new AplCapabilities(() => random.oneIn(2)),
    );
    const tablet = new UsbTablet(this.#hub);
    tablet.plugIn();
    this.controller.ports.connect(tablet);
    this.#plug();
    this.#mapper = new PortMapper(FickleUsbHost.ports, this.controller.ports, this.#host, log, patience);
    this.#mapper.start();
    this.#setUp();
  }

  /** As a driver would: without it hostile steps get nowhere. */
  #setUp(): void {
    const write = (register: number, value: number) => this.controller.write(register, value);
    this.#command = 0;
    write(Reg.command, 2);
    this.#trb(At.eventTable, At.events, this.#random.pick([16, 64, 256]), 0);
    write(Reg.dcbaapLow, At.contextArray);
    write(Reg.dcbaapHigh, 0);
    write(Reg.crcrLow, At.commands | 1);
    write(Reg.crcrHigh, 0);
    write(Reg.erstSize, 1);
    write(Reg.erdpLow, At.events);
    write(Reg.erdpHigh, 0);
    write(Reg.erstLow, At.eventTable);
    write(Reg.erstHigh, 0);
    write(Reg.iman, 2);
    write(Reg.command, 5);
    for (let slot = 1; slot <= 4; slot++) {
      this.#memory.writeU64(At.contextArray + 8 * slot, BigInt(At.contexts + 0x400 * slot));
      this.#giveCommand(9, 0, 0);
    }
  }

  #trb(at: number, parameter: number, status: number, control: number): void {
    this.#memory.writeU32(at, parameter >>> 0);
    this.#memory.writeU32(at + 4, 0);
    this.#memory.writeU32(at + 8, status >>> 0);
    this.#memory.writeU32(at + 12, control >>> 0);
  }

  #plug(): void {
    const device = new FakeUsbDevice(this.#random.pick(Object.values(UsbSpeed)));
    device.isSlow = this.#random.oneIn(2);
    if (this.#random.oneIn(4)) device.opening = Promise.resolve(this.#random.oneIn(2));
    if (this.#random.oneIn(4)) device.resetting = Promise.resolve(this.#random.oneIn(2));
    if (this.controller.ports.connect(device) !== undefined) this.#devices.push(device);
  }

  #giveCommand(type: number, parameter: number, high: number): void {
    const at = At.commands + 16 * this.#command++;
    this.#trb(at, parameter, 0, (high << 16) | (type << 10) | (this.#random.below(8) === 0 ? 0x200 : 0) | 1);
    this.controller.write(Reg.doorbell, 0);
    if (this.#command >= 0xf0) {
      this.controller.write(Reg.crcrLow, At.commands | 1);
      this.controller.write(Reg.crcrHigh, 0);
      this.#command = 0;
    }
  }

  /** A block for an endpoint: mostly one that is allowed there. */
  #queue(slot: number, endpoint: number): void {
    const random = this.#random;
    const base = At.rings + 0x2000 * (slot - 1) + 0x100 * endpoint;
    const at = base + 16 * random.below(15);
    const type = random.pick([1, 1, 1, 2, 3, 4, 5, 6, 7, 8, random.below(64)]);
    const flags = random.pick([0, 4, 0x10, 0x20, 0x24, 0x34, 0x60, random.u32() & 0xffff]);
    const length = type === 2 ? 8 : random.pick([0, 8, 512, 0x1ffff, random.below(4096)]);
    const pointer = type === 6 ? base : random.oneIn(16) ? random.u32() : random.below(RAM_BYTES);
    this.#trb(at, pointer, length, (type << 10) | flags | (type === 2 ? 0x40 : 0) | (random.oneIn(8) ? 0 : 1));
  }

  #inputContext(slot: number): void {
    const random = this.#random;
    const { u32 } = { u32: () => random.u32() };
    this.#memory.writeU32(At.input, random.oneIn(3) ? u32() : 0);
    this.#memory.writeU32(At.input + 4, random.oneIn(2) ? 3 : u32());
    this.#memory.writeU32(At.input + 0x24, random.pick([1, 11, 12, 13, random.below(256)]) << 16);
    for (let id = 1; id < 32; id++) {
      const at = At.input + 0x20 + 0x20 * id;
      const type = id === 1 ? 4 : random.oneIn(8) ? random.below(8) : (id % 2 === 1 ? 4 : 0) + 1 + random.below(3);
      this.#memory.writeU32(at, random.oneIn(8) ? (1 << 10) | (1 << 15) : random.oneIn(16) ? u32() : 0);
      this.#memory.writeU32(at + 4, type << 3);
      this.#memory.writeU32(at + 8, (At.rings + 0x2000 * (slot - 1) + 0x100 * id) | 1);
      this.#memory.writeU32(at + 12, 0);
    }
  }

  /** What a driver does with a device: an address, endpoints, rings that have no end. */
  #drive(slot: number): void {
    const random = this.#random;
    this.#inputContext(slot);
    const port = random.pick(this.#portsInUse);
    if (port !== undefined) this.#memory.writeU32(At.input + 0x24, port << 16);
    this.#memory.writeU32(At.input, 0);
    this.#memory.writeU32(At.input + 4, 3);
    this.#giveCommand(11, At.input, slot << 8);
    this.#memory.writeU32(At.input + 4, 0xfc);
    this.#giveCommand(12, At.input, slot << 8);
    for (let endpoint = 1; endpoint < 8; endpoint++) {
      this.#fillRing(slot, endpoint);
      this.controller.write(Reg.doorbell + 4 * slot, endpoint);
    }
  }

  get #portsInUse(): number[] {
    return Array.from({ length: 20 }, (_, i) => i + 1).filter(
      (port) => (this.controller.read(portRegister(port)) & 1) === 1,
    );
  }

  #fillRing(slot: number, endpoint: number): void {
    const random = this.#random;
    const base = At.rings + 0x2000 * (slot - 1) + 0x100 * endpoint;
    for (let i = 0; i < 15; i++) {
      const stage = endpoint > 1 ? 1 : 2 + (i % 3);
      // Requests of the standard and others: configurations, halts and interfaces are the host's business.
      const requestType = random.pick([0, 1, 2, 0x80, 0x80, 0x81, 0xa1, random.below(256)]);
      const setup = requestType | (random.below(13) << 8) | (random.below(3) << (random.oneIn(2) ? 16 : 24));
      const length = stage === 2 ? 8 : stage === 4 ? 0 : random.pick([0, 1, 8, 64, 512]);
      const flags = stage === 2 ? 0x40 : random.pick([0x20, 0x24, 0x20, 0x02_20]);
      const direction = stage === 3 && requestType >= 0x80 ? 1 << 16 : 0;
      this.#trb(
        base + 16 * i,
        stage === 2 ? setup : random.below(RAM_BYTES),
        length,
        (stage << 10) | flags | direction | 1,
      );
    }
    this.#trb(base + 16 * 15, base, 0, (6 << 10) | 1);
  }

  #device(): void {
    const random = this.#random;
    const device = random.pick(this.#devices);
    if (device === undefined) return;
    const transfer = random.pick(device.inFlight);
    if (transfer !== undefined) {
      for (const packet of transfer.packets) {
        Object.assign(packet, { actualBytes: random.below(packet.lengthBytes + 1), status: random.pick(outcomes) });
      }
      device.give(transfer, random.pick(outcomes), random.below(transfer.buffer.length + 1));
    } else if (random.oneIn(64)) {
      this.controller.ports.disconnect(device);
      this.#devices = this.#devices.filter((other) => other !== device);
      this.#pulledOut.push(device);
    }
  }

  step(): void {
    const random = this.#random;
    const slot = 1 + random.below(4);
    const endpoint = random.oneIn(8) ? random.below(256) : 1 + random.below(6);
    const isWild = !this.#isTame || random.oneIn(64);
    switch (isWild ? random.below(16) : 4 + random.below(12)) {
      case 0:
        this.controller.write(random.pick(registers), random.value());
        return;
      case 1:
        this.controller.write(random.below(0x9000), random.value());
        return;
      case 2:
        this.controller.write(portRegister(1 + random.below(20)), random.oneIn(2) ? 0x210 : random.value());
        return;
      case 3:
        this.#memory.writeU32(random.pick(areas) + 4 * random.below(0x100), random.value());
        return;
      case 4:
      case 5:
        if (random.oneIn(2)) this.#inputContext(slot);
        this.#giveCommand(9 + random.below(9), At.input, (slot << 8) | (endpoint & 0x1f));
        return;
      case 6:
        // The guest sees its events.
        this.controller.write(Reg.erdpLow, (At.events + 16 * random.below(64)) | 8);
        return;
      case 7:
      case 8:
      case 9:
        this.#queue(slot, 1 + random.below(6));
        return;
      case 10:
      case 11:
        this.controller.write(Reg.doorbell + 4 * slot, endpoint | (random.oneIn(8) ? random.below(4) << 16 : 0));
        return;
      case 12:
        this.#device();
        return;
      case 13:
        for (let events = 1 + random.below(8); events > 0; events--) this.#host.step();
        return;
      case 14:
        this.#clock.advance(random.pick([1, 1000, 50_000]));
        this.#hub.pointer({ ...noPointer, x: random.below(0x8000), buttons: random.below(8) });
        return;
      default:
        this.#rarely();
    }
  }

  #rarely(): void {
    const random = this.#random;
    if (this.#isTame && random.oneIn(4)) {
      this.#drive(1 + random.below(4));
      return;
    }
    switch (random.below(32)) {
      case 0:
        this.controller.reset();
        this.#setUp();
        return;
      case 1:
      case 2:
      case 3:
      case 4:
        this.#setUp();
        return;
      case 5:
        void this.controller.recall();
        this.controller.resume();
        return;
      case 6:
        if (this.#devices.length < 6) this.#plug();
        return;
      case 7:
        // An isochronous ring runs dry. A ring without an end would have thousands of slices meanwhile.
        if (this.#clock.nextDueNs === undefined || this.#clock.nextDueNs > this.#clock.nowNs() + 1e6)
          this.#clock.advance(101e6);
        return;
      default:
        this.controller.read(random.below(0x9000));
    }
  }

  /** @throws Error if something of what has to hold does not. */
  check(): void {
    const { inFlight } = this.controller;
    if (inFlight < 0 || inFlight > MAX_IN_FLIGHT) throw new Error(`${inFlight} transfers are in flight`);
    this.#host.check();
  }

  /** As the function does it at the end of a VM: everything comes back, however far it is away. @throws Error */
  async end(): Promise<void> {
    let isOver = false;
    const over = Promise.resolve(this.controller.recall())
      .then(() => this.#mapper.stop())
      .then(() => (isOver = true));
    for (const device of [...this.#devices, ...this.#pulledOut]) {
      device.isSlow = false;
      while (device.inFlight.length > 0) device.give(device.inFlight[0] as never, 'cancelled');
    }
    for (let turns = 0; !isOver && turns < MAX_TURNS_TO_END; turns++) {
      this.#host.finish();
      await turnOfHost();
    }
    if (!isOver) throw new Error('the end waits for what does not come');
    await over;
    if (this.controller.inFlight !== 0) throw new Error(`${this.controller.inFlight} transfers did not come back`);
    this.#host.checkEnd();
    this.controller.reset();
  }
}

/** Calls of the host that follow each other at the end. */
const MAX_TURNS_TO_END = 200;
const turnOfHost = () => new Promise((resolve) => setImmediate(resolve));
const noPointer = { x: 0, y: 0, xPixels: 0, yPixels: 0, buttons: 0, wheel: 0 };
/** Steps before another controller, with other devices. */
const STEPS_A_LIFE = 5_000;

export async function fuzzXhci(
  seed: number,
  steps: number,
): Promise<{ steps: number; controllers: number; interrupts: number }> {
  const random = new Random(seed);
  let controllers = 0;
  let interrupts = 0;
  for (let done = 0; done < steps; controllers++) {
    const guest = new HostileXhci(random);
    for (let i = 0; i < STEPS_A_LIFE && done < steps; i++, done++) {
      const startMs = performance.now();
      guest.step();
      const tookMs = performance.now() - startMs;
      if (tookMs > SLOW_MS) throw new Error(`seed ${seed}: step ${done} took ${tookMs.toFixed(0)} ms`);
      // Promises of devices that take their time.
      if (done % 64 === 0) await turnOfHost();
      guest.check();
    }
    interrupts += guest.events;
    await guest.end();
  }
  return { steps, controllers, interrupts };
}
