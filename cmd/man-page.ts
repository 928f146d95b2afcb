/** The manual page and the shell completion of acrn-dm, made of the option table: tools/make-option-reference.mjs. */
import { type OptionSpec, optionGroups, optionTable } from '../config/option-table.ts';
import type { PciDriverEntry } from '../devicemodel/hw/registry.ts';
import type { Verb } from './acrnvm/completion.ts';

/** As roff reads it back: backslashes, dashes that are none, and lines that would be requests. */
function roff(text: string): string {
  return text
    .replaceAll('\\', '\\e')
    .replaceAll('-', '\\-')
    .replace(/^([.'])/gm, '\\&$1');
}

function names({ short, name }: OptionSpec): string[] {
  return [...(short === undefined ? [] : [`-${short}`]), ...(name === undefined ? [] : [`--${name}`])];
}

function entry(option: OptionSpec): string[] {
  const spelled = names(option).map((name) => `\\fB${roff(name)}\\fR`);
  const value =
    option.metavar === undefined ? '' : `${option.metavar.startsWith('[=') ? '' : ' '}\\fI${roff(option.metavar)}\\fR`;
  return ['.TP', `${spelled.join(', ')}${value}`, roff(option.help)];
}

/** `man acrn-dm`, in section 1. */
export function manPage(drivers: readonly PciDriverEntry[]): string {
  const options = optionGroups
    .filter((group) => group !== 'Obsolete')
    .flatMap((group) => [`.SS ${group}`, ...optionTable.filter((option) => option.group === group).flatMap(entry)]);
  const devices = drivers.flatMap(({ name, summary }) => ['.TP', `\\fB${roff(name)}\\fR`, roff(summary)]);
  return [
    '.\\" Made by tools/make-option-reference.mjs from the option table. Do not edit.',
    '.TH ACRN-DM 1 "" "acrn-dm" "User Commands"',
    '.SH NAME',
    'acrn\\-dm \\- launch a User VM and play its devices',
    '.SH SYNOPSIS',
    '\\fBacrn\\-dm\\fR [\\fIOPTIONS\\fR] \\fINAME\\fR',
    '.br',
    '\\fBacrn\\-dm\\fR \\fB\\-\\-config\\fR \\fIFILE\\fR [\\fIOPTIONS\\fR] [\\fINAME\\fR]',
    '.br',
    '\\fBacrn\\-dm config\\fR convert|argv|check|schema ...',
    '.SH DESCRIPTION',
    'Starts the User VM \\fINAME\\fR, at most 15 bytes, and serves it until it powers off. Of an option given twice the last',
    'counts, but for lists, which add up. Obsolete options are accepted with a warning.',
    '.SH OPTIONS',
    ...options,
    '.SH DEVICES',
    'of \\fB\\-s\\fR; \\fB\\-s\\fR \\fIDRIVER\\fR,help shows the options of one.',
    ...devices,
    '.SH EXIT STATUS',
    '0 after a power\\-off, 3 after a triple fault, 1 when the VM failed, otherwise after sysexits.h.',
    '.SH FILES',
    '.TP',
    '\\fI/run/acrn/vm/NAME/\\fR',
    'the lock and the API of a VM; \\fI$XDG_RUNTIME_DIR/acrn/vm/NAME/\\fR without root.',
    '.SH SEE ALSO',
    '\\fBacrnvm\\fR help; docs/ of the package.',
    '',
  ].join('\n');
}

/** `man acrnvm`: the client. */
export function clientManPage(verbs: readonly Verb[]): string {
  const entries = verbs.flatMap(({ usage, help }) => {
    const [name = '', ...rest] = usage.split(' ');
    return ['.TP', `\\fB${roff(name)}\\fR ${roff(rest.join(' '))}`.trimEnd(), roff(help)];
  });
  return [
    '.\\" Made by tools/make-option-reference.mjs from the commands. Do not edit.',
    '.TH ACRNVM 1 "" "acrn-dm" "User Commands"',
    '.SH NAME',
    'acrnvm \\- the User VMs that run here',
    '.SH SYNOPSIS',
    '\\fBacrnvm\\fR \\fICOMMAND\\fR [\\fIARGUMENTS\\fR] [\\fB\\-\\-json\\fR]',
    '.SH DESCRIPTION',
    'Asks a VM that acrn\\-dm runs, by its API. A VM is named by its name, or by the path of its socket.',
    '\\fB\\-\\-json\\fR answers in JSON.',
    '.SH COMMANDS',
    ...entries,
    '.SH EXIT STATUS',
    'That of acrn\\-dm for the same: 0, 64 for a wrong command line, 69 where nobody answers.',
    '.SH SEE ALSO',
    '\\fBacrn\\-dm\\fR(1)',
    '',
  ].join('\n');
}

/** For bash: options, files behind them, and drivers behind -s. */
export function bashCompletion(drivers: readonly PciDriverEntry[]): string {
  const words = optionTable.filter((option) => option.group !== 'Obsolete').flatMap(names);
  const slots = drivers.map(({ name }) => name);
  return `# Made by tools/make-option-reference.mjs from the option table. Do not edit.
_acrn_dm() {
  local word=\${COMP_WORDS[COMP_CWORD]} before=\${COMP_WORDS[COMP_CWORD-1]}
  case $before in
    -s|--pci_slot)
      case $word in
        *,*,*) ;;
        *,*) COMPREPLY=($(compgen -P "\${word%,*}," -W "${slots.join(' ')}" -- "\${word##*,}")) ;;
      esac ;;
    *)
      case $word in
        -*) COMPREPLY=($(compgen -W "${words.join(' ')}" -- "$word")) ;;
        *) COMPREPLY=($(compgen -f -- "$word")) ;;
      esac ;;
  esac
}
complete -o filenames -F _acrn_dm acrn-dm
`;
}
