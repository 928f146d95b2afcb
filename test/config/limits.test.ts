/** Limits of the process as /proc/self/limits has them, and which VM is too large for them. */
import { describe, expect, test } from 'vitest';
import { limitProblems } from '../../config/limits.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';

const MIB = 1 << 20;
const line = (name: string, value: string | number) => `${name.padEnd(26)}${String(value).padEnd(21)}unlimited\n`;
const vm = { pci: [], com: [], hypervisor: 'kvm', memoryBytes: 256 * MIB } as const;
const soft = { ...vm, hypervisor: 'soft' } as const;

// Mutation: leave a row out of limitsFor.
describe('a limit', () => {
  test.each([
    ['Max open files', 27, vm, /27 open files, .* 28 open files or more/, '-n'],
    ['Max data size', 90 * MIB, vm, /90 MiB of memory of its own, .* 96 MiB/, '-d'],
    ['Max data size', 300 * MIB, soft, /300 MiB of memory of its own, .* 424 MiB/, '-d'],
    ['Max address space', 900 * MIB, vm, /900 MiB of address space, .* 956 MiB/, '-v'],
  ] as const)('%s of %i', (name, limit, config, message, option) => {
    const [problem, ...others] = limitProblems(config, line(name, limit));
    expect(others).toEqual([]);
    expect(problem?.message).toMatch(message);
    expect(problem).toMatchObject({ exitCode: ExitCode.OsError, hint: expect.stringContaining(`ulimit ${option}`) });
    expect(limitProblems(config, line(name, 16_384 * MIB))).toEqual([]);
  });

  test.each(['Max open files', 'Max processes', 'Max data size', 'Max address space', 'Max file size'])(
    '%s that is none',
    (name) => expect(limitProblems(soft, line(name, 'unlimited'))).toEqual([]),
  );

  // Where there is enough there is no word: with 128 MiB, 342 MiB of data and 11,328 MiB of addresses were.
  test.each([
    ['Max data size', 342],
    ['Max address space', 11_328],
  ])('%s of %i MiB is enough for the software CPU', (name, mib) => {
    expect(limitProblems({ ...soft, memoryBytes: 128 * MIB }, line(name, mib * MIB))).toEqual([]);
  });

  test('of address space is needed beside the guest where WebAssembly keeps some free, and its memory in it', () => {
    const problems = (memoryBytes: number) =>
      limitProblems({ ...soft, memoryBytes }, line('Max address space', 10_900 * MIB));
    const isModest = Number.parseInt(process.versions.node, 10) >= 24;
    expect(problems(128 * MIB)).toHaveLength(isModest ? 0 : 1);
    expect(problems(128 * MIB)).toEqual(problems(1024 * MIB));
  });

  // Mutation: Number(UV_THREADPOOL_SIZE).
  test.each(['8x', '', 'abc', '100000', '-3'])('threads that nobody has: UV_THREADPOOL_SIZE=%s', (asked) => {
    const before = process.env['UV_THREADPOOL_SIZE'];
    process.env['UV_THREADPOOL_SIZE'] = asked;
    try {
      expect(limitProblems(vm, line('Max processes', 2000))).toEqual([]);
    } finally {
      if (before === undefined) delete process.env['UV_THREADPOOL_SIZE'];
      else process.env['UV_THREADPOOL_SIZE'] = before;
    }
  });

  test('what the kernel does not say is no limit', () => expect(limitProblems(soft, '')).toEqual([]));
});
