/** Help texts. The only user of yargs, which takes longer to load than everything else here: import it lazily. */
import yargs from 'yargs';
import { type OptionSpec, optionGroups, optionTable } from '../config/option-table.ts';
import { optionHelp, optionUsage } from '../devicemodel/core/options.ts';
import type { PciDriverEntry } from '../devicemodel/hw/registry.ts';
import { CHAR_BACKEND_USAGE } from '../devicemodel/hw/uart/backends/spec.ts';
import type { HelpTopic } from './cli.ts';

/** Widest help; a wider terminal would only make lines harder to read. */
const MAX_COLUMNS = 110;

export async function helpText(topic: HelpTopic, drivers: readonly PciDriverEntry[], columns: number): Promise<string> {
  switch (topic.kind) {
    case 'options':
      return optionsHelp(columns);
    case 'drivers':
      return driversHelp(drivers);
    case 'driver':
      return driverHelp(topic.driver);
    case 'lpc':
      return lpcHelp;
  }
}

function optionsHelp(columns: number): Promise<string> {
  const program = yargs([])
    .locale('en')
    .scriptName('acrn-dm')
    .usage(
      'Usage: $0 [OPTIONS] NAME\n\nStart a User VM: NAME is its name in the hypervisor scenario, at most 15 bytes.',
    )
    .exitProcess(false)
    .help(false)
    .version(false)
    .wrap(Math.min(columns, MAX_COLUMNS))
    .epilogue(epilogue);
  for (const group of optionGroups) {
    for (const option of optionTable.filter((o) => o.group === group)) addOption(program, option);
  }
  return program.getHelp();
}

const epilogue = `\
Linux with a console on this terminal:
  acrn-dm -m 512m -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -k bzImage --cpu_affinity 0,1 vm1

Long options may be abbreviated and take their value behind = or as the next word. docs/option-reference.md tells more, \
docs/exit-codes.md what the exit status means.`;

function addOption(program: ReturnType<typeof yargs>, option: OptionSpec): void {
  const key = option.name ?? option.short;
  if (key === undefined) return;
  const isObsolete = option.group === 'Obsolete';
  program.option(key, {
    ...(option.name !== undefined && option.short !== undefined ? { alias: option.short } : {}),
    describe: option.metavar === undefined ? option.help : `${option.metavar}\n${option.help}`,
    group: isObsolete ? 'Obsolete, accepted with a warning:' : `${option.group}:`,
    // yargs would append [boolean] and [string], which say less than the placeholder.
    skipValidation: true,
  });
}

function driversHelp(drivers: readonly PciDriverEntry[]): string {
  const width = Math.max(0, ...drivers.map((d) => d.name.length));
  const lines = drivers.map((d) => {
    const { aliases = [] } = d;
    const others = aliases.length === 0 ? '' : ` (also ${aliases.join(', ')})`;
    return `  ${d.name.padEnd(width)}  ${d.summary}${others}`;
  });
  return [
    'PCI devices: -s [BUS:]SLOT[:FUNCTION],DRIVER[,OPTIONS], numbers in decimal',
    '',
    ...lines,
    '',
    '-s DRIVER,help shows the options of one.',
  ].join('\n');
}

function driverHelp(driver: PciDriverEntry): string {
  const help = optionHelp(driver.options);
  return [
    `${driver.name}: ${driver.summary}`,
    `usage: -s SLOT,${optionUsage(driver.name, driver.options)}`,
    ...help,
  ].join('\n');
}

const lpcHelp = [
  'Serial ports of the LPC bridge: -l comN[,BACKEND], with -s 1:0,lpc',
  '',
  '  com1  port 0x3f8, IRQ 4        com3  port 0x3e8, IRQ 6',
  '  com2  port 0x2f8, IRQ 3        com4  port 0x2e8, IRQ 7',
  '  com5  port 0x9000, IRQ 10, or as in -l com5,BACKEND,PORT,IRQ',
  '',
  'BACKEND is where the characters go; without one nothing is connected:',
  `  ${CHAR_BACKEND_USAGE}`,
  '  stdio: this terminal, put back as it was on exit; pty: a new pseudo terminal, its name is logged;',
  '  tcp and unix: a listening socket, tcp on 127.0.0.1 unless ADDRESS is given.',
].join('\n');
