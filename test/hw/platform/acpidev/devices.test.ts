/** Host devices in the guest: the hypervisor calls of each, their undoing at any failure, and what the guest is told. */
import { constants } from 'node:os';
import { describe, expect, test } from 'vitest';
import { HsmError } from '../../../../devicemodel/core/hsm/errors.ts';
import type { Hsm, PassthroughAbility } from '../../../../devicemodel/core/hsm/hsm.ts';
import { MmioBus, PioBus } from '../../../../devicemodel/core/io-bus.ts';
import { KeptOverLives } from '../../../../devicemodel/core/kept-over-lives.ts';
import { silentLog } from '../../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../../devicemodel/core/memory.ts';
import { HostAcpiDevice } from '../../../../devicemodel/hw/platform/acpidev/resources.ts';
import { HostTpmDevice } from '../../../../devicemodel/hw/platform/acpidev/tpm.ts';
import type { PlatformEnv } from '../../../../devicemodel/hw/platform/driver.ts';
import { MmioWindow } from '../../../../devicemodel/hw/platform/mmio-window.ts';
import { mmiodevPt } from '../../../../devicemodel/hw/platform/mmiodev-pt.ts';
import { FakePower } from '../../../support/fake-line.ts';
import { hostWithTpm, tpm2HostTable } from '../../../support/host-acpi.ts';
import { disassembledText, hasIasl } from '../../../support/iasl.ts';
import { temporaryDirectory } from '../../../support/images.ts';
import { pcTable } from '../../../support/pc-tables.ts';

/** A hypervisor that notes what is asked of it, and refuses the call with the given number (from 1). */
function recorder(refused?: number) {
  const calls: Array<readonly [string, unknown]> = [];
  const method = (name: string) => (argument: unknown) => {
    calls.push([name, argument]);
    if (calls.length === refused) throw new HsmError(name, constants.errno.EINVAL);
  };
  const names = [
    'assignMmiodev',
    'deassignMmiodev',
    'assignPioRegion',
    'deassignPioRegion',
    'setPtdevIntx',
    'resetPtdevIntx',
  ];
  const passthrough = Object.fromEntries(names.map((name) => [name, method(name)]));
  return { calls, hsm: { passthrough: passthrough as unknown as PassthroughAbility } as Hsm };
}

const reserved: number[] = [];
function env(hsm: Hsm, hostRoot = ''): PlatformEnv {
  return {
    hsm,
    machine: { memory: new GuestMemory([]), lowRamBytes: 0, highRamBytes: 0, vcpuCount: 1 },
    hostRoot,
    log: silentLog,
    power: new FakePower(),
    window: new MmioWindow(),
    reserveIrq: (irq) => void reserved.push(irq),
    keep: new KeptOverLives().keep,
  };
}

const tpmHost = (table: Uint8Array) => hostWithTpm({ 'sys/firmware/acpi/tables/TPM2': table });

