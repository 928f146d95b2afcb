/** --acpidev_pt: what its text means, alone and beside others, and one clear line for what means nothing. */
import { describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../../../cmd/cli.ts';
import { ConfigError } from '../../../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../../../devicemodel/hw/registry.ts';

/** Devices that these --acpidev_pt values make. */
function devices(...texts: string[]): unknown[] {
  const argv = texts.flatMap((text) => ['--acpidev_pt', text]);
  const order = parseCommandLine([...argv, 'vm'], pciDrivers) as VmOrder;
  return order.config.platform.map(({ options }) => options);
}

describe('a TPM', () => {
  test.each([
    ['MSFT0101', { hid: 'MSFT0101', uid: 0, resources: [] }],
    ['MSFT0101,00', { hid: 'MSFT0101', uid: 0, resources: [] }],
    ['STM7364,1', { hid: 'STM7364', uid: 1, resources: [] }],
    ['MSFT0101,uid=0', { hid: 'MSFT0101', uid: 0, resources: [] }],
    // Release 3.3 keeps the file's name and makes nothing of it.
    ['MSFT0101,dsdt=/x', { hid: 'MSFT0101', uid: 0, resources: [] }],
  ])('%s', (text, options) => {
    expect(devices(text)).toEqual([options]);
  });
  test('two of them', () => {
    expect(() => devices('MSFT0101', 'MSFT0101,1')).toThrow('--acpidev_pt: a VM has one TPM');
  });
});

describe('a device by its resources', () => {
  test('options of one device are one device', () => {
    expect(
      devices(
        'INTC1055,uid=0,type=memory,min=0xfd6e0000,len=0x10000',
        'PNP0501,uid=19,type=io_port,min=0x2f8,len=8',
        'INTC1055,uid=0,type=memory,min=fd6d0000,len=1001',
        'PNP0501,uid=19,type=irq,irq=5',
        'INTC1055,uid=0,type=irq,irq=14,polarity=3,trigger_mode=3',
      ),
    ).toEqual([
      {
        hid: 'INTC1055',
        uid: 0,
        resources: [
          { type: 'memory', base: 0xfd6e0000, sizeBytes: 0x10000 },
          { type: 'memory', base: 0xfd6d0000, sizeBytes: 0x2000 },
          { type: 'irq', irq: 14, polarity: 3, triggerMode: 3 },
        ],
      },
      {
        hid: 'PNP0501',
        uid: 19,
        resources: [
          { type: 'io_port', port: 0x2f8, sizeBytes: 8 },
          { type: 'irq', irq: 5, polarity: 0, triggerMode: 0 },
        ],
      },
    ]);
  });
  test('another uid is another device', () => {
    expect(devices('PNP0501,uid=1,type=irq,irq=5', 'PNP0501,type=irq,irq=6')).toHaveLength(2);
  });
  test('at most eight resources and eight devices', () => {
    const one = (i: number) => `PNP0501,type=io_port,min=${(0x100 * (i + 1)).toString(16)},len=8`;
    expect(devices(...Array.from({ length: 8 }, (_, i) => one(i)))).toHaveLength(1);
    expect(() => devices(...Array.from({ length: 9 }, (_, i) => one(i)))).toThrow('at most 8 resources');
    const each = (i: number) => `PNP0501,uid=${i},type=irq,irq=5`;
    expect(() => devices(...Array.from({ length: 9 }, (_, i) => each(i)))).toThrow('at most 8 devices');
  });
  test('of no known kind', () => {
    expect(() => devices('INT33D1,type=irq,irq=5')).toThrow('INT33D1 cannot be passed by its resources');
  });
});

test.each([
  ['', '"" is not an ACPI device id'],
  ['MSFT', '"MSFT" is not an ACPI device id'],
  ['../../etc', '"../../etc" is not an ACPI device id'],
  ['MSFT0101,x', 'uid=x is not a number from 0 to 255'],
  ['MSFT0101,1,2', '"2" is not one of its options'],
  ['MSFT0101,min=1000', 'min= needs type= before it'],
  ['INTC1055,type=dma', 'type=dma is not memory, io_port or irq'],
  ['INTC1055,type=constructor', 'type=constructor is not memory, io_port or irq'],
  ['INTC1055,type=memory,type=irq', 'type= is given twice'],
  ['INTC1055,type=memory,min=0xfd6e0000', 'len= is not a hexadecimal number'],
  ['INTC1055,type=memory,min=0xfd6e0010,len=1000', 'min=0xfd6e0010 is not the address of a page'],
  ['INTC1055,type=memory,min=0xfd6e0000,len=0', 'len= must not be 0'],
  ['INTC1055,type=memory,min=0xfd6e0000,len=1000,irq=4', 'irq= does not go with type=memory'],
  ['PNP0501,type=io_port,min=fff9,len=8', 'min=fff9,len=8: no such ports'],
  ['PNP0501,type=irq,irq=0', 'irq=0 is not a number from 1 to 47'],
  ['PNP0501,type=irq,irq=48', 'irq=48 is not a number from 1 to 47'],
  ['PNP0501,type=irq,irq=5,polarity=4', 'polarity=4 is not a number from 0 to 3'],
  ['PNP0501,type=irq', 'irq= is not a number from 1 to 47'],
])('"%s" is refused: %s', (text, message) => {
  expect(() => devices(text)).toThrow(ConfigError);
  expect(() => devices(text)).toThrow(`--acpidev_pt: ${message}`);
});
