/** Software SRAM on a host made up here: which caches, where, and what the guest is told. */
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { ConfigError, HostError } from '../../../../devicemodel/core/errors.ts';
import type { TccDriver } from '../../../../devicemodel/core/host/tcc-buffer.ts';
import type { Hsm } from '../../../../devicemodel/core/hsm/hsm.ts';
import { KeptOverLives } from '../../../../devicemodel/core/kept-over-lives.ts';
import { silentLog } from '../../../../devicemodel/core/log.ts';
import { GuestMemory } from '../../../../devicemodel/core/memory.ts';
import { checkOptions } from '../../../../devicemodel/core/options.ts';
import { KiB, MiB } from '../../../../devicemodel/core/units.ts';
import { MmioWindow } from '../../../../devicemodel/hw/platform/mmio-window.ts';
import {
  type CacheHierarchy,
  cacheHierarchy,
  placeBuffers,
  ssramBuffers,
} from '../../../../devicemodel/hw/platform/ssram/buffers.ts';
import { MAX_SSRAM_BYTES, parseSsramText, SsramOptions } from '../../../../devicemodel/hw/platform/ssram/options.ts';
import { guestRtct, isVersion2 } from '../../../../devicemodel/hw/platform/ssram/rtct.ts';
import { Ssram } from '../../../../devicemodel/hw/platform/ssram/ssram.ts';
import { FakePower } from '../../../support/fake-line.ts';

/** Two CPUs of each L2 cache, four of each L3 cache. */
const caches: CacheHierarchy = { l2Shift: 1, l3Shift: 2, isL3Inclusive: false };
const vcpus = [
  { lapicId: 2, pcpu: 2 },
  { lapicId: 3, pcpu: 3 },
  { lapicId: 4, pcpu: 4 },
];
const region = (cacheLevel: 2 | 3, which: 'all' | number[], sizeBytes: number) => ({
  cacheLevel,
  vcpus: which,
  sizeBytes,
});

test.each(['L2,VCPU=0,size=4k', 'L2,vcpu=0,SIZE=4k', 'L3,vcpu=All,size=4k'])(
  '--ssram %s is refused, as in C',
  (text) => {
    expect(() => parseSsramText(text)).toThrow(`"${text}" is not a cache region`);
  },
);

test.each(['l2,vcpu=0,size=4K', 'L2,vcpu=0,size=4k'])('--ssram %s', (text) => {
  expect(parseSsramText(text)).toEqual({ regions: [region(2, [0], 4 * KiB)] });
});

test.each(['L3,vcpu=ALL,size=1M', 'l3,vcpu=all,size=1m'])('--ssram %s', (text) => {
  expect(parseSsramText(text)).toEqual({ regions: [region(3, 'all', MiB)] });
});

test('the caches are what CPUID says of them', () => {
  // L1 data, L1 code, L2 for 2 CPUs, L3 for 12 (inclusive), none.
  const leaf = (type: number, level: number, cpus: number, edx = 0) => ({
    eax: type | (level << 5) | ((cpus - 1) << 14),
    edx,
  });
  const leaves = [leaf(1, 1, 2), leaf(2, 1, 2), leaf(3, 2, 2), leaf(3, 3, 12, 2), leaf(0, 0, 1)];
  expect(cacheHierarchy((i) => leaves[i] as { eax: number; edx: number })).toEqual({
    l2Shift: 1,
    l3Shift: 4,
    isL3Inclusive: true,
  });
});

