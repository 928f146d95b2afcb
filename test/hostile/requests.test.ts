/** What may stand in a request slot: every port, bad configuration addresses, slots that make no sense. */
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { AccessCount, newPage } from '../../devicemodel/core/counters.ts';
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import { IOREQ_PAGE_BYTES, IoreqPage, IoreqState, IoreqType } from '../../devicemodel/core/ioreq-page.ts';
import { IoreqServer } from '../../devicemodel/core/ioreq-server.ts';
import { LogLevel } from '../../devicemodel/core/log.ts';
import { type FakePc, makePc } from '../support/fake-pc.ts';

const VCPUS = 2;
/** struct acrn_io_request, in 32-bit words. */
const Word = {
  ...{ type: 0, direction: 16, addressLow: 18, addressHigh: 19, size: 20, valueLow: 22, valueHigh: 23 },
  ...{ pciBus: 23, pciDevice: 24, pciFunction: 25, pciRegister: 26, kernelHandled: 33, processed: 34 },
} as const;
const SLOT_WORDS = 64;
/** Ports by which the machine resets or ends. */
const POWER_PORTS: ReadonlySet<number> = new Set([0x64, 0x404, 0xcf9]);

/** The buses of a running PC, asked by request slots of our own. */
class Bench {
  readonly pc: FakePc;
  readonly words = new Int32Array(IOREQ_PAGE_BYTES / 4);
  readonly page = new IoreqPage(new Uint8Array(this.words.buffer));
  readonly notified: number[] = [];
  readonly counts = newPage('accesses');
  #server: IoreqServer | undefined;
  #end: Promise<unknown> = Promise.resolve();

  constructor() {
    this.pc = makePc(['--debugexit', '-s', '5,dummy', '-s', '6,wdt-i6300esb'], () => {}, { logLevel: LogLevel.info });
  }

  async start(): Promise<void> {
    const started = new Promise((resolve) => this.pc.vm.once('started', () => resolve(undefined)));
    this.#end = this.pc.vm.run();
    await started;
    const { pio, mmio, log } = this.pc.parts;
    const pci = this.pc.vm.board?.pciConfig;
    if (pci === undefined) throw new TypeError('no board');
    const notifyIoreqDone = (vcpu: number) => {
      this.notified.push(vcpu);
      this.page.setState(vcpu, IoreqState.Complete);
    };
    const hsm = { ioreqPage: this.page.bytes, notifyIoreqDone } as unknown as Hsm;
    this.#server = new IoreqServer({ hsm, pio, mmio, pci, vcpuCount: VCPUS, counts: this.counts, log });
  }

  async stop(): Promise<void> {
    this.pc.vm.power.request({ kind: 'poweroff', reason: 'the end of the test' });
    await this.#end;
    await this.pc.dispose();
  }

  /** Fill slot `vcpu` word by word, as a request that waits, and have it served. @returns the low word of the answer. */
  ask(fields: Partial<Record<keyof typeof Word, number>>, vcpu = 0): number {
    const at = vcpu * SLOT_WORDS;
    this.words.fill(0, at, at + SLOT_WORDS);
    for (const [name, value] of Object.entries({ processed: IoreqState.Processing, ...fields })) {
      this.words[at + Word[name as keyof typeof Word]] = value;
    }
    this.#server?.serve();
    return this.page.value(vcpu);
  }

  serve(): number {
    return this.#server?.serve() ?? 0;
  }
}

let bench: Bench;
beforeEach(async () => {
  bench = new Bench();
  await bench.start();
});
afterEach(() => bench.stop());

