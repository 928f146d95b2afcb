/** The firmware configuration device, as a guest sees it, and its option. */
import { unlinkSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { ConfigError } from '../../../../devicemodel/core/errors.ts';
import { buildAcpi } from '../../../../devicemodel/core/firmware/acpi-tables.ts';
import { PioBus } from '../../../../devicemodel/core/io-bus.ts';
import { silentLog } from '../../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../../devicemodel/core/memory.ts';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { GiB, KiB, MiB } from '../../../../devicemodel/core/units.ts';
import { FwCfg } from '../../../../devicemodel/hw/platform/fw-cfg/device.ts';
import { contentOf, type FwCfgFile, MAX_FILE_BYTES } from '../../../../devicemodel/hw/platform/fw-cfg/file.ts';
import { fwCfg } from '../../../../devicemodel/hw/platform/fw-cfg.ts';
import { file, noise, temporaryDirectory } from '../../../support/images.ts';
import { pcAcpiInput } from '../../../support/pc-tables.ts';

const RAM = 64 * KiB;
const COMMAND = 0x100;
const Control = { read: 2, skip: 4, select: 8, write: 16 };

const text = (name: string, value: string): FwCfgFile => ({ name, from: 'string', value });

/** The guest's side. */
function machine(files: readonly FwCfgFile[] = []) {
  const memory = new GuestMemory([{ base: 0, bytes: new Uint8Array(RAM).fill(0xee), hostAddress: undefined }]);
  const pio = new PioBus();
  const env = { memory, lowRamBytes: 2 * GiB, highRamBytes: 1 * GiB, vcpuCount: 3 };
  const device = new FwCfg(files, { log: silentLog, machine: env });
  device.attach(pio);
  device.start();
  const select = (key: number) => void pio.write(0x510, 2, key);
  const bytes = (count: number) => Uint8Array.from({ length: count }, () => pio.read(0x511, 1) as number);
  const item = (key: number, count: number) => {
    select(key);
    return bytes(count);
  };
  const big = (value: number) => {
    const view = new DataView(new ArrayBuffer(4));
    view.setUint32(0, value);
    return view.getUint32(0, true);
  };
  /** A command of DMA. @returns its answer: 0 or the error bit. */
  const dma = (control: number, length = 0, target = 0, at = COMMAND) => {
    const view = new DataView(new ArrayBuffer(16));
    view.setUint32(0, control);
    view.setUint32(4, length);
    view.setBigUint64(8, BigInt(target));
    if (memory.contains(at, 16)) memory.write(at, new Uint8Array(view.buffer));
    pio.write(0x514, 4, big(Math.floor(at / 2 ** 32)));
    pio.write(0x518, 4, big(at % 2 ** 32));
    return big(memory.readU32(COMMAND));
  };
  return { memory, pio, device, select, bytes, item, dma };
}

function directory(item: (key: number, count: number) => Uint8Array) {
  const count = new DataView(item(0x19, 4).buffer).getUint32(0);
  const all = item(0x19, 4 + 64 * count);
  return Array.from({ length: count }, (_, i) => {
    const view = new DataView(all.buffer, 4 + 64 * i, 64);
    const name = Buffer.from(all.subarray(4 + 64 * i + 8, 4 + 64 * (i + 1)));
    return { size: view.getUint32(0), key: view.getUint16(4), name: name.toString().replace(/\0+$/, '') };
  });
}

describe('by ports', () => {
  test('signature, features, RAM and vCPUs', () => {
    const { item } = machine();
    expect(Buffer.from(item(0, 4)).toString()).toBe('QEMU');
    expect([...item(1, 4)]).toEqual([3, 0, 0, 0]);
    expect(new DataView(item(3, 8).buffer).getBigUint64(0, true)).toBe(BigInt(3 * GiB));
    expect([...item(5, 2), ...item(0xf, 2)]).toEqual([3, 0, 3, 0]);
  });

  // A guest that resets itself must not end because a file of its user is gone by then.
  test('files are read at the start only; tables come and are listed beside them', () => {
    const path = file(temporaryDirectory(), 'gone', new TextEncoder().encode('kept'));
    const { device, item } = machine([{ name: 'opt/gone', from: 'file', value: path }]);
    unlinkSync(path);
    device.tablesWritten(buildAcpi(pcAcpiInput({})));
    const files = directory(item);
    expect(files.map(({ name }) => name)).toEqual([
      ...['etc/acpi/rsdp', 'etc/acpi/tables', 'etc/e820', 'etc/table-loader', 'opt/gone'],
    ]);
    const gone = files.find(({ name }) => name === 'opt/gone');
    expect(Buffer.from(item(gone?.key as number, 4)).toString()).toBe('kept');
  });

  // Mutation: without the sort, a guest that searches by halves finds nothing.
  test('the directory lists what there is by name, and each is under its number', () => {
    const { item } = machine([text('opt/b', 'second'), text('opt/a', 'first')]);
    const files = directory(item);
    expect(files.map(({ name, size, key }) => [name, size, key]).slice(1)).toEqual([
      ['opt/a', 5, 0x21],
      ['opt/b', 6, 0x22],
    ]);
    expect(files[0]?.name).toBe('etc/e820');
    expect(Buffer.from(item(0x21, 5)).toString()).toBe('first');
  });

  test('the memory map has RAM below the PCI hole and above 4 GiB', () => {
    const { item } = machine();
    const { size = 0, key = 0 } = directory(item)[0] ?? {};
    const view = new DataView(item(key, size).buffer);
    const entries = Array.from({ length: size / 20 }, (_, i) => [
      Number(view.getBigUint64(20 * i, true)),
      Number(view.getBigUint64(20 * i + 8, true)),
      view.getUint32(20 * i + 16, true),
    ]);
    expect(entries.filter(([, , type]) => type === 1)).toEqual([
      [0, 640 * KiB, 1],
      [1 * MiB, 2 * GiB - 1 * MiB, 1],
      [4 * GiB, 1 * GiB, 1],
    ]);
    // Configuration space, and from the IOAPIC on: between them firmware has BARs.
    expect(entries.filter(([, , type]) => type === 2)).toEqual([
      [0xe000_0000, 0x1000_0000, 2],
      [0xfec0_0000, 0x140_0000, 2],
    ]);
  });

  test('behind its end, and under a number that is not there, an item reads zero; a selection begins anew', () => {
    const { item, select, bytes } = machine();
    expect([...item(0, 6)]).toEqual([0x51, 0x45, 0x4d, 0x55, 0, 0]);
    select(0);
    expect([...bytes(1)]).toEqual([0x51]);
    expect([...item(0x7777, 2)]).toEqual([0, 0]);
  });

  test('a reset selects the signature', () => {
    const { device, select, bytes } = machine();
    select(5);
    device.reset();
    expect([...bytes(1)]).toEqual([0x51]);
  });
});

describe('by DMA', () => {
  test('the address reads as the signature of DMA', () => {
    const { pio } = machine();
    const words = new DataView(new ArrayBuffer(8));
    words.setUint32(0, pio.read(0x514, 4) as number, true);
    words.setUint32(4, pio.read(0x518, 4) as number, true);
    expect(Buffer.from(words.buffer).toString()).toBe('QEMU CFG');
  });

  test('select and read in one command, the rest of the length is zero; a read goes on where the last ended', () => {
    const { memory, dma } = machine();
    expect(dma((0 << 16) | Control.select | Control.read, 3, 0x1000)).toBe(0);
    expect(Buffer.from(memory.read(0x1000, 3)).toString()).toBe('QEM');
    expect(dma(Control.read, 3, 0x1000)).toBe(0);
    expect([...memory.read(0x1000, 4)]).toEqual([0x55, 0, 0, 0xee]);
  });

  test('skip', () => {
    const { memory, dma } = machine();
    expect(dma(Control.select | Control.skip, 2)).toBe(0);
    expect(dma(Control.read, 2, 0x1000)).toBe(0);
    expect(Buffer.from(memory.read(0x1000, 2)).toString()).toBe('MU');
    expect(dma(Control.skip, 0xffff_ffff)).toBe(0);
  });

  test.each([
    ['a write', Control.write, 1, 0x1000],
    ['a target that is not RAM', Control.select | Control.read, 4, RAM],
    ['one that is half of it', Control.select | Control.read, 8, RAM - 4],
    ['a length nobody needs', Control.select | Control.read, 0xffff_ffff, 0],
  ])('%s answers with the error bit', (_what, control, length, target) => {
    const { dma, memory } = machine();
    expect(dma(control, length, target)).toBe(1);
    expect(memory.readU8(RAM - 1)).toBe(0xee);
  });

  test('a command that is not in RAM does nothing', () => {
    const { dma } = machine();
    expect(dma(Control.read, 4, 0x1000, 0x8000_0000)).toBe(0xeeee_eeee);
    expect(dma(Control.read, 4, 0x1000, 2 ** 52)).toBe(0xeeee_eeee);
  });
});

test('its object in the DSDT', () => {
  const [object] = machine().device.aml();
  expect(object?.place).toBe('system-bus');
  expect(Buffer.from(object?.aml ?? []).toString('latin1')).toContain('QEMU0002');
});

describe('--fw_cfg', () => {
  const parse = (value: string) => checkOptions(fwCfg.options, fwCfg.parseText(value));

  test('as QEMU has it, or nothing at all', () => {
    expect(parse('')).toEqual({ files: [] });
    expect(parse('opt/org.test/a,string=x,y=z')).toEqual({ files: [text('opt/org.test/a', 'x,y=z')] });
    expect(parse('vgaroms/a.bin,string=x')).toEqual({ files: [text('vgaroms/a.bin', 'x')] });
    expect(parse('pci1af4,1050.rom,string=x')).toEqual({ files: [text('pci1af4,1050.rom', 'x')] });
    expect(parse('name=opt/b,file=/etc/hostname')).toEqual({
      files: [{ name: 'opt/b', from: 'file', value: '/etc/hostname' }],
    });
  });

  test.each([
    'opt/a',
    'etc/e820,string=x',
    'opt/,string=x',
    `opt/${'x'.repeat(60)},string=x`,
    'opt/ä,string=x',
    'opt/a,file=',
  ])('refuses "%s"', (value) => {
    expect(() => parse(value)).toThrow(ConfigError);
  });

  test('several add up; the same name twice is refused', () => {
    const [one, two] = [parse('opt/a,string=1'), parse('opt/b,string=2')];
    expect(fwCfg.merge?.(one, two)).toEqual({ files: [text('opt/a', '1'), text('opt/b', '2')] });
    expect(() => fwCfg.merge?.(one, one)).toThrow('opt/a is given twice');
  });

  test('a file is read whole; what cannot be read is said before the start', () => {
    const directory = temporaryDirectory();
    const path = file(directory, 'data', noise('data', 1000));
    const entry = { name: 'opt/a', from: 'file', value: path } as const;
    expect(Buffer.from(contentOf(entry)).equals(noise('data', 1000))).toBe(true);
    const missing = { files: [{ ...entry, value: `${directory}/none` }] };
    expect(() => fwCfg.inspectHost?.(missing)).toThrow(/none for opt\/a cannot be opened/);
    const large = file(directory, 'large', new Uint8Array(MAX_FILE_BYTES + 1));
    expect(() => fwCfg.inspectHost?.({ files: [{ ...entry, value: large }] })).toThrow('larger than 16 MiB');
  });
});
