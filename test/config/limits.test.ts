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
    ['Max data size', 100 * MIB, vm, /100 MiB of memory of its own, .* 128 MiB/, '-d'],
    ['Max data size', 300 * MIB, soft, /300 MiB of memory of its own, .* 768 MiB/, '-d'],
    ['Max address space', 1000 * MIB, vm, /1000 MiB of address space, .* 1280 MiB/, '-v'],
    ['Max address space', 4096 * MIB, soft, /4096 MiB of address space, .* 12544 MiB/, '-v'],
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

  test('what the kernel does not say is no limit', () => expect(limitProblems(soft, '')).toEqual([]));
});
