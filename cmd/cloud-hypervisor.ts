/**
 * The program under the name `cloud-hypervisor`: that program's command line, for the parts there are here. Its words
 * become the body of vm.create, and that becomes options of ours.
 */
import { optionsOfChVm } from '../config/cloud-hypervisor.ts';
import { readConfigFile } from '../config/config-file.ts';
import { didYouMean } from '../config/suggest.ts';
import { CH_VERSION } from '../control/api/ch-version.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { parseBytes } from '../devicemodel/core/units.ts';
import { pciDrivers } from '../devicemodel/hw/registry.ts';
import { parseCommandLine, type VmOrder } from './cli.ts';

/** Until a client names it otherwise, a VM is called after its process. */
const nameOf = (asked: string | undefined) => asked ?? `ch-${process.pid}`;

/** @param defaults words of our command line that the body may change. @throws ConfigError, RefusedError. */
export function orderOfChVm(
  body: unknown,
  defaults: readonly string[] = [],
): { readonly order: VmOrder; readonly config: Record<string, unknown> } {
  const { argv, name, config } = optionsOfChVm(body);
  const order = parseCommandLine([...defaults, ...argv, nameOf(name)], pciDrivers, readConfigFile);
  if (order.action !== 'run') throw new ConfigError('this describes no VM');
  return { order, config };
}

type Parameters_ = Readonly<Record<string, string>>;

/** `path=/a,readonly=on` */
function parametersOf(option: string, text: string): Parameters_ {
  const pairs = text.split(',').map((word) => {
    const equals = word.indexOf('=');
    if (equals < 0) throw new ConfigError(`${option} ${text}: "${word}" is not NAME=VALUE`);
    return [word.slice(0, equals), word.slice(equals + 1)] as const;
  });
  return Object.fromEntries(pairs);
}

/** `512M`, `1G`; a plain number is bytes. */
function bytesOf(option: string, text: string): number {
  const bytes = parseBytes(text, 'KMG');
  if (bytes === undefined) throw new ConfigError(`${option}: "${text}" is no size`);
  return bytes;
}

function countOf(option: string, text: string): number {
  if (!/^[1-9]\d{0,8}$/.test(text)) throw new ConfigError(`${option}: "${text}" is no number of vCPUs`);
  return Number(text);
}

/** @throws ConfigError: a disk that shall not be written to must not be for a word's sake. */
function isOn(option: string, name: string, text: string): boolean {
  if (text === 'on' || text === 'true') return true;
  if (text === 'off' || text === 'false') return false;
  throw new ConfigError(`${option}: ${name}=${text} is not on, off, true or false`);
}

/** `off`, `null`, `pty`, `tty`, `file=PATH`, `socket=PATH`. */
function consoleOf(option: string, text: string): object {
  const [, word = '', path] = /^([^=]*)(?:=(.*))?$/s.exec(text) ?? [];
  const mode = { off: 'Off', null: 'Null', pty: 'Pty', tty: 'Tty', file: 'File', socket: 'Socket' }[word];
  if (mode === undefined)
    throw new ConfigError(`${option}: "${text}" is not off, null, pty, tty, file=PATH or socket=PATH`);
  return mode === 'Socket' ? { mode, socket: path } : { mode, ...(path === undefined ? {} : { file: path }) };
}

type Members = Record<string, unknown>;
type Take = (vm: Members, value: string, option: string) => void;

const payload =
  (member: string): Take =>
  (vm, value) => {
    vm['payload'] = { ...(vm['payload'] as Members | undefined), [member]: value };
  };
const listed =
  (member: string, switches: readonly string[] = []): Take =>
  (vm, value, option) => {
    const entries = Object.entries(parametersOf(option, value)).map(([name, text]) => [
      name,
      switches.includes(name) ? isOn(option, name, text) : text,
    ]);
    vm[member] = [...((vm[member] as object[] | undefined) ?? []), Object.fromEntries(entries)];
  };
/** Is as it is asked for, or makes no difference to a guest. */
const nothing: Take = () => {};

