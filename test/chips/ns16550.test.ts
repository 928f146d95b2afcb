import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { Ns16550 } from '../../devicemodel/chips/ns16550.ts';
import { applyAccess, busAccesses } from '../support/bus-access.ts';
import { FakeCharBackend } from '../support/fake-char-backend.ts';
import { FakeLine } from '../support/fake-line.ts';

/** PC16550D, "Summary of Registers". */
const Reg = { RbrThr: 0, Ier: 1, IirFcr: 2, Lcr: 3, Mcr: 4, Lsr: 5, Msr: 6, Scr: 7 } as const;
const FCR_ENABLE = 0x01;
const FCR_RESET_RX = 0x02;
const MCR_LOOP = 0x10;
const LSR_IDLE = 0x60;
const LSR_DATA = 0x01;
const LSR_OVERRUN = 0x02;

async function makeUart() {
  const irq = new FakeLine(4);
  const backend = new FakeCharBackend();
  const uart = new Ns16550({ irq, backend });
  await uart.start();
  irq.clear();
  return { uart, irq, backend };
}

const registers = [0, 1, 2, 3, 4, 5, 6, 7];

test('at power-on the transmitter is empty, the modem present and no interrupt pending', async () => {
  const { uart } = await makeUart();
  expect(uart.read(Reg.Lsr)).toBe(LSR_IDLE);
  expect(uart.read(Reg.Msr)).toBe(0xa0); // DCD and DSR, no deltas
  expect(uart.read(Reg.IirFcr)).toBe(0x01);
  expect(uart.read(Reg.RbrThr)).toBe(0xff);
});

test('the divisor latch holds 16 bits and starts at 9600 baud', async () => {
  const { uart } = await makeUart();
  uart.write(Reg.Lcr, 1, 0x80);
  expect(uart.read(0) | (uart.read(1) << 8)).toBe(12); // 1.8432 MHz / 16 / 9600
  uart.write(0, 1, 0x80);
  uart.write(1, 1, 0x25);
  expect(uart.read(0) | (uart.read(1) << 8)).toBe(0x2580);
  uart.write(Reg.Lcr, 1, 0x03);
  expect(uart.read(Reg.Ier)).toBe(0);
});

test('writing THR sends the byte, with ETBEI set the line pulses once for each', async () => {
  const { uart, irq, backend } = await makeUart();
  uart.write(Reg.Ier, 1, 0x02);
  irq.clear();
  uart.write(Reg.RbrThr, 1, 0x48);
  uart.write(Reg.RbrThr, 1, 0x69);
  expect(backend.output).toBe('Hi');
  expect(irq.edges).toBe(2);
});

test('enabling ETBEI while THR is empty raises the interrupt, reading IIR takes it away', async () => {
  const { uart, irq } = await makeUart();
  uart.write(Reg.Ier, 1, 0x02);
  expect(irq.asserted).toBe(true);
  expect(uart.read(Reg.IirFcr)).toBe(0x02);
  expect(irq.asserted).toBe(false);
  expect(uart.read(Reg.IirFcr)).toBe(0x01);
});

test('received bytes come in order and keep the line asserted until the last is read', async () => {
  const { uart, irq, backend } = await makeUart();
  uart.write(Reg.IirFcr, 1, FCR_ENABLE);
  uart.write(Reg.Ier, 1, 0x01);
  backend.type('ab');
  expect(irq.asserted).toBe(true);
  expect(uart.read(Reg.IirFcr)).toBe(0xcc);
  expect(uart.read(Reg.Lsr)).toBe(LSR_IDLE | LSR_DATA);
  expect(uart.read(Reg.RbrThr)).toBe(0x61);
  expect(irq.asserted).toBe(true);
  expect(uart.read(Reg.RbrThr)).toBe(0x62);
  expect(irq.asserted).toBe(false);
  expect(uart.read(Reg.Lsr)).toBe(LSR_IDLE);
});

test('without FIFO one byte is taken at a time and none is lost', async () => {
  const { uart, backend } = await makeUart();
  backend.type('xyz');
  expect(backend.waiting).toBe(2);
  expect([0, 1, 2].map(() => String.fromCharCode(uart.read(Reg.RbrThr))).join('')).toBe('xyz');
  expect(uart.read(Reg.Lsr) & LSR_DATA).toBe(0);
});

test('a flood of input waits at the back end and arrives complete', async () => {
  const { uart, backend } = await makeUart();
  uart.write(Reg.IirFcr, 1, FCR_ENABLE);
  const text = 'x'.repeat(5000);
  backend.type(text);
  expect(backend.waiting).toBeGreaterThan(4000);
  let received = '';
  while ((uart.read(Reg.Lsr) & LSR_DATA) !== 0) received += String.fromCharCode(uart.read(Reg.RbrThr));
  expect(received).toBe(text);
});

test('a receiver reset empties the FIFO', async () => {
  const { uart, backend } = await makeUart();
  uart.write(Reg.IirFcr, 1, FCR_ENABLE);
  backend.type('old');
  uart.write(Reg.IirFcr, 1, FCR_ENABLE | FCR_RESET_RX);
  expect(uart.read(Reg.Lsr) & LSR_DATA).toBe(0);
});

test('FIFO bits without the enable bit change nothing and read as a 16450', async () => {
  const { uart } = await makeUart();
  uart.write(Reg.IirFcr, 1, 0xc0);
  expect(uart.read(Reg.IirFcr)).toBe(0x01);
});

