/** What can be found wrong with an order as a whole, however the host looks. */
import { ConfigError, DmError, ExitCode } from '../devicemodel/core/errors.ts';
import type { VmOrder } from './cli.ts';
import { formatSlotText } from './slot.ts';

/** Reasons why this VM cannot be run. Empty: it can. */
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
