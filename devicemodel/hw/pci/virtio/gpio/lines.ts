/** The lines of the host that a virtio-gpio device gets. */
import { HostError } from '../../../../core/errors.ts';
import { type GpioLine, LinuxGpioChip } from '../../../../core/host/gpio.ts';
import type { Log } from '../../../../core/log.ts';
import type { GpioChipOptions } from './options.ts';

/**
 * Take lines for this process alone, in the order they are named.
 * Compat: as with C, one that cannot be had is left out with a warning, and those after it move up.
 * @throws HostError if none can be had.
 */
export function openGpioLines(chips: readonly GpioChipOptions[], log: Log): GpioLine[] {
  const lines: GpioLine[] = [];
  const problems: HostError[] = [];
  const attempt = <T>(action: () => T): T | undefined => {
    try {
      return action();
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      problems.push(error);
      return undefined;
    }
  };
  for (const { chip: name, lines: wanted } of chips) {
    const chip = attempt(() => new LinuxGpioChip(name));
    if (chip === undefined) continue;
    for (const { line, alias } of wanted) {
      const taken = attempt(() => chip.take(line, alias));
      if (taken !== undefined) lines.push(taken);
    }
    chip.close();
  }
  if (lines.length === 0) {
    const reasons = problems.map((p) => p.message).join('; ');
    throw new HostError(`virtio-gpio: ${reasons}`, problems[0]?.errno ?? 0, {
      hint: '`gpioinfo` lists chips and lines',
    });
  }
  for (const problem of problems) log.warn(`${problem.message}: left out, the guest's numbers move up`);
  return lines;
}