describe('regions', () => {
  test('of one cache are one buffer; L2 comes before L3', () => {
    const buffers = ssramBuffers(
      [region(3, [0, 1], 8 * KiB), region(2, [0], 4 * KiB), region(2, [1], 4 * KiB), region(2, [2], 16 * KiB)],
      vcpus,
      caches,
    );
    placeBuffers(buffers, 0x7f00_0000, caches);
    expect(
      buffers.map(({ level, cacheId, sizeBytes, gpa, pcpus }) => [level, cacheId, sizeBytes, gpa, [...pcpus]]),
    ).toEqual([
      [3, 0, 8 * KiB, 0x7f00_6000, [2, 3]],
      [2, 1, 8 * KiB, 0x7f00_0000, [2, 3]],
      [2, 2, 16 * KiB, 0x7f00_2000, [4]],
    ]);
  });

  test('of L2 caches are in their inclusive L3 cache, too, before its own', () => {
    const inclusive = { ...caches, isL3Inclusive: true };
    const buffers = ssramBuffers(
      [region(2, [0], 4 * KiB), region(2, [2], 8 * KiB), region(3, [0], 16 * KiB)],
      vcpus,
      inclusive,
    );
    placeBuffers(buffers, 0x7f00_0000, inclusive);
    expect(
      buffers.map(({ level, cacheId, sizeBytes, inclusiveBytes, gpa }) => [
        level,
        cacheId,
        sizeBytes,
        inclusiveBytes,
        gpa,
      ]),
    ).toEqual([
      [2, 1, 4 * KiB, 0, 0x7f00_0000],
      [2, 2, 8 * KiB, 0, 0x7f00_5000],
      [3, 0, 16 * KiB, 4 * KiB, 0x7f00_1000],
      [3, 1, 0, 8 * KiB, 0x7f00_7000],
    ]);
  });

  test.each([
    ['a vCPU that does not exist', [region(2, [3], 4 * KiB)], 'there is no vCPU 3, the VM has 3'],
    ['vCPUs of two caches', [region(2, 'all', 4 * KiB)], 'vCPUs 0, 1, 2 do not share an L2 cache'],
  ] as const)('for %s are refused', (_, regions, message) => {
    expect(() => ssramBuffers([...regions.map((r) => ({ ...r }))], vcpus, caches)).toThrow(message);
  });
});

/** Compatibility 2.0, one latency, one entry of another kind. */
function hostRtct(version = 2): Uint8Array {
  const entries = [
    [0, version, 0, 0, 0],
    [8, 3, 0, 40],
    [3, 0xff],
  ].map(([type = 0, ...words]) => {
    const bytes = Buffer.alloc(8 + 4 * words.length);
    bytes.writeUInt16LE(bytes.length, 0);
    bytes.writeUInt16LE(1, 2);
    bytes.writeUInt32LE(type, 4);
    words.forEach((word, i) => {
      bytes.writeUInt32LE(word, 8 + 4 * i);
    });
    return bytes;
  });
  const table = Buffer.concat([Buffer.alloc(36), ...entries, Buffer.alloc(100)]);
  table.writeUInt32LE(table.length - 100, 4);
  return table;
}

const MACHINE = { memory: new GuestMemory([]), lowRamBytes: 0, highRamBytes: 0, vcpuCount: vcpus.length };

function host(rtct = hostRtct()) {
  const calls: string[] = [];
  const tcc: TccDriver = {
    regions: () => [
      { id: 0, level: 2, sizeBytes: 4 * KiB, ways: 0x3, hasCpu: () => true },
      { id: 1, level: 2, sizeBytes: 64 * KiB, ways: 0xc, hasCpu: (cpu) => cpu === 2 },
      { id: 2, level: 3, sizeBytes: 64 * KiB, ways: 0x30, hasCpu: (cpu) => cpu === 2 },
    ],
    request: ({ id }, sizeBytes) => {
      calls.push(`request ${id} ${sizeBytes}`);
      return { address: BigInt(id * 0x10000), dispose: () => calls.push(`dispose ${id}`) };
    },
    rtct: () => rtct,
    close: () => calls.push('close'),
  };
  const hsm = {
    passthrough: { unmapMmio: ({ gpa }: { gpa: number }) => calls.push(`unmap ${gpa.toString(16)}`) },
    mapRam: ({ gpa, sizeBytes, hostAddress }: { gpa: number; sizeBytes: number; hostAddress: bigint }) =>
      calls.push(`map ${gpa.toString(16)} ${sizeBytes} ${hostAddress.toString(16)}`),
  } as unknown as Hsm;
  const env = {
    hsm,
    log: silentLog,
    power: new FakePower(),
    window: new MmioWindow(),
    reserveIrq: () => {},
    machine: MACHINE,
    keep: new KeptOverLives().keep,
    vcpus: () => vcpus,
  };
  return { calls, env, tcc, caches: () => caches };
}