describe('a TPM', () => {
  const tpmRange = { gpa: 0xfed40000, hostPhysical: 0xfed40000, sizeBytes: 0x5000 };

  test('is assigned once, and taken back once', () => {
    const { calls, hsm } = recorder();
    const device = new HostTpmDevice('MSFT0101', 0, env(hsm, tpmHost(tpm2HostTable())));
    expect(calls).toEqual([]);
    device.start();
    device.reset();
    device.stop();
    device.stop();
    const assignment = { name: 'tpm2', resources: [tpmRange] };
    expect(calls).toEqual([
      ['assignMmiodev', assignment],
      ['deassignMmiodev', assignment],
    ]);
  });

  test('a refused one is not taken back', () => {
    const { calls, hsm } = recorder(1);
    const device = new HostTpmDevice('MSFT0101', 0, env(hsm, tpmHost(tpm2HostTable())));
    expect(() => device.start()).toThrow(HsmError);
    device.stop();
    expect(calls).toHaveLength(1);
  });

  test('a log that begins within a page is mapped from its page on, and found where it begins', () => {
    const { calls, hsm } = recorder();
    const table = tpm2HostTable({ log: { base: 0x7a000123, sizeBytes: 0x2000 } });
    const device = new HostTpmDevice('MSFT0101', 0, env(hsm, tpmHost(table)));
    device.start();
    const log = { gpa: 0xf0000000, hostPhysical: 0x7a000000, sizeBytes: 0x3000 };
    expect(calls).toEqual([['assignMmiodev', { name: 'tpm2', resources: [tpmRange, log] }]]);
    const bytes = Buffer.from(pcTable('TPM2', { devices: [device] }));
    expect([bytes.readUInt32LE(64), bytes.readBigUInt64LE(68)]).toEqual([0x2000, 0xf0000123n]);
  });

  test('start method and control area are those of the host', () => {
    const { hsm } = recorder();
    const table = tpm2HostTable({ control: 0xfed41080, startMethod: 6 });
    const device = new HostTpmDevice('MSFT0101', 0, env(hsm, tpmHost(table)));
    const bytes = Buffer.from(pcTable('TPM2', { devices: [device] }));
    expect([bytes.readBigUInt64LE(40), bytes.readUInt32LE(48)]).toEqual([0xfed41080n, 6]);
  });

  test('without one on the host nothing is said of it, and it cannot start', () => {
    const device = new HostTpmDevice('MSFT0101', 0, env(recorder().hsm, '/nonexistent'));
    expect([...device.aml(), ...device.tables()]).toEqual([]);
    expect(() => device.start()).toThrow('this host has no ACPI device MSFT0101:00');
  });

  test('the embedded hypervisor cannot', () => {
    const device = new HostTpmDevice('MSFT0101', 0, env({} as Hsm, tpmHost(tpm2HostTable())));
    expect(() => device.start()).toThrow('gives a guest no devices of the host');
  });
});

