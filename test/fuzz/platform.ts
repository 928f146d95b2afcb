/**
 * A hostile guest of the whole PC board: every port, memory-mapped register and configuration space, by request slots
 * that may hold anything. Resets, S3 and power-off by the guest are followed by the next life. Nothing may throw, reads
 * are within width, slots that wait for nobody are left alone, and the log stays short.
 */
import type { Hsm } from '../../devicemodel/core/hsm/hsm.ts';
import {
  IOREQ_PAGE_BYTES,
  IOREQ_SLOT_BYTES,
  IOREQ_SLOTS,
  IoreqPage,
  IoreqState,
  IoreqType,
} from '../../devicemodel/core/ioreq-page.ts';
import { IoreqServer } from '../../devicemodel/core/ioreq-server.ts';
import { LogLevel } from '../../devicemodel/core/log.ts';
import { type FakePc, makePc } from '../support/fake-pc.ts';
import { Random } from './random.ts';

/** Requests between two turns of the event loop. */
const BATCH = 256;
/** By these a guest resets or switches off; each such life costs milliseconds. */
const POWER_PORTS: ReadonlySet<number> = new Set([0x64, 0x404, 0xcf9]);
const POWER_RARITY = 500;
const PORT_COUNT = 0x1_0000;
const MAX_CALL_MS = 2000;
/** Lines a guest provoked beyond those that tell of a life or a reset, a second. */
const MAX_LINES_A_SECOND = 100;
const LIFE_LINE = /: (system reset|full-reset|poweroff|suspend): |system reset: /;
/** Where memory-mapped registers are, and the space between them. */
const MMIO_HINTS = [
  0xa_0000, 0xb_8000, 0xfed0_0000, 0xe000_0000, 0x8000_0000, 0xc000_0000, 0xfec0_0000, 0xfee0_0000, 0x1_0000_0000,
];

/** Words of a slot (struct acrn_io_request), beside what IoreqPage fills. */
const Word = {
  type: 0,
  direction: 16,
  addressLow: 18,
  addressHigh: 19,
  size: 20,
  valueLow: 22,
  valueHigh: 23,
} as const;
const PciWord = { bus: 23, device: 24, function: 25, register: 26 } as const;
const StateWord = { kernelHandled: 33, processed: 34 } as const;

export interface PlatformResult {
  readonly steps: number;
  readonly lives: number;
  readonly lines: number;
}

const argv = [
  ...['--debugexit', '-s', '3,wdt-i6300esb', '-s', '5,ivshmem,hv:/fuzz,2', '-s', '7,uart,vuart_idx:1'],
  ...['-s', '8,virtio-rnd', '-s', '9,virtio-blk,nodisk', '-s', '10,uart,null'],
  ...['-s', '11,virtio-console,@file:port=/dev/null', '-s', '12,virtio-net,tap0', '-s', '13,dummy'],
  ...['-s', '14,virtio-gpu,geometry=640x480', '-s', '15,xhci,tablet'],
];

class Slots {
  readonly #random: Random;
  readonly #words = new Int32Array(IOREQ_PAGE_BYTES / 4);
  readonly #page = new IoreqPage(new Uint8Array(this.#words.buffer));
  readonly #before = new Int32Array(IOREQ_PAGE_BYTES / 4);
  #ports: number[] = [];
  #server: IoreqServer | undefined;

  constructor(random: Random) {
    this.#random = random;
  }

  /** The machine has a new board. */
  attach({ vm, parts }: FakePc): void {
    const { pio, mmio, log } = parts;
    const notifyIoreqDone = (vcpu: number) => this.#page.setState(vcpu, IoreqState.Complete);
    const hsm = { ioreqPage: this.#page.bytes, notifyIoreqDone } as unknown as Hsm;
    const pci = vm.board?.pciConfig;
    if (pci === undefined) throw new TypeError('there is no board');
    this.#server = new IoreqServer({ hsm, pio, mmio, pci, vcpuCount: IOREQ_SLOTS, log });
    this.#ports = [];
    for (let port = 0; port < PORT_COUNT; port++) if (pio.findOverlap(port, 1) !== undefined) this.#ports.push(port);
  }

  /** Fill some slots with anything and have them served. @returns how many. */
  step(): number {
    const random = this.#random;
    const count = random.oneIn(8) ? 1 + random.below(IOREQ_SLOTS) : 1;
    for (let n = 0; n < count; n++) this.#fill(n);
    this.#before.set(this.#words);
    const from = performance.now();
    this.#server?.serve();
    if (performance.now() - from > MAX_CALL_MS) throw new Error('one request took too long');
    for (let n = 0; n < count; n++) this.#check(n);
    return count;
  }

  #fill(slot: number): void {
    const random = this.#random;
    const at = (slot * IOREQ_SLOT_BYTES) / 4;
    const words = this.#words;
    const type = random.oneIn(16) ? random.value() : random.pick([0, 0, 0, 1, 1, 2]);
    words[at + Word.type] = type;
    words[at + Word.direction] = random.oneIn(32) ? random.value() : random.below(2);
    words[at + Word.size] = random.oneIn(4) ? random.pick([0, 3, 8, 16, 8, random.value()]) : random.pick([1, 1, 2, 4]);
    words[at + Word.size + 1] = random.oneIn(32) ? random.value() : 0;
    words[at + Word.addressHigh] = 0;
    words[at + Word.valueHigh] = random.value();
    if (type === IoreqType.PortIo) words[at + Word.addressLow] = this.#port();
    else if (type === IoreqType.Mmio) this.#setAddress(at);
    else {
      words[at + PciWord.bus] = random.oneIn(8) ? random.value() : 0;
      words[at + PciWord.device] = random.oneIn(16) ? random.value() : random.below(16);
      words[at + PciWord.function] = random.oneIn(8) ? random.value() : 0;
      words[at + PciWord.register] = random.oneIn(16) ? random.value() : random.below(random.oneIn(8) ? 4100 : 0x60);
    }
    words[at + Word.valueLow] = random.value();
    words[at + StateWord.kernelHandled] = random.oneIn(32) ? random.value() : 0;
    words[at + StateWord.processed] = random.oneIn(16) ? random.value() : IoreqState.Processing;
  }