test('is mapped where RAM may be, told of in a table, and given back once', () => {
  const { calls, env, tcc, caches: hierarchy } = host();
  const options = { regions: [region(2, [0], 8 * KiB), region(3, [0], 16 * KiB)] };
  const device = new Ssram(options, env, { openTcc: () => tcc, caches: hierarchy });
  expect(device.reservedMemory).toEqual({ base: 0x7f00_0000, size: 0x80_0000 });
  expect(device.tables()).toEqual([]);
  device.start();
  expect(calls).toEqual([
    ...['request 1 8192', 'unmap 7f000000', 'map 7f000000 8192 10000'],
    ...['request 2 16384', 'unmap 7f002000', 'map 7f002000 16384 20000', 'close'],
  ]);
  const [table] = device.tables();
  const bytes = Buffer.from(table?.bytes ?? []);
  expect(bytes.subarray(0, 4).toString()).toBe('RTCT');
  expect(bytes.reduce((sum, byte) => sum + byte, 0) & 0xff).toBe(0);
  const words = (at: number, count: number) => Array.from({ length: count }, (_, i) => bytes.readUInt32LE(at + 4 * i));
  expect(words(36 + 8, 4)).toEqual([2, 0, 0, 0]);
  expect(words(60, 5)).toEqual([0x0001_0014, 6, 2, 1, 0xc]);
  expect(words(80, 8)).toEqual([0x0002_0020, 7, 2, 1, 0x7f00_0000, 0, 8192, 0]);
  expect(words(112, 5)).toEqual([0x0001_0014, 6, 3, 0, 0x30]);
  expect(words(132, 8)).toEqual([0x0002_0020, 7, 3, 0, 0x7f00_2000, 0, 16384, 0]);
  expect(words(164, 5)).toEqual([0x0001_0014, 8, 3, 0, 40]);
  expect(bytes.length).toBe(184);
  device.stop();
  device.stop();
  expect(calls.slice(7)).toEqual(['dispose 1', 'dispose 2']);
});

test.each([
  [
    'no room in the cache',
    [region(2, [0], 128 * KiB)],
    hostRtct(),
    /128|131072 bytes of the L2 cache of CPU 2: no region/,
  ],
  ['a table of version 1', [region(2, [0], 4 * KiB)], hostRtct(1), /RTCT of this host is not of version 2/],
])('%s: one line, and the module is closed', (_, regions, rtct, message) => {
  const { calls, env, tcc, caches: hierarchy } = host(rtct);
  const device = new Ssram({ regions }, env, { openTcc: () => tcc, caches: hierarchy });
  expect(() => device.start()).toThrow(message);
  expect(calls).toEqual(['close']);
});

test('a host without the module: what is missing, and what would bring it', () => {
  const { env } = host();
  const device = new Ssram({ regions: [region(2, [0], 4 * KiB)] }, env);
  expect(() => device.start()).toThrow(HostError);
  expect(() => device.start()).toThrow('--ssram: /dev/tcc/tcc_buffer: open: ENOENT');
});

test('a cache that cannot be had in the middle: what was taken goes back, once', () => {
  const { calls, env, tcc, caches: hierarchy } = host();
  const options = { regions: [region(2, [0], 8 * KiB), region(3, [0], 128 * KiB)] };
  const device = new Ssram(options, env, { openTcc: () => tcc, caches: hierarchy });
  expect(() => device.start()).toThrow(/131072 bytes of the L3 cache of CPU 2: no region/);
  expect(device.tables()).toEqual([]);
  device.stop();
  device.stop();
  expect(calls).toEqual(['request 1 8192', 'unmap 7f000000', 'map 7f000000 8192 10000', 'close', 'dispose 1']);
});

/** Whatever firmware may have written: entries of any size and type, a length that is not the table's. */
const anyRtct = fc
  .record({
    entries: fc.array(
      fc.record({
        sizeBytes: fc.oneof(fc.nat(40), fc.nat(0xffff)),
        type: fc.oneof(fc.nat(9), fc.nat(0xffff_ffff)),
        data: fc.uint8Array({ maxLength: 32 }),
      }),
      { maxLength: 12 },
    ),
    header: fc.uint8Array({ maxLength: 40 }),
    length: fc.option(fc.oneof(fc.nat(100), fc.nat(0xffff_ffff)), { nil: undefined }),
    cutBytes: fc.nat(64),
  })
  .map(({ entries, header, length, cutBytes }) => {
    const parts = entries.map(({ sizeBytes, type, data }) => {
      const bytes = Buffer.alloc(8 + data.length);
      bytes.writeUInt16LE(sizeBytes, 0);
      bytes.writeUInt32LE(type, 4);
      bytes.set(data, 8);
      return bytes;
    });
    const table = Buffer.concat([header, ...parts]);
    if (table.length >= 8) table.writeUInt32LE(length ?? table.length, 4);
    return new Uint8Array(table.subarray(0, Math.max(0, table.length - cutBytes)));
  });

