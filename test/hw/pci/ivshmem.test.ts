import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { checkOptions } from '../../../devicemodel/core/options.ts';
import { GiB, MiB } from '../../../devicemodel/core/units.ts';
import { IvshmemOptions, ivshmem } from '../../../devicemodel/hw/pci/ivshmem.ts';
import { PciMachine } from '../../support/pci-machine.ts';

const parse = (text: string) => checkOptions(IvshmemOptions, ivshmem.parseText?.(text) ?? {});
const plug = (text: string, options = {}) => new PciMachine(options).plug('0:6.0', ivshmem, parse(text));
const MEMORY_BAR = 0x18;

describe('options', () => {
  test('name, size and id by position or by name', () => {
    expect(parse('hv:/shm0,2')).toEqual({ name: 'hv:/shm0', size: 2, regionId: 0 });
    expect(parse('dm:/a,512,7')).toEqual({ name: 'dm:/a', size: 512, regionId: 7 });
    expect(parse('size=4,name=hv:/x')).toEqual({ name: 'hv:/x', size: 4, regionId: 0 });
  });

  test.each([
    ['', /name: is missing/],
    ['hv:/a', /size: is missing/],
    ['xx:/a,2', /name: must be hv:\/NAME or dm:\/NAME/],
    ['hv:/,2', /name: must be/],
    ['dm:/a/b,2', /name: must be a file name/],
    ['dm:/..,2', /name: must be a file name/],
    ['hv:/a,1', /size: must be a whole number, 2 to 512, got "1"/],
    ['hv:/a,1024', /size: .*2 to 512/],
    ['hv:/a,3', /size: must be a power of two, 2 to 512, got 3/],
    ['hv:/a,two', /size: must be a whole number/],
    ['hv:/a,2K', /size: must be a whole number/],
    ['hv:/a,0x2', /size: must be a decimal number/],
    ['hv:/a,size=2,1,9', /unknown option "9"/],
  ])('%s is refused with the reason', (text, reason) => {
    expect(() => parse(text)).toThrow(reason);
  });

  // The C device model multiplies in 32 bits: 4098 MiB was taken for 2 MiB, 4096 for 0.
  test('sizes that wrap in 32 bits are refused like any other', () => {
    for (const size of [4096, 4098, 4100, 8194, 2 ** 32 + 2]) expect(() => parse(`hv:/a,${size}`)).toThrow(/size:/);
  });

  test('exactly the powers of two from 2 to 512 are sizes', () => {
    fc.assert(
      fc.property(fc.nat({ max: 5000 }), (size) => {
        const isSize = [2, 4, 8, 16, 32, 64, 128, 256, 512].includes(size);
        if (isSize) expect(parse(`hv:/a,${size}`).size).toBe(size);
        else expect(() => parse(`hv:/a,${size}`)).toThrow(/size:/);
      }),
    );
  });

  test.each(['2M', '2MB', '2mib'])('the unit may be written: %s', (size) => {
    expect(parse(`hv:/a,${size}`).size).toBe(2);
  });

  test.each([
    ['xyz', 0],
    ['', 0],
    ['70000', 70000 - 65536],
    ['-1', 65535],
    ['7up', 7],
    ['1,extra', 1],
    ['99999999999999999999999', expect.any(Number)],
  ])('region id %s is taken as C takes it and warned about', (id, regionId) => {
    const machine = plug(`hv:/a,2,${id}`).power();
    expect(machine.cfgRead('0:6.0', 0x2c) >>> 16).toEqual(regionId);
    expect(machine.cfgRead('0:6.0', 0x2c) & 0xffff).toBe(0x8086);
    const said = ivshmem.passedOver?.(parse(`hv:/a,2,${id}`)) ?? [];
    expect(said).toEqual([expect.stringContaining(`"${id}"`)]);
  });

  test('a region name longer than the hypervisor compares is warned about', () => {
    const machine = plug(`hv:/${'n'.repeat(40)},2`).power();
    expect(machine.lines.some((line) => line.includes('first 32 bytes'))).toBe(true);
  });
});

describe('hv:/', () => {
  test('is described to the hypervisor with the addresses its BARs have', () => {
    const machine = plug('hv:/shm_region_0,2,3').power();
    expect(machine.hsm.calls).toEqual([
      {
        name: 'CREATE_VDEV',
        vdev: {
          type: 'ivshmem',
          bdf: { bus: 0, device: 6, function: 0 },
          registersBar: 0x80000000,
          msixBar: 0x80001000,
          memoryBar: 0x80200000,
          regionName: 'hv:/shm_region_0',
          sizeBytes: 2 * MiB,
        },
      },
    ]);
    expect(machine.cfgRead('0:6.0', 0x2c)).toBe(0x00038086);
  });

  test('a region above 32 MiB goes above 4 GiB', () => {
    const machine = plug('hv:/big,64').power();
    expect(machine.host.report()[0]?.vdev).toMatchObject({ memoryBar: 256 * GiB, sizeBytes: 64 * MiB });
  });
});

