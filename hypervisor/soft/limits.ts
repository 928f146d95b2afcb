/** What the software CPU cannot run, said before anything is created; also by `--dry-run`. Its CPU is not loaded here. */
import { isKernel64Bit } from '../../devicemodel/core/boot/bzimage.ts';
import { isElf64Bit } from '../../devicemodel/core/boot/elf.ts';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { ConfigError, ExitCode } from '../../devicemodel/core/errors.ts';
import { formatSize, MiB } from '../../devicemodel/core/units.ts';

/** The module's addresses are signed in places, and its heap lives beside guest RAM; RAM comes in units of 128 KiB. */
export const MAX_MEMORY_BYTES = 2048 * MiB - 128 * 1024;

const ELSEWHERE = 'run it with --hypervisor kvm or on a Service VM of ACRN';

/** For `memoryBytes` beyond the engine's reach. */
export function tooMuchMemory(memoryBytes: number): ConfigError {
  return new ConfigError(`the software engine cannot give a VM ${formatSize(memoryBytes)} of memory`, {
    hint: `ask for at most ${Math.floor(MAX_MEMORY_BYTES / MiB)}M: its CPU has 32-bit addresses`,
    exitCode: ExitCode.Unavailable,
  });
}

/** Why this VM cannot run on the software CPU; empty: it can. @throws ConfigError for a kernel that cannot be read. */
export function softProblems(config: Pick<VmConfig, 'memoryBytes' | 'boot'>): ConfigError[] {
  const problems: ConfigError[] = [];
  const { boot } = config;
  const unavailable = (text: string, hint: string) =>
    problems.push(new ConfigError(text, { hint, exitCode: ExitCode.Unavailable }));
  if (config.memoryBytes > MAX_MEMORY_BYTES) problems.push(tooMuchMemory(config.memoryBytes));
  if (boot?.kind === 'ovmf') {
    unavailable(
      '--ovmf: the software engine cannot run firmware',
      `start a 32-bit kernel with -k or -E, or ${ELSEWHERE}`,
    );
  }
  if (boot?.kind === 'bzimage' && isKernel64Bit(boot.kernelPath)) {
    unavailable(
      `-k: kernel image ${boot.kernelPath} is a 64-bit kernel (xloadflags), the software engine's CPU has 32 bits`,
      `take a 32-bit kernel (Debian: linux-image-686), or ${ELSEWHERE}`,
    );
  }
  if (boot?.kind === 'elf' && isElf64Bit(boot.imagePath)) {
    unavailable(
      `-E: ELF image ${boot.imagePath} is a 64-bit one, the software engine's CPU has 32 bits`,
      `take a 32-bit image, or ${ELSEWHERE}`,
    );
  }
  return problems;
}

/** What the engine does differently from what was asked, for one line each. */
export function softNotes({
  cpuAffinity,
  rtvm,
  trusty,
}: Pick<VmConfig, 'cpuAffinity'> & Partial<Pick<VmConfig, 'rtvm' | 'trusty'>>): string[] {
  const asked = cpuAffinity.length;
  return [
    ...(asked > 1 ? [`--cpu_affinity names ${asked} CPUs; the software engine gives the VM one vCPU`] : []),
    ...(rtvm === true ? ['--rtvm: the software engine has no real time, the VM runs as any other'] : []),
    ...(trusty === true ? ['--enable_trusty: the software engine has no secure world, the guest finds none'] : []),
  ];
}
