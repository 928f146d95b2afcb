/** What can be found wrong with an order before the hypervisor is asked for anything. */
import fs from 'node:fs';
import path from 'node:path';
import type { BootConfig } from '../devicemodel/core/config.ts';
import { ConfigError, DmError, ExitCode, HostError } from '../devicemodel/core/errors.ts';
import { formatSize, KiB, MiB } from '../devicemodel/core/units.ts';
import type { VmOrder } from './cli.ts';
import { formatSlotText } from './slot.ts';

/** Sizes of firmware that ends at 4 GiB. [OVMF_SZ_LIMIT, OVMF_VARS_SZ_LIMIT] */
const MAX_OVMF_BYTES = 2 * MiB;
const MAX_OVMF_VARS_BYTES = 128 * KiB;
const MAX_OVMF_CODE_BYTES = MAX_OVMF_BYTES - MAX_OVMF_VARS_BYTES;

/** Reasons why this VM cannot be run, however the host looks. Empty: it can. */
export function problemsOf(order: VmOrder): DmError[] {
  const { config, later } = order;
  const problems: DmError[] = [];
  if (later.length > 0) {
    const list = later.map((slot) => `-s ${formatSlotText(slot)}`).join(', ');
    problems.push(
      new DmError(`${list}: this device comes in a later version`, {
        exitCode: ExitCode.Unavailable,
        hint: '-s help lists the devices there are',
      }),
    );
  }
  if (config.boot === undefined) {
    problems.push(
      new ConfigError(`VM "${config.name}" has no boot image`, {
        hint: 'give --kernel FILE, --ovmf FILE or --elf_file FILE; acrn-dm --help lists all options',
      }),
    );
  }
  return problems;
}

/**
 * Whether the boot files are there and have a possible size. Reads nothing but their size.
 * @throws HostError with the absolute path and the errno; ConfigError for a size that cannot be.
 */
export function checkBootFiles(boot: BootConfig): void {
  switch (boot.kind) {
    case 'bzimage':
      checkFile('--kernel', boot.kernelPath);
      if (boot.ramdiskPath !== undefined) checkFile('--ramdisk', boot.ramdiskPath);
      return;
    case 'elf':
      checkFile('--elf_file', boot.imagePath);
      return;
    case 'ovmf': {
      const { image } = boot;
      if (image.form === 'single') checkFile('--ovmf', image.path, MAX_OVMF_BYTES);
      else {
        checkFile('--ovmf code=', image.codePath, MAX_OVMF_CODE_BYTES);
        checkFile('--ovmf vars=', image.varsPath, MAX_OVMF_VARS_BYTES);
      }
    }
  }
}

function checkFile(option: string, file: string, maxBytes = Number.POSITIVE_INFINITY): void {
  const where = `${option}${option.endsWith('=') ? '' : ' '}${path.resolve(file)}`;
  let stat: fs.Stats;
  try {
    const fd = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NONBLOCK);
    try {
      stat = fs.fstatSync(fd);
    } finally {
      fs.closeSync(fd);
    }
  } catch (error) {
    const { code, errno, message } = error as NodeJS.ErrnoException;
    // `ENOENT: no such file or directory, open 'x'` without the call and the path, which is said already.
    const what = message.replace(/, open .*$/s, '');
    throw new HostError(`${where}: cannot be opened: ${what}`, Math.abs(errno ?? 0), {
      exitCode: code === 'EACCES' || code === 'EPERM' ? ExitCode.NoPermission : ExitCode.NoInput,
    });
  }
  const fail = (what: string) => {
    throw new ConfigError(`${where}: ${what}`, { exitCode: ExitCode.DataError });
  };
  if (stat.isDirectory()) fail('is a directory');
  // A device or a pipe has no size until it is read.
  if (!stat.isFile()) return;
  if (stat.size === 0) fail('the file is empty');
  if (stat.size > maxBytes) fail(`the file has ${formatSize(stat.size)}, at most ${formatSize(maxBytes)} are possible`);
}