describe('ports (§4.3 group 5)', () => {
  test('every port from 0 to 0xffff, read and written by 1, 2 and 4 bytes: answered, and the log stays short', () => {
    for (const size of [1, 2, 4]) {
      for (let port = 0; port < 0x1_0000; port++) {
        const isFree = bench.pc.parts.pio.findOverlap(port, 1) === undefined;
        const value = bench.ask({ type: IoreqType.PortIo, addressLow: port, size });
        if (isFree && value !== (size === 4 ? 0xffff_ffff : 2 ** (8 * size) - 1)) {
          // What nobody claims reads as all ones of its width; over the end of the ports as all ones.
          expect([port, size, value]).toEqual([port, size, 0xffff_ffff]);
        }
        if (size < 4 && value >= 2 ** (8 * size)) expect([port + size > 0x1_0000, value]).toEqual([true, 0xffff_ffff]);
        if (!POWER_PORTS.has(port)) {
          bench.ask({ type: IoreqType.PortIo, addressLow: port, size, direction: 1, valueLow: 0x55 });
        }
      }
    }
    expect(bench.pc.vm.state).not.toBe('created');
    expect(bench.notified.length).toBe(3 * (2 * 0x1_0000 - POWER_PORTS.size));
    expect(bench.pc.log.length).toBeLessThan(50);
  });

  test.each([0xcf9, 0x404, 0xb2, 0x64, 0x70])('port %i by odd sizes does nothing and answers', (port) => {
    for (const size of [0, 3, 5, 8, 16, 0xffff_ffff]) {
      expect(bench.ask({ type: IoreqType.PortIo, addressLow: port, size })).toBe(0xffff_ffff);
      bench.ask({ type: IoreqType.PortIo, addressLow: port, size, direction: 1, valueLow: 0x3fff_ffff });
    }
    expect(bench.pc.vm.state).toBe('running');
  });

  test('a port beyond 16 bits is nobody’s', () => {
    for (const addressLow of [0x1_03f8, -1]) {
      expect(bench.ask({ type: IoreqType.PortIo, addressLow, size: 1 })).toBe(0xffff_ffff);
    }
    expect(bench.ask({ type: IoreqType.PortIo, addressLow: 0x3f8, addressHigh: 1, size: 1 })).toBe(0xffff_ffff);
    expect(bench.ask({ type: IoreqType.PortIo, addressLow: 0xffff, size: 4 })).toBe(0xffff_ffff);
  });
});

describe('configuration space (§4.3 group 6)', () => {
  const at = { pciBus: 0, pciDevice: 5, pciFunction: 0, type: IoreqType.PciConfig } as const;

  test.each([
    ['bus 256', { pciBus: 256, pciRegister: 0, size: 4 }],
    ['a negative bus', { pciBus: -1, pciRegister: 0, size: 4 }],
    ['device 32', { pciDevice: 32, pciRegister: 0, size: 4 }],
    ['a negative device', { pciDevice: -5, pciRegister: 0, size: 4 }],
    ['function 8', { pciFunction: 8, pciRegister: 0, size: 4 }],
    ['a register beyond 4096', { pciRegister: 4096, size: 4 }],
    ['a register over the end of 4096', { pciRegister: 4094, size: 4 }],
    ['a negative register', { pciRegister: -4, size: 4 }],
    ['register 2^31', { pciRegister: -0x8000_0000, size: 4 }],
    ['3 bytes', { pciRegister: 0, size: 3 }],
    ['8 bytes', { pciRegister: 0, size: 8 }],
    ['no bytes', { pciRegister: 0, size: 0 }],
    ['an empty slot', { pciDevice: 20, pciRegister: 0, size: 4 }],
  ] as const)('%s reads as all ones, and a write does nothing', (_name, fields) => {
    const before = bench.ask({ ...at, pciRegister: 0, size: 4 });
    expect(bench.ask({ ...at, ...fields })).toBe(0xffff_ffff);
    bench.ask({ ...at, ...fields, direction: 1, valueLow: 0x1234_5678 });
    expect(bench.ask({ ...at, pciRegister: 0, size: 4 })).toBe(before);
  });

  test('the walk along the capabilities ends, whatever a guest writes into them', () => {
    for (const pciDevice of [0, 1, 5, 6]) {
      const read = (pciRegister: number) => bench.ask({ ...at, pciDevice, pciRegister, size: 1 });
      for (let pciRegister = 0x34; pciRegister < 0x100; pciRegister++) {
        bench.ask({ ...at, pciDevice, pciRegister, size: 1, direction: 1, valueLow: 0x40 });
      }
      // The pointer bytes of the chain itself are read-only: it leads to its end.
      let next = 0x40;
      let hops = 0;
      for (; next >= 0x40 && hops < 100 && [0x01, 0x05, 0x09, 0x10, 0x11].includes(read(next)); hops++) {
        next = read(next + 1);
      }
      expect(hops).toBeLessThan(48);
    }
  });
});

