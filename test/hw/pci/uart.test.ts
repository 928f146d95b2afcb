import { expect, test } from 'vitest';
import { checkOptions, optionsFromText } from '../../../devicemodel/core/options.ts';
import { PciUartOptions, pciUart } from '../../../devicemodel/hw/pci/uart.ts';
import { PciMachine } from '../../support/pci-machine.ts';

const parse = (text: string) => checkOptions(PciUartOptions, optionsFromText(PciUartOptions, text));
const power = (text: string) => new PciMachine().plug('0:7.0', pciUart, parse(text)).power();

test('vuart_idx:N is the hypervisor’s, with its index and BARs', () => {
  const machine = power('vuart_idx:7');
  expect(machine.hsm.calls).toEqual([
    {
      name: 'CREATE_VDEV',
      vdev: {
        type: 'vuart',
        bdf: { bus: 0, device: 7, function: 0 },
        registersBar: 0x80000000,
        msixBar: 0x80001000,
        vuartIndex: 7,
      },
    },
  ]);
});

test('what the hypervisor passes on is read as 0xff in any width', () => {
  const machine = power('vuart_idx:7');
  expect([1, 2, 4].map((size) => machine.mmio.read(0x80000000, size as 1 | 2 | 4))).toEqual([0xff, 0xff, 0xff]);
  expect(machine.mmio.read(0x80001000, 4)).toBe(0xff);
});

test('a back end without a name is refused, no back end is not', () => {
  expect(() => pciUart.parseText?.('', true)).toThrow('the back end behind the comma is empty');
  expect([pciUart.parseText?.('', false), pciUart.parseText?.('stdio', true)]).toEqual([{}, { backend: 'stdio' }]);
});

test.each(['vuart_idx', 'vuart_idx:', 'vuart_idx:x', 'vuart_idx:65536', 'vuart_idx:-1', 'vuart_idx:1x', 'vuart_idx 1'])(
  '%s is refused and not taken for a file name',
  (text) => {
    expect(() => parse(text)).toThrow(/backend: must be vuart_idx:N/);
  },
);

test('a back end that does not exist is refused with the ones that do', () => {
  expect(() => parse('tcp:99999')).toThrow(/backend: .*port must be 0 to 65535/);
  expect(() => parse('sdtio')).toThrow(/backend: back end "sdtio"/);
});

test('any other text is a back end, which the port starts and stops', async () => {
  const machine = power('tcp:4555');
  await machine.host.start();
  expect(machine.backends.map((b) => [b.name, b.starts])).toEqual([['tcp:4555', 1]]);
  machine.outb(0x2000, 0x58);
  expect(machine.backends[0]?.output).toBe('X');
  await machine.host.stop();
  expect(machine.backends[0]?.stops).toBe(1);
});

test('without text nothing is connected', () => {
  const machine = power('');
  machine.outb(0x2000, 0x58);
  expect(machine.backends).toEqual([]);
  expect(machine.inb(0x2005)).toBe(0x60);
});

test('its interrupt is a level, low while something is pending', () => {
  const machine = power('stdio');
  machine.takeIrqs();
  machine.outb(0x2001, 0x02);
  machine.inb(0x2005);
  expect(machine.takeIrqs()).toEqual(['16 low']);
  machine.inb(0x2002);
  expect(machine.takeIrqs()).toEqual(['16 high']);
});

test('only bytes reach the registers', () => {
  const machine = power('stdio');
  machine.outb(0x2007, 0x33);
  expect(machine.pio.read(0x2007, 1)).toBe(0x33);
  expect(machine.pio.read(0x2004, 4)).toBe(0xff);
  machine.pio.write(0x2000, 2, 0x4141);
  expect(machine.backends[0]?.output).toBe('');
});
