import { describe, expect, test } from 'vitest';
import { benchmarkJson, benchmarkLines } from '../../cmd/benchmark.ts';
import { parseCommandLine } from '../../cmd/cli.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { BenchmarkPlan } from '../../library/benchmark.ts';
import { Command, kinds } from '../../library/benchmark-guest.ts';

const LOOPS = 0x3fff_ffff;

describe('what the guest is told', () => {
  /** Loops a millisecond of a guest whose every second round is disturbed. */
  const perMs = { work: 1000, port: 10, mmio: 20 };

  test.each([
    ['work, by CPU time', 'cpuMs'],
    ['exits, by the time that passes', 'passedMs'],
  ] as const)('%s', (_, clock) => {
    const plan = new BenchmarkPlan();
    const now = { passedMs: 5000, cpuMs: 40 };
    const told: string[] = [];
    for (let command = plan.next({ ...now }); command !== 0; command = plan.next({ ...now })) {
      const kind = kinds.find((k) => Command[k] >>> 0 === (command & ~LOOPS) >>> 0) ?? 'work';
      if (told.at(-1) !== kind) told.push(kind);
      // The other clock says nothing of use.
      now[clock] += (command & LOOPS) / perMs[kind];
      now[clock === 'cpuMs' ? 'passedMs' : 'cpuMs'] += 1000;
    }
    expect(told).toEqual(['work', 'port', 'mmio']);
    if (clock === 'cpuMs') {
      expect(plan.perSecond('work')).toBeCloseTo(1000 * perMs.work, 3);
    } else {
      expect(plan.perSecond('port')).toBeCloseTo(1000 * perMs.port, 3);
      expect(plan.perSecond('mmio')).toBeCloseTo(1000 * perMs.mmio, 3);
    }
  });

  test('short rounds are repeated twice as long, the first long one never counts', () => {
    const plan = new BenchmarkPlan();
    let cpuMs = 0;
    const lengths: number[] = [];
    for (;;) {
      const command = plan.next({ cpuMs, passedMs: 0 });
      if ((command & ~LOOPS) !== 0) break;
      // Code that is not compiled yet: slow at first, so that it seems long enough, and with the second round, too.
      cpuMs += command / 1000 + (lengths.length < 2 ? 500 : 0);
      lengths.push(command);
    }
    const doubled = [4000, 8000, 16_000, 32_000, 64_000, 128_000];
    expect(lengths).toEqual([4000, 4000, ...doubled, 256_000, 256_000, 256_000, 256_000]);
    expect(plan.perSecond('work')).toBeCloseTo(1e6, 3);
  });
});

const parse = (...argv: string[]) => parseCommandLine(argv, pciDrivers);

describe('the command line', () => {
  test('names the hypervisor, and nothing of a VM', () => {
    expect(parse('--benchmark')).toMatchObject({ action: 'benchmark', format: 'text', config: { hypervisor: 'auto' } });
    expect(parse('--benchmark=json', '--hypervisor', 'soft', '--cpu_affinity', '0,1')).toMatchObject({
      format: 'json',
      config: { hypervisor: 'soft', cpuAffinity: [0, 1], pci: [] },
    });
  });

  test.each([
    [['--benchmark=yaml'], /^--benchmark: "yaml" is not a format/],
    [['--benchmark', 'vm'], /^--benchmark: .* vm has no place/],
    [['--benchmark', '-m', '1g'], /^--benchmark: .* -m has no place/],
    [['-s', '0:0,hostbridge', '--benchmark'], /^--benchmark: .* -s has no place/],
    [['--benchmark', '--dry-run'], /^--benchmark: .* --dry-run has no place/],
    [['--benchmark', '--hypervisor', 'acrn'], /^--benchmark: .* ACRN/],
  ])('%j is refused with status 64', (argv, message) => {
    expect(() => parse(...argv)).toThrow(
      expect.objectContaining({ exitCode: 64, message: expect.stringMatching(message) }),
    );
  });
});

test('figures for people', () => {
  const figures = { instructionsPerSecond: 123_450_000, portExitsPerSecond: 2_000_000, mmioExitsPerSecond: 1 };
  expect(benchmarkLines({ hypervisor: 'soft', vcpus: 1, rounds: 5, ...figures })).toEqual([
    'hypervisor soft, 1 vCPU, median of 5 rounds each',
    '  instructions    123.5 M a second of CPU time',
    '  port exits     2000.0 k a second',
    '  MMIO exits        0.0 k a second',
  ]);
  expect(benchmarkJson({ hypervisor: 'kvm', vcpus: 2, rounds: 5, ...figures })).toMatchObject({
    schemaVersion: 1,
    vcpus: 2,
  });
});
