/** `acrn-dm config ...`: configuration files and command lines, one as the other. */
import {
  addMember,
  argvOfFile,
  type ConfigMembers,
  configJsonSchema,
  formatConfig,
  readConfigFile,
} from '../config/config-file.ts';
import { optionTable } from '../config/option-table.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import type { PciDriverEntry } from '../devicemodel/hw/registry.ts';
import { itemsInForce, parseCommandLine } from './cli.ts';
import { getoptLong } from './getopt.ts';

const usage = {
  convert: 'acrn-dm config convert [--yaml] -- OPTIONS NAME: the file that says what this command line says',
  argv: 'acrn-dm config argv FILE: the command line that says what the file says',
  check: 'acrn-dm config check FILE: whether the file can be understood',
  schema: "acrn-dm config schema: the file's JSON Schema",
} as const;
type Verb = keyof typeof usage;

/** `config` alone may be the name of a VM. */
export function isConfigCommand(argv: readonly string[]): boolean {
  return argv[0] === 'config' && argv[1] !== undefined && (argv[1] in usage || argv[1] === 'help');
}

/** @param argv behind `config`. @returns lines for standard output. @throws ConfigError */
export function runConfigCommand(argv: readonly string[], drivers: readonly PciDriverEntry[]): string[] {
  const [verb, ...rest] = argv as [Verb | 'help', ...string[]];
  switch (verb) {
    case 'help':
      return Object.values(usage);
    case 'schema':
      return [JSON.stringify(configJsonSchema(), undefined, 2)];
    case 'convert': {
      const format = rest[0] === '--yaml' ? 'yaml' : 'json';
      const words = rest.slice(format === 'yaml' ? 1 : 0);
      return [formatConfig(membersOf(words[0] === '--' ? words.slice(1) : words, drivers), format).trimEnd()];
    }
    case 'argv':
    case 'check': {
      const [path, ...more] = rest;
      if (path === undefined || more.length > 0)
        throw new ConfigError(`config ${verb}: give one file`, { hint: usage[verb] });
      const file = readConfigFile(path);
      // What is understood only as a whole is checked, too; a file without a name is for a command line with one.
      parseCommandLine(
        file.name === undefined ? ['--config', path, 'vm'] : ['--config', path],
        drivers,
        readConfigFile,
      );
      return verb === 'check' ? [`${path}: ok`] : [`acrn-dm ${argvOfFile(file).map(shellWord).join(' ')}`];
    }
  }
}

/**
 * A command line as members of a file. What says nothing about the VM (`--dry-run`, obsolete options) is not in it.
 * @throws ConfigError as the command line itself would be refused.
 */
export function membersOf(argv: readonly string[], drivers: readonly PciDriverEntry[]): ConfigMembers {
  const order = parseCommandLine(argv, drivers, readConfigFile);
  if (order.action !== 'run' && order.action !== 'dry-run') {
    throw new ConfigError('config convert: this command line starts no VM', { hint: usage.convert });
  }
  const members: ConfigMembers = { name: order.config.name };
  const given = [...getoptLong(argv, optionTable)].flatMap((item) => (item.kind === 'positional' ? [] : [item]));
  // As at a start: files first, wherever they stand.
  const files = given.flatMap(({ option, value }) => (option.id === 'config' ? [readConfigFile(value ?? '')] : []));
  for (const { option, text } of itemsInForce(files)) addMember(members, option, text);
  for (const { option, value } of given) if ('key' in option) addMember(members, option, value ?? '');
  return members;
}

/** As a shell reads it back. */
function shellWord(word: string): string {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}
