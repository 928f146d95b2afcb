/** CPUID of a processor of this machine, by the kernel's /dev/cpu (cpuid(4)). */
import { closeSync, openSync, readSync } from 'node:fs';
import { HostError } from '../errors.ts';

const PATH = '/dev/cpu/0/cpuid';

export interface Cpuid {
  readonly eax: number;
  readonly ebx: number;
  readonly ecx: number;
  readonly edx: number;
}

/** @throws HostError if the kernel does not tell. */
export function readCpuid(leaf: number, subleaf: number): Cpuid {
  const bytes = Buffer.alloc(16);
  try {
    const fd = openSync(PATH, 'r');
    try {
      readSync(fd, bytes, 0, bytes.length, leaf + subleaf * 2 ** 32);
    } finally {
      closeSync(fd);
    }
  } catch (error) {
    const { errno = 0, code } = error as NodeJS.ErrnoException;
    throw new HostError(`${PATH}: ${code}`, Math.abs(errno), { hint: 'load the kernel module: modprobe cpuid' });
  }
  const word = (i: number) => bytes.readUInt32LE(4 * i);
  return { eax: word(0), ebx: word(1), ecx: word(2), edx: word(3) };
}