describe('dm:/', () => {
  test('is host memory mapped at BAR2, readable and writable, not for code', () => {
    const machine = plug('dm:/chat,2').power();
    expect([...machine.shared.keys()]).toEqual(['chat']);
    expect(machine.hsm.calls).toMatchObject([
      {
        name: 'SET_MEMSEG',
        mapping: {
          gpa: 0x80200000,
          sizeBytes: 2 * MiB,
          hostAddress: 0x7f00_0000_0000n,
          writable: true,
          executable: false,
        },
      },
    ]);
  });

  test('nothing is opened before the VM is', () => {
    const machine = plug('dm:/chat,2');
    machine.host.configure();
    expect(machine.shared.size).toBe(0);
  });

  test('the mapping survives a system reset and is made anew for a new VM', () => {
    const machine = plug('dm:/chat,2').power();
    machine.host.destroyVdevs();
    machine.host.reset();
    machine.host.createVdevs();
    expect(machine.hsm.names).toEqual(['SET_MEMSEG']);
    machine.host.detach();
    machine.host.detach();
    machine.host.createVdevs();
    expect(machine.hsm.names).toEqual(['SET_MEMSEG', 'SET_MEMSEG']);
    expect(machine.shared.get('chat')?.disposed).toBe(0);
  });

  test('what another process cut off is back before the hypervisor takes the pages, at each start', () => {
    const machine = plug('dm:/chat,2').power();
    const shared = machine.shared.get('chat');
    expect(shared).toMatchObject({ mends: 1, listeners: 1 });
    machine.host.destroyVdevs();
    machine.host.reset();
    machine.host.createVdevs();
    expect(shared).toMatchObject({ mends: 2, listeners: 1 });
    machine.host.detach();
    expect(shared).toMatchObject({ mends: 2, listeners: 0 });
  });

  test('detach gives the memory back once', () => {
    const machine = plug('dm:/chat,2').power();
    const shared = machine.shared.get('chat');
    machine.host.detach();
    machine.host.detach();
    expect(shared?.disposed).toBe(1);
  });

  test('when BAR2 moves, memory follows where the hypervisor can take it away', () => {
    const machine = plug('dm:/chat,2');
    machine.hsm.allowUnmap();
    machine.power();
    machine.cfgWrite('0:6.0', MEMORY_BAR, 0xa0000000);
    expect(machine.hsm.calls).toMatchObject([
      { name: 'SET_MEMSEG', mapping: { gpa: 0x80200000 } },
      { name: 'UNSET_MEMSEG', mapping: { gpa: 0x80200000 } },
      { name: 'SET_MEMSEG', mapping: { gpa: 0xa0000000 } },
    ]);
  });

  test('elsewhere the new place is served from the same memory, and the log says so', () => {
    const machine = plug('dm:/chat,2').power();
    machine.cfgWrite('0:6.0', MEMORY_BAR, 0xa0000000);
    expect(machine.hsm.names).toEqual(['SET_MEMSEG']);
    machine.mmioWrite(0xa0000010, 0x11223344);
    expect(machine.shared.get('chat')?.bytes.subarray(0x10, 0x14)).toEqual(Uint8Array.of(0x44, 0x33, 0x22, 0x11));
    expect([1, 2, 4].map((size) => machine.mmioRead(0xa0000010, size as 1))).toEqual([0x44, 0x3344, 0x11223344]);
    expect(machine.lines.some((line) => line.includes('stays mapped at 0x80200000'))).toBe(true);
  });

  test('a hypervisor that cannot map at the new place does not end the VM', () => {
    const machine = plug('dm:/chat,2');
    machine.hsm.allowUnmap();
    machine.power();
    machine.hsm.failing = 'SET_MEMSEG';
    machine.cfgWrite('0:6.0', MEMORY_BAR, 0xa0000000);
    machine.hsm.failing = undefined;
    expect(machine.lines.some((line) => line.includes('cannot move to 0xa0000000'))).toBe(true);
    machine.mmioWrite(0xa0000000, 5);
    expect(machine.shared.get('chat')?.bytes[0]).toBe(5);
    // Mutation: take a memory that is mapped nowhere for one that is not attached: it is served slowly for good.
    machine.cfgWrite('0:6.0', MEMORY_BAR, 0x80200000);
    expect(machine.hsm.calls.at(-1)).toMatchObject({ name: 'SET_MEMSEG', mapping: { gpa: 0x80200000 } });
    expect(machine.hsm.names.filter((name) => name === 'UNSET_MEMSEG')).toHaveLength(1);
  });

  test('a size probe of BAR2 moves nothing', () => {
    const machine = plug('dm:/chat,2');
    machine.hsm.allowUnmap();
    machine.power();
    machine.cfgWrite('0:6.0', MEMORY_BAR, 0xffffffff);
    machine.cfgWrite('0:6.0', MEMORY_BAR, 0x80200000);
    expect(machine.hsm.names).toEqual(['SET_MEMSEG']);
  });

  test('without interrupts: mask, status and position read zero, the rest all ones, the doorbell does nothing', () => {
    const machine = plug('dm:/chat,2').power();
    expect([0, 4, 8, 0xc, 0x10].map((reg) => machine.mmioRead(0x80000000 + reg))).toEqual([
      0, 0, 0, 0xffffffff, 0xffffffff,
    ]);
    machine.mmioWrite(0x8000000c, 0x10001);
    expect(machine.mmioRead(0x80001000)).toBe(0xffffffff);
  });
});
