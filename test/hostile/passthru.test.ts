/** A guest at the registers of functions of the host: config space as no driver would use it, of devices that come and go. */
import { readdirSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import * as fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type AccessSize, allOnes } from '../../devicemodel/core/address.ts';
import { checkOptions } from '../../devicemodel/core/options.ts';
import { lpc } from '../../devicemodel/hw/pci/lpc.ts';
import { igdLpc } from '../../devicemodel/hw/pci/passthru/igd-lpc.ts';
import { PassthruOptions, parsePassthruText } from '../../devicemodel/hw/pci/passthru/options.ts';
import { passthru } from '../../devicemodel/hw/pci/passthru/passthru.ts';
import { virtioRnd } from '../../devicemodel/hw/pci/virtio/rng.ts';
import { expectWithin } from '../support/bus-access.ts';
import { FakeHostPci } from '../support/fake-host-pci.ts';
import { PciMachine } from '../support/pci-machine.ts';
import { scratchDirectory } from '../support/pty.ts';

const ECAM = 0xe000_0000;
/** Lines a guest may cause at once, with some to spare. */
const MANY_LINES = 20;
/** In the machine below: a network card, graphics, a display controller with a ROM, and its neighbours. */
const SLOTS = ['0:5.0', '0:2.0', '0:6.0', '0:1f.0', '0:7.0'] as const;
const HOST_FUNCTIONS = ['02:00.0', '00:02.0', '03:00.0'] as const;
/** Registers with a meaning: command, BARs, ROM, power state, MSI, what graphics memory is named by. */
const REGISTERS = [0x04, 0x10, 0x14, 0x24, 0x30, 0x3c, 0x44, 0x50, 0x5c, 0x90, 0x92, 0x94, 0xc0, 0xc4, 0xfc, 0x100];
/** RAM, the configuration window, another BAR, the pattern of a size probe, and single bits. */
const VALUES = [0, 1, 3, 0x407, 0x4000, 0x8000_0000, ECAM, 0xffff_f800, 0xffff_f801, 0xffff_ffff];

const options = (text: string) => checkOptions(PassthruOptions, parsePassthruText(text));
const openFiles = () => readdirSync('/proc/self/fd').length;

let host: FakeHostPci;
let files: ReturnType<typeof scratchDirectory>;
beforeEach(() => {
  files = scratchDirectory();
  host = new FakeHostPci();
});
afterEach(() => {
  host.dispose();
  files.remove();
});

function machineWithHostFunctions(): PciMachine {
  const rom = files.file('rom');
  writeFileSync(rom, new Uint8Array([0x55, 0xaa, 8, 0]));
  const bar = (address: number) => [{ kind: 'mem32', address, sizeBytes: 0x1_0000 }] as const;
  host
    .add('02:00.0', { bars: bar(0xa120_0000), hasMsi: true, interrupt: [16, 1] })
    .add('03:00.0', { classCode: 0x030000, bars: bar(0xa130_0000), hasMsi: true })
    .add('00:1f.0', { deviceId: 0xa082, classCode: 0x060100 })
    .add('00:02.0', {
      deviceId: 0x9a49,
      classCode: 0x030000,
      bars: [{ kind: 'mem64', address: 0x60_0000_0000, sizeBytes: 0x100_0000 }],
      hasMsi: true,
      registers: [
        [0x50, 0x02c1],
        [0xc0, 0x7b80_0001, 0],
        [0xfc, 0x6fa1_f018],
      ],
    });
  return new PciMachine({ hostRoot: host.root })
    .plug('0:1.0', lpc, {})
    .plug('0:5.0', passthru, options('02/00/0,keep_gsi'))
    .plug('0:2.0', passthru, options('00/02/0'))
    .plug('0:6.0', passthru, options(`03/00/0,romfile=${rom}`))
    .plug('0:1f.0', igdLpc, {})
    .plug('0:7.0', virtioRnd, { kernel: 'off', transport: 'transitional' });
}

