/** A command line, the file of it, and the command line of that: one VM. */
import { expect } from 'vitest';
import { parseCommandLine } from '../../cmd/cli.ts';
import { membersOf } from '../../cmd/config-command.ts';
import { argvOfFile, formatConfig, parseConfigFile } from '../../config/config-file.ts';
import type { PciDriverEntry } from '../../devicemodel/hw/registry.ts';

/** The configuration, or why there is none. */
function configOrError(argv: readonly string[], drivers: readonly PciDriverEntry[]): unknown {
  try {
    const parsed = parseCommandLine(argv, drivers);
    return 'config' in parsed ? parsed.config : parsed;
  } catch (error) {
    return (error as Error).message;
  }
}

/** What a command line says is what its file says, in both formats, and nothing is lost on the way back. */
export function goRound(argv: readonly string[], drivers: readonly PciDriverEntry[]): void {
  const config = configOrError(argv, drivers);
  if (typeof config !== 'object' || config === null || !('memoryBytes' in config)) {
    // What is refused is refused as a file, too, by the same words; help makes no file.
    expect(() => membersOf(argv, drivers)).toThrow(typeof config === 'string' ? config : 'starts no VM');
    return;
  }
  const members = membersOf(argv, drivers);
  for (const format of ['json', 'yaml'] as const) {
    const text = formatConfig(members, format);
    const file = parseConfigFile(`vm.${format}`, text);
    const back = argvOfFile(file);
    expect(configOrError(back, drivers)).toEqual(config);
    expect(formatConfig(membersOf(back, drivers), format)).toBe(text);
    expect(argvOfFile(parseConfigFile(`vm.${format}`, formatConfig(membersOf(back, drivers), format)))).toEqual(back);
    const fromFile = parseCommandLine(['--config', 'f'], drivers, () => file);
    expect('config' in fromFile && fromFile.config).toEqual(config);
  }
}