test('in loopback bytes come back, the outside is cut off and MCR shows in MSR', async () => {
  const { uart, backend } = await makeUart();
  uart.write(Reg.Mcr, 1, MCR_LOOP | 0x0b); // DTR, RTS, OUT2
  uart.write(Reg.RbrThr, 1, 0x41);
  expect(uart.read(Reg.RbrThr)).toBe(0x41);
  expect(backend.output).toBe('');
  backend.type('lost');
  expect(uart.read(Reg.Lsr) & LSR_DATA).toBe(0);
  expect(uart.read(Reg.Msr)).toBe(0xb1); // DCD, DSR, CTS; CTS changed
  expect(uart.read(Reg.Msr)).toBe(0xb0);
});

test('the trailing edge of RI is reported, its leading edge is not', async () => {
  const { uart } = await makeUart();
  uart.write(Reg.Mcr, 1, MCR_LOOP | 0x04);
  expect(uart.read(Reg.Msr) & 0x44).toBe(0x40);
  uart.write(Reg.Mcr, 1, MCR_LOOP);
  expect(uart.read(Reg.Msr) & 0x44).toBe(0x04);
});

test('a byte too many in loopback is an overrun, reported once and first', async () => {
  const { uart } = await makeUart();
  uart.write(Reg.Ier, 1, 0x07);
  uart.write(Reg.Mcr, 1, MCR_LOOP);
  uart.write(Reg.RbrThr, 1, 1);
  uart.write(Reg.RbrThr, 1, 2); // no FIFO: one byte fits
  expect(uart.read(Reg.IirFcr)).toBe(0x06);
  expect(uart.read(Reg.Lsr) & LSR_OVERRUN).toBe(LSR_OVERRUN);
  expect(uart.read(Reg.Lsr) & LSR_OVERRUN).toBe(0);
  expect(uart.read(Reg.IirFcr)).toBe(0x0c);
  expect(uart.read(Reg.RbrThr)).toBe(1);
});

test('a modem status change interrupts last and is cleared by reading MSR', async () => {
  const { uart, irq } = await makeUart();
  uart.write(Reg.Ier, 1, 0x08);
  uart.write(Reg.Mcr, 1, MCR_LOOP);
  expect(uart.read(Reg.IirFcr)).toBe(0x00);
  uart.read(Reg.Msr);
  expect(irq.asserted).toBe(false);
});

test('start and stop are handed to the back end', async () => {
  const { uart, backend } = await makeUart();
  await uart.stop();
  expect([backend.starts, backend.stops, backend.onReadable]).toEqual([1, 1, undefined]);
});

test('any access sequence stays within width, and reset equals fresh', async () => {
  await fc.assert(
    fc.asyncProperty(busAccesses(10), fc.string({ maxLength: 20 }), async (accesses, typed) => {
      const { uart, irq, backend } = await makeUart();
      backend.type(typed);
      for (const access of accesses) applyAccess(uart, access);
      uart.reset();
      while (backend.read() >= 0);
      const fresh = await makeUart();
      expect(registers.map((r) => uart.read(r))).toEqual(registers.map((r) => fresh.uart.read(r)));
      uart.write(Reg.Lcr, 1, 0x80);
      fresh.uart.write(Reg.Lcr, 1, 0x80);
      expect(registers.map((r) => uart.read(r))).toEqual(registers.map((r) => fresh.uart.read(r)));
      expect(irq.asserted).toBe(false);
    }),
  );
});

/** A back end that can be full, and lose input. */
class FullBackend extends FakeCharBackend {
  hasRoom = true;
  onRoom: (() => void) | undefined;
  overruns = 0;
  takeOverrun(): boolean {
    return this.overruns-- > 0;
  }
}

test('while the back end has no room the transmitter is not empty, and no interrupt says so', async () => {
  const irq = new FakeLine(4);
  const backend = new FullBackend();
  const uart = new Ns16550({ irq, backend });
  await uart.start();
  uart.write(Reg.Ier, 1, 0x02);
  expect(uart.read(Reg.IirFcr)).toBe(0x02);
  backend.hasRoom = false;
  uart.write(Reg.RbrThr, 1, 0x41);
  expect([uart.read(Reg.Lsr), irq.asserted]).toEqual([0, false]);
  uart.write(Reg.Ier, 1, 0);
  uart.write(Reg.Ier, 1, 0x02);
  expect(irq.asserted).toBe(false);
  uart.write(Reg.Mcr, 1, MCR_LOOP); // nothing goes to the back end now
  expect(uart.read(Reg.Lsr)).toBe(LSR_IDLE);
  uart.write(Reg.Mcr, 1, 0);
  backend.hasRoom = true;
  backend.onRoom?.();
  expect([uart.read(Reg.Lsr), irq.asserted]).toEqual([LSR_IDLE, true]);
  await uart.stop();
  expect(backend.onRoom).toBeUndefined();
});

test('input the back end lost is an overrun', async () => {
  const backend = new FullBackend();
  const uart = new Ns16550({ irq: new FakeLine(4), backend });
  await uart.start();
  backend.overruns = 1;
  backend.type('x');
  expect(uart.read(Reg.Lsr) & LSR_OVERRUN).toBe(LSR_OVERRUN);
  expect(uart.read(Reg.Lsr) & LSR_OVERRUN).toBe(0);
});

test('a message is sent for a new reason or cause, a line is told after every access', async () => {
  for (const isMessageSignalled of [false, true]) {
    const told: boolean[] = [];
    const irq = { gsi: 0, set: (asserted: boolean) => void told.push(asserted) };
    const backend = new FakeCharBackend();
    const uart = new Ns16550({ irq, backend, isMessageSignalled });
    await uart.start();
    uart.write(Reg.Ier, 1, 0x01);
    told.length = 0;
    backend.type('ab');
    uart.read(Reg.Lsr);
    uart.read(Reg.Scr);
    backend.type('c');
    expect(told).toEqual(isMessageSignalled ? [true, true] : [true, true, true, true]);
  }
});