const options: Readonly<Record<string, Take>> = {
  kernel: payload('kernel'),
  cmdline: payload('cmdline'),
  initramfs: payload('initramfs'),
  firmware: payload('firmware'),
  disk: listed('disks', ['readonly', 'direct']),
  net: listed('net'),
  device: listed('devices'),
  memory: (vm, value, option) => {
    const { size = '512M', ...rest } = parametersOf(option, value);
    vm['memory'] = { ...rest, size: bytesOf(option, size) };
  },
  cpus: (vm, value, option) => {
    const { boot = '1', max = boot, ...rest } = parametersOf(option, value);
    vm['cpus'] = { ...rest, boot_vcpus: countOf(option, boot), max_vcpus: countOf(option, max) };
  },
  rng: (vm, value, option) => void (vm['rng'] = parametersOf(option, value)),
  console: (vm, value, option) => void (vm['console'] = consoleOf(option, value)),
  serial: (vm, value, option) => void (vm['serial'] = consoleOf(option, value)),
  seccomp: nothing,
  'log-file': nothing,
};
const flags: ReadonlySet<string> = new Set(['watchdog']);
/** Of the process: the same option here. */
const ours: ReadonlySet<string> = new Set(['api-socket', 'event-monitor']);
/** May have several values behind one option. */
const lists: ReadonlySet<string> = new Set(['disk', 'net', 'device']);

export type ChCommandLine =
  | { readonly kind: 'print'; readonly lines: readonly string[] }
  /** Words of our own command line. */
  | { readonly kind: 'argv'; readonly argv: readonly string[] };

/** @param argv without the program's name. @throws ConfigError, RefusedError. */
export function parseChCommandLine(argv: readonly string[]): ChCommandLine {
  if (argv.includes('--version') || argv.includes('-V')) {
    return { kind: 'print', lines: [`cloud-hypervisor v${CH_VERSION}`] };
  }
  if (argv.includes('--help') || argv.includes('-h')) {
    const known = [...Object.keys(options), ...flags, ...ours].map((name) => `--${name}`);
    return { kind: 'print', lines: [`acrn-dm as cloud-hypervisor takes ${known.join(', ')}, --version`] };
  }
  // Of that program: a console on the terminal, and no serial port.
  const vm: Members = { console: { mode: 'Tty' }, rng: { src: '/dev/urandom' } };
  const process_: string[] = [];
  let hasVm = false;
  for (let at = 0; at < argv.length; at++) {
    const word = argv[at] as string;
    if (/^-v+$/.test(word)) continue;
    const [, name, attached] = /^--([a-z-]+)(?:=(.*))?$/s.exec(word) ?? [];
    if (name === undefined) throw new ConfigError(`"${word}" is no option`);
    if (flags.has(name)) {
      vm[name] = true;
      continue;
    }
    const take = options[name];
    if (take === undefined && !ours.has(name)) throw unknownOption(name);
    const values = attached === undefined ? [] : [attached];
    while (
      values.length === 0 ||
      (attached === undefined && lists.has(name) && argv[at + 1]?.startsWith('--') === false)
    ) {
      const value = argv[++at];
      if (value === undefined) throw new ConfigError(`--${name} needs a value`);
      values.push(value);
    }
    if (take === undefined) process_.push(...values.flatMap((value) => [`--${name}`, value]));
    else for (const value of values) take(vm, value, `--${name}`);
    hasVm ||= take !== undefined && take !== nothing;
  }
  if (!hasVm) return { kind: 'argv', argv: process_ };
  return { kind: 'argv', argv: [...optionsOfChVm(vm).argv, ...process_, nameOf(undefined)] };
}

function unknownOption(name: string): ConfigError {
  const guess = didYouMean(name, [...Object.keys(options), ...flags, ...ours]);
  return new ConfigError(`--${name} is not there under this name of the program`, {
    hint: guess === undefined ? 'cloud-hypervisor --help lists what is' : `did you mean --${guess}?`,
  });
}