test('any table of the host: the guest gets a whole one, with no more of it than latencies', () => {
  const buffers = ssramBuffers([region(2, [0], 4 * KiB)], vcpus, caches);
  fc.assert(
    fc.property(anyRtct, (hostTable) => {
      isVersion2(hostTable);
      const table = Buffer.from(guestRtct(buffers, new Map(), caches, hostTable));
      expect(table.readUInt32LE(4)).toBe(table.length);
      expect(table.length).toBeLessThanOrEqual(36 + 24 + 20 + 32 + hostTable.length);
      expect(table.reduce((sum, byte) => sum + byte, 0) & 0xff).toBe(0);
      const types: number[] = [];
      let at = 36;
      for (; at < table.length; at += table.readUInt16LE(at)) {
        expect(table.readUInt16LE(at)).toBeGreaterThanOrEqual(8);
        types.push(table.readUInt32LE(at + 4));
      }
      expect(at).toBe(table.length);
      expect(types.slice(0, 3)).toEqual([0, 6, 7]);
      expect(new Set(types.slice(3))).toEqual(new Set(types.length > 3 ? [8] : []));
    }),
    { numRuns: 1000 },
  );
});

test('any words of the option: refused, or regions that a VM may have', () => {
  const word = fc.constantFrom(
    ...[
      'L2',
      'l3',
      'L4',
      ',',
      ';',
      '=',
      'vcpu',
      'size',
      'all',
      '0',
      '99',
      '-1',
      '1.5',
      '4K',
      '8m',
      '9M',
      '0k',
      '5k',
      ' ',
    ],
  );
  const text = fc.oneof(
    fc.array(word, { maxLength: 16 }).map((words) => words.join('')),
    fc
      .array(fc.tuple(fc.constantFrom('2', '3', '4'), fc.nat(101), fc.nat(9000), fc.constantFrom('k', 'M', '')))
      .map((all) => all.map(([l, n, size, unit]) => `L${l},vcpu=${n},size=${size}${unit}`).join(';')),
  );
  fc.assert(
    fc.property(text, (words) => {
      let regions: SsramOptions['regions'];
      try {
        ({ regions } = checkOptions(SsramOptions, parseSsramText(words)));
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
        return;
      }
      expect(regions.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0)).toBeLessThanOrEqual(MAX_SSRAM_BYTES);
      for (const { sizeBytes, cacheLevel } of regions) {
        expect([sizeBytes > 0, sizeBytes % (4 * KiB), [2, 3].includes(cacheLevel)]).toEqual([true, 0, true]);
      }
    }),
    { numRuns: 2000 },
  );
});

test('any regions on any caches: each in its place, none over another, all in the range', () => {
  fc.assert(
    fc.property(
      fc.record({ l2Shift: fc.nat(6), l3Shift: fc.nat(12), isL3Inclusive: fc.boolean() }),
      fc.array(fc.record({ lapicId: fc.nat(0xffff_fffe), pcpu: fc.nat(127) }), { minLength: 1, maxLength: 8 }),
      fc.array(fc.tuple(fc.constantFrom(2, 3), fc.nat(8), fc.integer({ min: 1, max: 128 })), { maxLength: 16 }),
      (hierarchy, processors, wanted) => {
        const regions = wanted.map(([level, vcpu, pages]) => region(level as 2 | 3, [vcpu], pages * 4 * KiB));
        let buffers: ReturnType<typeof ssramBuffers>;
        try {
          buffers = ssramBuffers(regions, processors, hierarchy);
        } catch (error) {
          expect(error).toBeInstanceOf(ConfigError);
          return;
        }
        placeBuffers(buffers, 0x7f00_0000, hierarchy);
        let end = 0x7f00_0000;
        for (const { gpa, sizeBytes } of buffers.toSorted((a, b) => a.gpa - b.gpa || a.sizeBytes - b.sizeBytes)) {
          expect(gpa).toBe(end);
          end += sizeBytes;
        }
        expect(end).toBe(0x7f00_0000 + regions.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0));
      },
    ),
    { numRuns: 1000 },
  );
});