describe('a device by its resources', () => {
  const options = {
    hid: 'INTC1055',
    uid: 0,
    resources: [
      { type: 'memory', base: 0xfd6e0000, sizeBytes: 0x10000 },
      { type: 'io_port', port: 0x800, sizeBytes: 8 },
      { type: 'irq', irq: 14, polarity: 3, triggerMode: 3 },
      { type: 'memory', base: 0xfd6d0000, sizeBytes: 0x1000 },
    ] as const,
  };
  const make = (hsm: Hsm) => new HostAcpiDevice({ ...options, resources: [...options.resources] }, env(hsm));
  const memory = (gpa: number, hostPhysical: number, sizeBytes: number) => ({
    name: 'gpio',
    resources: [{ gpa, hostPhysical, sizeBytes }],
  });
  const nonPci = { bus: 255, device: 31, function: 7 };
  const assigned = [
    ['assignMmiodev', memory(0xf0000000, 0xfd6e0000, 0x10000)],
    ['assignPioRegion', { name: 'gpio', port: 0x800, sizeBytes: 8 }],
    ['setPtdevIntx', { virtualBdf: nonPci, physicalBdf: nonPci, virtualPin: 14, physicalPin: 14, isPicPin: false }],
    ['assignMmiodev', memory(0xf0010000, 0xfd6d0000, 0x1000)],
  ] as const;
  const undoOf: Readonly<Record<string, string>> = {
    assignMmiodev: 'deassignMmiodev',
    assignPioRegion: 'deassignPioRegion',
    setPtdevIntx: 'resetPtdevIntx',
  };

  test('is given and taken back', () => {
    const { calls, hsm } = recorder();
    const device = make(hsm);
    device.start();
    expect(calls).toEqual(assigned);
    device.stop();
    device.stop();
    expect(calls.slice(assigned.length)).toEqual(assigned.toReversed().map(([name, a]) => [undoOf[name], a]));
  });

  test.each([1, 2, 3, 4])('when call %i is refused what was given is taken back, last first', (refused) => {
    const { calls, hsm } = recorder(refused);
    const device = make(hsm);
    expect(() => device.start()).toThrow(HsmError);
    device.stop();
    const done = assigned.slice(0, refused - 1);
    expect(calls.slice(refused)).toEqual(done.toReversed().map(([name, a]) => [undoOf[name], a]));
  });

  test('a call that fails on the way back does not keep the others', () => {
    const { calls, hsm } = recorder(5);
    const device = make(hsm);
    device.start();
    device.stop();
    expect(calls).toHaveLength(8);
  });

  test('its interrupt is kept from PCI, its ports from others', () => {
    reserved.length = 0;
    const device = make(recorder().hsm);
    expect(reserved).toEqual([14]);
    const pio = new PioBus();
    pio.register({ base: 0x804, size: 1, name: 'com9' }, { read: () => 0, write: () => {} });
    expect(() => device.attach(pio, new MmioBus())).toThrow('--acpidev_pt INTC1055: com9 is at port 0x800');
    const mmio = new MmioBus();
    expect(device.attach(new PioBus(), mmio).map((r) => r.range.base)).toContain(0x800);
    // Where the hypervisor maps its memory no BAR is decoded.
    expect(mmio.findOverlap(0xf000_0000, 0x1000)?.name).toBe('INTC1055');
  });

  test.skipIf(!hasIasl)('the guest is told of a GPIO controller', () => {
    const dsdt = pcTable('DSDT', { devices: [make(recorder().hsm)] });
    const asl = disassembled(dsdt);
    expect(asl).toMatch(/Device \(GPI0\)\s*\{\s*Name \(_HID, "INTC1055"\)/);
    expect(asl).toMatch(/Interrupt \(ResourceConsumer, Level, ActiveLow, Shared[^)]*\)\s*\{\s*0x0000000E,/);
    expect(asl).toMatch(/0xF0000000,\s*\/\/ Address Base\s*0x00010000,/);
    const madt = Buffer.from(pcTable('APIC', { devices: [make(recorder().hsm)] }));
    expect(madt.includes(Buffer.from([2, 10, 0, 14, 14, 0, 0, 0, 0x0f, 0]))).toBe(true);
  });

  test.skipIf(!hasIasl)('the guest is told of a UART, at the address it has there', () => {
    const { hsm } = recorder();
    const resources = [
      { type: 'io_port' as const, port: 0x2f8, sizeBytes: 8 },
      { type: 'irq' as const, irq: 5, polarity: 0, triggerMode: 0 },
      { type: 'memory' as const, base: 0xfe030000, sizeBytes: 0x1000 },
    ];
    const uart = new HostAcpiDevice({ hid: 'PNP0501', uid: 19, resources }, env(hsm));
    const asl = disassembled(pcTable('DSDT', { devices: [uart] }));
    expect(asl).toMatch(/Device \(CM13\)\s*\{\s*Name \(_HID, EisaId \("PNP0501"\)/);
    expect(asl).toMatch(/IRQNoFlags \(\)\s*\{5\}/);
    expect(asl).toMatch(/0xF0000000,\s*\/\/ Address Base/);
  });
});

const disassembled = (table: Uint8Array) => disassembledText(temporaryDirectory(), table);

describe('device memory', () => {
  test('is given at an address aligned to its size', async () => {
    const { calls, hsm } = recorder();
    const shared = env(hsm);
    const ranges = [
      { base: 0xfe000000, sizeBytes: 0x4000 },
      { base: 0xfe0b0000, sizeBytes: 0x10000 },
      { base: 0xfe0c0000, sizeBytes: 0x3000 },
      { base: 0xfe0d0000, sizeBytes: 0x1000 },
    ];
    for (const range of ranges) (await mmiodevPt.create?.(range, shared))?.start?.();
    const given = calls.map(([, a]) => (a as { resources: { gpa: number }[] }).resources[0]?.gpa);
    expect(given).toEqual([0xf0000000, 0xf0010000, 0xf0020000, 0xf0023000]);
  });
  test('is refused where the window is full', async () => {
    const shared = env(recorder().hsm);
    await mmiodevPt.create?.({ base: 0x1000_0000, sizeBytes: 0x0800_0000 }, shared);
    const again = () => mmiodevPt.create?.({ base: 0x2000_0000, sizeBytes: 0x0800_0000 }, shared);
    expect(again).toThrow('--mmiodev_pt 0x20000000: 128 MiB do not fit at 0xf0000000 to 0xfdffffff');
  });
});