  #port(): number {
    const random = this.#random;
    const port = random.oneIn(16) ? random.value() : random.pick(this.#ports);
    return POWER_PORTS.has(port & 0xffff) && !random.oneIn(POWER_RARITY) ? 0x80 : port;
  }

  #setAddress(at: number): void {
    const random = this.#random;
    const offset = random.oneIn(8) ? random.below(0x1000_0000) : random.below(0x420);
    const address = random.oneIn(16) ? random.wide() : random.pick(MMIO_HINTS) + offset;
    this.#words[at + Word.addressLow] = address % 0x1_0000_0000;
    this.#words[at + Word.addressHigh] = Math.floor(address / 0x1_0000_0000);
  }

  #check(slot: number): void {
    const at = (slot * IOREQ_SLOT_BYTES) / 4;
    const before = (word: number) => this.#before[at + word] as number;
    const now = (word: number) => (this.#words[at + word] as number) >>> 0;
    const isOurs = before(StateWord.processed) === IoreqState.Processing && before(StateWord.kernelHandled) === 0;
    if (!isOurs) {
      for (let word = 0; word < IOREQ_SLOT_BYTES / 4; word++) {
        if (before(word) !== this.#words[at + word]) throw new Error('a slot that waits for nobody was changed');
      }
      return;
    }
    if (now(StateWord.processed) !== IoreqState.Complete) throw new Error('a request was not completed');
    const size = before(Word.size);
    const isRead = before(Word.direction) !== 1;
    if (isRead && before(Word.type) <= IoreqType.PciConfig && (size === 1 || size === 2)) {
      const isKnown = before(Word.type) >= 0;
      // What is no port and no register reads as all ones of any width.
      const value = now(Word.valueLow);
      if (isKnown && value !== 0xffff_ffff && value >= 2 ** (8 * size)) {
        throw new Error(`a read of ${size} bytes, type ${before(Word.type)}, gave ${value}`);
      }
    }
  }
}

/** @throws Error with seed and step */
export async function fuzzPlatform(seed: number, steps: number): Promise<PlatformResult> {
  const slots = new Slots(new Random(seed));
  let done = 0;
  let lives = 0;
  let failure: unknown;
  let isOver = false;
  /** A VM is run once: one that the guest powered off gives way to the next. */
  const build = (): FakePc => {
    const made: FakePc = makePc(
      argv,
      () => {
        lives++;
        // Lives gone by are not needed any more.
        made.lives.splice(0, made.lives.length - 1);
      },
      { logLevel: LogLevel.info },
    );
    made.vm.on('state', (state) => {
      if (state === 'suspended') setImmediate(() => made.vm.wake());
    });
    made.vm.on('started', () => slots.attach(made));
    return made;
  };
  let pc = build();
  let startMs = performance.now();
  let lines = 0;
  /** What a guest makes a VM say is rationed by time, from its start on. */
  const leave = async () => {
    await pc.dispose();
    const seconds = 1 + (performance.now() - startMs) / 1000;
    const said = pc.log.filter((line) => !LIFE_LINE.test(line)).length;
    lines += said;
    if (said > MAX_LINES_A_SECOND * seconds) failure ??= new Error(`${said} log lines in ${seconds.toFixed(1)} s`);
    if (pc.ramOut !== 0) failure ??= new Error('guest RAM was not given back');
  };
  const end = () => pc.vm.power.request({ kind: 'poweroff', reason: 'the end of the run' });
  const pump = () => {
    if (isOver) return;
    setImmediate(pump);
    if (failure !== undefined || done >= steps) {
      end();
      return;
    }
    for (const hsm of pc.lives) (hsm.calls as unknown[]).length = 0;
    try {
      for (let i = 0; i < BATCH && pc.vm.state === 'running'; i++) done += slots.step();
    } catch (error) {
      failure = error;
    }
  };
  setImmediate(pump);
  try {
    for (;;) {
      await pc.vm.run();
      if (done >= steps || failure !== undefined) break;
      await leave();
      pc = build();
      startMs = performance.now();
    }
  } catch (error) {
    failure ??= error;
  }
  isOver = true;
  await leave();
  if (failure !== undefined) {
    const { message } = failure as Error;
    throw new Error(`platform: seed ${seed}, step ${done} of ${steps}: ${message}`, { cause: failure });
  }
  return { steps: done, lives, lines };
}
