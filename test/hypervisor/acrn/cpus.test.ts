import * as fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError, ExitCode, HostError } from '../../../devicemodel/core/errors.ts';
import { affinityOf, parseMadt, readHostMadt, vcpuLapicIds } from '../../../hypervisor/acrn/cpus.ts';

/** ACPI 6.5 §5.2.12: 36 bytes of header, 8 of the MADT's own, entries. */
function madt(...entries: number[][]): Uint8Array {
  const body = entries.flat();
  const bytes = new Uint8Array(44 + body.length);
  bytes.set(new TextEncoder().encode('APIC'));
  new DataView(bytes.buffer).setUint32(4, bytes.length, true);
  bytes.set(body, 44);
  return bytes;
}
const cpu = (id: number, flags = 1) => [0, 8, 0xaa, id, flags, 0, 0, 0];
const ioapic = [1, 12, 2, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0];

/** Hyper-threads after the cores, as firmware often lists them. */
const hostIds = [0, 2, 4, 6, 1, 3, 5, 7];

describe('parseMadt', () => {
  test('lists enabled CPUs in table order and skips the rest', () => {
    expect(parseMadt(madt(cpu(4), ioapic, cpu(9, 0), cpu(2)))).toEqual([4, 2]);
  });
  test('an entry of length 0 ends the table', () => {
    expect(parseMadt(madt(cpu(4), [1, 0], cpu(5)))).toEqual([4]);
  });
  test('the length field counts, not what follows it', () => {
    const bytes = madt(cpu(4), cpu(5));
    new DataView(bytes.buffer).setUint32(4, 52, true);
    expect(parseMadt(bytes)).toEqual([4]);
  });
  test('takes 64 CPUs at most, as many as an affinity bitmap has bits', () => {
    expect(parseMadt(madt(...Array.from({ length: 70 }, (_, i) => cpu(i))))).toHaveLength(64);
  });
  test.each([
    ['no enabled CPU', madt(cpu(1, 0), ioapic)],
    ['another table', Uint8Array.from(madt(cpu(1)), (b, i) => (i === 0 ? 0x46 : b))],
    ['a cut table', madt(cpu(1)).subarray(0, 40)],
  ])('refuses %s', (_, bytes) => {
    expect(() => parseMadt(bytes)).toThrow(ConfigError);
  });
  test('any bytes end in ids or a ConfigError', () => {
    const anyMadt = fc.oneof(
      fc.uint8Array({ maxLength: 300 }),
      fc.uint8Array({ maxLength: 300 }).map((body) => madt([...body])),
    );
    fc.assert(
      fc.property(anyMadt, (bytes) => {
        try {
          for (const id of parseMadt(bytes)) expect(id).toBeLessThanOrEqual(255);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
        }
      }),
    );
  });
});

test('a table that is not there is a HostError naming the path', () => {
  expect(() => readHostMadt('/nonexistent/APIC')).toThrow(HostError);
  expect(() => readHostMadt('/nonexistent/APIC')).toThrow('/nonexistent/APIC: cannot be read: ENOENT');
});

describe('affinityOf', () => {
  test('a local APIC id becomes the bit of its place in the MADT', () => {
    expect(affinityOf([5], hostIds)).toEqual({ bitmap: 0x40n, unknownIds: [] });
    expect(affinityOf([0, 1], hostIds)).toEqual({ bitmap: 0x11n, unknownIds: [] });
  });
  test('an id twice is one CPU', () => {
    expect(affinityOf([0, 0, 2], hostIds).bitmap).toBe(0x3n);
  });
  test('an unknown id is told, and stands for CPU 63', () => {
    expect(affinityOf([99], hostIds)).toEqual({ bitmap: 1n << 63n, unknownIds: [99] });
  });
  test('no id is an empty bitmap', () => {
    expect(affinityOf([], hostIds).bitmap).toBe(0n);
  });
});

describe('vcpuLapicIds', () => {
  test('vCPU n has the id of the n-th CPU in the bitmap', () => {
    expect(vcpuLapicIds(0x13n, 3, hostIds)).toEqual([0, 2, 1]);
  });
  test('fewer vCPUs than CPUs take the first ones', () => {
    expect(vcpuLapicIds(0x13n, 1, hostIds)).toEqual([0]);
  });
  test('more vCPUs than CPUs are refused with the ids there are', () => {
    expect(() => vcpuLapicIds(0x1n, 2, hostIds)).toThrow(
      expect.objectContaining({ hint: expect.stringContaining('0, 2, 4, 6, 1, 3, 5, 7'), exitCode: ExitCode.Usage }),
    );
  });
  test('without --cpu_affinity the option is named', () => {
    expect(() => vcpuLapicIds(0n, 1, hostIds)).toThrow('--cpu_affinity is missing');
  });
});