interface Access {
  readonly slot: (typeof SLOTS)[number];
  readonly isEcam: boolean;
  readonly isWrite: boolean;
  readonly offset: number;
  readonly size: AccessSize;
  readonly value: number;
}

const accesses: fc.Arbitrary<Access[]> = fc.array(
  fc.record({
    slot: fc.constantFrom(...SLOTS),
    isEcam: fc.boolean(),
    isWrite: fc.boolean(),
    offset: fc.oneof(fc.constantFrom(...REGISTERS), fc.nat({ max: 0x110 }), fc.nat({ max: 0xfff })),
    size: fc.constantFrom<AccessSize>(1, 2, 4),
    value: fc.oneof(fc.constantFrom(...VALUES), fc.nat({ max: 0xffff_ffff })),
  }),
  { maxLength: 80 },
);

function apply(machine: PciMachine, { slot, isEcam, isWrite, offset, size, value }: Access): void {
  const cut = (value & allOnes(size)) >>> 0;
  const device = Number.parseInt(slot.slice(2), 16);
  const address = ECAM + (device << 15) + offset;
  if (isWrite && isEcam) machine.mmioWrite(address, cut, size);
  else if (isWrite) machine.cfgWrite(slot, offset, cut, size);
  else expectWithin(isEcam ? machine.mmioRead(address, size) : machine.cfgRead(slot, offset, size), size);
}

describe('registers of functions of the host', () => {
  test.each<[string, () => void]>([
    ['that are there', () => {}],
    ['that were pulled out', () => HOST_FUNCTIONS.forEach((at) => void host.remove(at))],
    [
      'that show only a part of them',
      () => HOST_FUNCTIONS.forEach((at) => void truncateSync(join(host.path(at), 'config'), 64)),
    ],
  ])('%s: nothing is thrown, asked of the hypervisor, left open or flooded', (_what, change) => {
    const machine = machineWithHostFunctions().power();
    const calls = machine.hsm.calls.length;
    change();
    const before = openFiles();
    machine.lines.length = 0;
    fc.assert(
      fc.property(accesses, (list) => {
        for (const access of list) apply(machine, access);
      }),
      { numRuns: 60 },
    );
    // An access of the guest is between it and the device: of the emulated neighbour, its interrupt line is told.
    const more = machine.hsm.calls.slice(calls).filter(({ name }) => name !== 'SET_IRQLINE');
    expect(more).toEqual([]);
    expect(openFiles()).toBe(before);
    expect(machine.lines.length).toBeLessThan(MANY_LINES);
  });

  test('the hypervisor is told the same after a reset, whatever the guest wrote', () => {
    const machine = machineWithHostFunctions().power();
    const before = [...machine.hsm.calls];
    for (const slot of SLOTS) {
      for (let offset = 4; offset < 0x110; offset += 4) machine.cfgWrite(slot, offset, 0xffff_ffff);
    }
    machine.host.destroyVdevs();
    machine.host.reset();
    machine.hsm.calls.length = 0;
    machine.host.createVdevs();
    const withoutBytes = (calls: readonly unknown[]) =>
      calls.map((call) => JSON.stringify(call, (key, v) => (key === 'bytes' || key === 'hostAddress' ? null : v)));
    expect(withoutBytes(machine.hsm.calls)).toEqual(withoutBytes(before));
  });

  test('the ROM stays where it is mapped: it is sized and switched, not moved', () => {
    const machine = machineWithHostFunctions().power();
    const rom = machine.hsm.calls.find(({ name }) => name === 'SET_MEMSEG');
    const gpa = rom?.name === 'SET_MEMSEG' ? rom.mapping.gpa : 0;
    expect(machine.cfgRead('0:6.0', 0x30)).toBe(gpa + 1);
    machine.cfgWrite('0:6.0', 0x30, 0xffff_f800);
    expect(machine.cfgRead('0:6.0', 0x30)).toBe(0xffff_f000);
    for (const to of [0x4001, ECAM + 1, 0x8000_0001]) {
      machine.cfgWrite('0:6.0', 0x30, to);
      expect(machine.cfgRead('0:6.0', 0x30)).toBe(gpa + 1);
    }
  });
});
