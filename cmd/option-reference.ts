/** docs/option-reference.md, made from the option table and the drivers' schemas: tools/make-option-reference.mjs. */
import { type OptionSpec, optionGroups, optionTable } from '../config/option-table.ts';
import { type OptionSchema, optionMeta, optionUsage } from '../devicemodel/core/options.ts';
import { type AnyPlatformDriver, type PciDriverEntry, platformDrivers } from '../devicemodel/hw/registry.ts';
import { CHAR_BACKEND_USAGE } from '../devicemodel/hw/uart/backends/spec.ts';

export function optionReference(drivers: readonly PciDriverEntry[]): string {
  const all: readonly AnyPlatformDriver[] = platformDrivers;
  const lists = [
    '`-s`',
    '`-l`',
    '`--logger_setting`',
    ...all.filter((d) => d.isList === true).map((d) => `\`--${d.name}\``),
  ];
  const lines = [
    '# Options of acrn-dm',
    '',
    '<!-- Made by tools/make-option-reference.mjs from config/option-table.ts and the drivers. Do not edit. -->',
    '',
    '`acrn-dm [OPTIONS] NAME` starts the User VM NAME, 1 to 15 bytes. The manners are those of getopt_long: options and the',
    'name in any order, `--opt=value` or `--opt value`, `-m256m` or `-m 256m`, flags in one word (`-Yv`), unambiguous',
    'beginnings of long names (`--mem`), `--` before a name that starts with a dash. Of an option given twice the last',
    `counts, except ${lists.join(', ')}, which add up.`,
  ];
  for (const group of optionGroups) {
    lines.push('', `## ${group}`, '');
    if (group === 'Obsolete') lines.push('Accepted with one warning, so that old launch scripts still start.', '');
    lines.push('| Option | Meaning |', '| --- | --- |');
    for (const option of optionTable.filter((o) => o.group === group)) {
      lines.push(`| ${spelling(option)} | ${cell(option.help)} |`);
    }
  }
  lines.push(
    '',
    '## PCI devices: `-s [BUS:]SLOT[:FUNCTION],DRIVER[,OPTIONS]`',
    '',
    'Numbers are decimal: bus 0 (others are those below a root-port), slot 0 to 31, function 0 to 7, separated by `:`, `/` or `.`.',
  );
  for (const driver of drivers) lines.push(...driverSection(driver));
  lines.push('', '## Devices of the board');
  for (const driver of platformDrivers) lines.push(...boardSection(driver));
  lines.push(
    '',
    '## Serial ports: `-l comN[,BACKEND]`',
    '',
    'They need the LPC bridge, `-s 1:0,lpc`. Without a back end nothing is connected.',
    '',
    '| Port | I/O ports | IRQ |',
    '| --- | --- | --- |',
    '| com1 | 0x3f8 | 4 |',
    '| com2 | 0x2f8 | 3 |',
    '| com3 | 0x3e8 | 6 |',
    '| com4 | 0x2e8 | 7 |',
    '| com5 | 0x9000, or PORT of `com5,BACKEND,PORT,IRQ` | 10, or IRQ |',
    '',
    `BACKEND is ${CHAR_BACKEND_USAGE}.`,
    '',
  );
  return lines.join('\n');
}

function spelling(option: OptionSpec): string {
  const names = [
    option.short === undefined ? [] : [`-${option.short}`],
    option.name === undefined ? [] : [`--${option.name}`],
  ];
  const metavar = option.metavar ?? '';
  const text = `${names.flat().join(', ')}${metavar === '' || metavar.startsWith('[=') ? metavar : ` ${metavar}`}`;
  return `\`${cell(text)}\``;
}

function driverSection(driver: PciDriverEntry): string[] {
  const others = (driver.aliases ?? []).map((alias) => `\`${alias}\``);
  const lines = [
    '',
    `### ${driver.name}`,
    '',
    `${sentence(driver.summary)}${others.length === 0 ? '' : ` Also ${others.join(', ')}.`}`,
  ];
  lines.push('', '```', `-s SLOT,${optionUsage(driver.name, driver.options)}`, '```', ...optionRows(driver.options));
  return lines;
}

function boardSection(driver: AnyPlatformDriver): string[] {
  const usage = ['', '```', [`--${driver.name}`, driver.arg].join(' ').trimEnd(), '```'];
  return ['', `### --${driver.name}`, '', sentence(driver.summary), ...usage, ...optionRows(driver.options)];
}

function optionRows(schema: OptionSchema): string[] {
  const rows = Object.entries(schema.entries).flatMap(([key, entry]) => {
    const { arg, help } = optionMeta(entry);
    return help === undefined ? [] : [`| \`${cell(arg ?? key)}\` | ${cell(help)} |`];
  });
  return rows.length === 0 ? [] : ['', '| Option | Meaning |', '| --- | --- |', ...rows];
}

function sentence(text: string): string {
  return `${text.charAt(0).toUpperCase()}${text.slice(1)}${text.endsWith('.') ? '' : '.'}`;
}

/** A table cell ends at a bar. */
function cell(text: string): string {
  return text.replaceAll('|', '\\|');
}
