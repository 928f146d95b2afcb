import { describe, expect, test } from 'vitest';
import type { ComConfig } from '../../../devicemodel/core/config.ts';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { PioBus } from '../../../devicemodel/core/io-bus.ts';
import { attachComPort, comResources, lpc } from '../../../devicemodel/hw/pci/lpc.ts';
import { pciUart } from '../../../devicemodel/hw/pci/uart.ts';
import { FakeCharBackend } from '../../support/fake-char-backend.ts';
import { FakeLine } from '../../support/fake-line.ts';
import { PciMachine } from '../../support/pci-machine.ts';

const com = (index: ComConfig['index'], more: Partial<ComConfig> = {}): ComConfig => ({ index, backend: '', ...more });

describe('PIRQ routing registers', () => {
  const power = () => new PciMachine().plug('0:1.0', lpc).plug('0:7.0', pciUart, {}).power();

  test('show the irq of every link in use, the others disabled', () => {
    const machine = power();
    expect(machine.cfgRead('0:1.0', 0x60)).toBe(0x80808003);
    expect(machine.cfgRead('0:1.0', 0x68)).toBe(0x80808080);
  });

  test('byte writes reach the link, and only its defined bits', () => {
    const machine = power();
    machine.cfgWrite('0:1.0', 0x61, 0x0a, 1);
    machine.cfgWrite('0:1.0', 0x6b, 0x7f, 1);
    expect([machine.pirq.read(2), machine.pirq.read(8)]).toEqual([0x0a, 0x0f]);
    expect([machine.cfgRead('0:1.0', 0x61, 1), machine.cfgRead('0:1.0', 0x6b, 1)]).toEqual([0x0a, 0x0f]);
  });

  test('wider writes are kept and route nothing', () => {
    const machine = power();
    machine.cfgWrite('0:1.0', 0x60, 0xffffffff);
    expect(machine.cfgRead('0:1.0', 0x60)).toBe(0xffffffff);
    expect(machine.pirq.read(1)).toBe(0x03);
  });

  test('64h to 67h are ordinary registers', () => {
    const machine = power();
    machine.cfgWrite('0:1.0', 0x64, 0x5a, 1);
    expect(machine.cfgRead('0:1.0', 0x64, 1)).toBe(0x5a);
  });
});

describe('serial ports', () => {
  const attach = (config: ComConfig) => {
    const pio = new PioBus();
    const irq = new FakeLine();
    const backend = new FakeCharBackend();
    return { pio, irq, backend, port: attachComPort(config, { pio, irq, backend }) };
  };

  test('are where PCs have them', () => {
    const of = (index: ComConfig['index']) => {
      const { port, irq } = comResources(com(index));
      return [port, irq];
    };
    expect(([1, 2, 3, 4, 5] as const).map(of)).toEqual([
      [0x3f8, 4],
      [0x2f8, 3],
      [0x3e8, 6],
      [0x2e8, 7],
      [0x9000, 10],
    ]);
    expect(comResources(com(5, { port: 0x9100, irq: 5 }))).toMatchObject({ port: 0x9100, irq: 5 });
  });

  test.each([{ port: 0 }, { port: 0xfff9 }, { port: 0x1_0000 }, { irq: 0 }, { irq: 16 }, { irq: 1.5 }])(
    '%o is refused',
    (more) => {
      expect(() => comResources(com(5, more))).toThrow(ConfigError);
    },
  );

  test('a word is two byte registers, a dword is refused', () => {
    const { pio, backend } = attach(com(1));
    pio.write(0x3ff, 1, 0x5a);
    expect(pio.read(0x3fe, 2)).toBe(0x5aa0); // SCR and MSR
    expect(pio.read(0x3ff, 2)).toBe(0xff5a);
    expect(pio.read(0x3f8, 4)).toBe(0xffffffff);
    pio.write(0x3f8, 4, 0x41414141);
    expect(backend.output).toBe('');
    pio.write(0x3f8, 2, 0x0041);
    expect(backend.output).toBe('A');
  });

  test('a port can be taken off the bus and put there once', () => {
    const { pio, port } = attach(com(2));
    const wires = { pio, irq: new FakeLine(), backend: undefined };
    expect(() => attachComPort(com(2), wires)).toThrow('-l com2: of its ports, 0x2f8 to 0x2ff, com2 has 0x2f8');
    port.registration.dispose();
    expect(pio.read(0x2f8, 1)).toBeUndefined();
    attachComPort(com(2), wires);
  });
});