describe('slots (§4.3 group 7)', () => {
  const ALL_ONES = 0xffff_ffff;

  test.each([IoreqType.WriteProtect, 4, 0x7fff_ffff, -1])('type %i is completed as if nobody answered', (type) => {
    expect(bench.ask({ type, size: 4 })).toBe(ALL_ONES);
    expect(bench.notified).toEqual([0]);
    expect(bench.page.state(0)).toBe(IoreqState.Complete);
    expect(bench.counts[AccessCount.unknown]).toBe(1);
  });

  test.each([0, 3, 5, 7, 9, 16, 64, -1])('memory by %i bytes is completed', (size) => {
    expect(bench.ask({ type: IoreqType.Mmio, addressLow: 0xfed0_0000, size })).toBe(ALL_ONES);
    bench.ask({ type: IoreqType.Mmio, addressLow: 0xfed0_0000, size, direction: 1, valueLow: ALL_ONES });
    expect(bench.notified.length).toBe(2);
  });

  test.each([2, -1, 0x100])('direction %i is a read: nothing is written', (direction) => {
    const before = bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1 });
    bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1, direction, valueLow: before ^ 0xff });
    expect(bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1 })).toBe(before);
  });

  test.each([IoreqState.Pending, IoreqState.Complete, IoreqState.Free, 4, -1])(
    'state %i is not served',
    (processed) => {
      bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1, processed });
      expect(bench.notified).toEqual([]);
      expect(bench.page.state(0)).toBe(processed);
    },
  );

  test('a slot the kernel answers is left alone', () => {
    bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1, kernelHandled: 1 });
    expect(bench.notified).toEqual([]);
  });

  test('a vCPU that was not created is never told that it is done (HC_NOTIFY_REQUEST_FINISH, asa 1.5)', () => {
    bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1 }, VCPUS);
    bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1 }, 15);
    expect(bench.notified).toEqual([]);
    bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1 }, VCPUS - 1);
    expect(bench.notified).toEqual([VCPUS - 1]);
  });

  test('a slot that changes while another is served is taken as it is then, once', () => {
    const { mmio } = bench.pc.parts;
    const registration = mmio.register(
      { base: 0xf000_0000, size: 0x1000, name: 'flips the other slot' },
      {
        read: () => {
          // What the hypervisor might do behind our back: the second request is withdrawn, then another one made.
          bench.page.setState(1, IoreqState.Free);
          bench.words[SLOT_WORDS + Word.type] = -1;
          return 1;
        },
        write: () => {},
      },
    );
    bench.words.fill(0);
    for (const slot of [0, SLOT_WORDS]) {
      bench.words[slot + Word.type] = IoreqType.Mmio;
      bench.words[slot + Word.addressLow] = 0xf000_0000;
      bench.words[slot + Word.size] = 4;
      bench.words[slot + Word.processed] = IoreqState.Processing;
    }
    expect(bench.serve()).toBe(1);
    expect(bench.notified).toEqual([0]);
    registration.dispose();
  });
});

describe('indexes of platform devices (§4.3 group 10)', () => {
  test('every RTC index, HPET register and UART register, far beyond what there is', () => {
    for (let index = 0; index < 0x100; index++) {
      bench.ask({ type: IoreqType.PortIo, addressLow: 0x70, size: 1, direction: 1, valueLow: index });
      expect(bench.ask({ type: IoreqType.PortIo, addressLow: 0x71, size: 1 })).toBeLessThan(0x100);
    }
    for (let offset = 0; offset < 0x500; offset++) {
      for (const size of [1, 2, 4, 8]) {
        bench.ask({ type: IoreqType.Mmio, addressLow: 0xfed0_0000 + offset, size });
        bench.ask({ type: IoreqType.Mmio, addressLow: 0xfed0_0000 + offset, size, direction: 1, valueLow: -1 });
      }
    }
    for (let byte = 0; byte < 10_000; byte++) {
      bench.ask({ type: IoreqType.PortIo, addressLow: 0x3f8, size: 1, direction: 1, valueLow: byte });
    }
    expect(bench.pc.log.length).toBeLessThan(50);
  });
});
