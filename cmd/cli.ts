/**
 * The command line → what to do. Nothing is printed, and nothing on the host is touched but the files of `--config`, by
 * whoever was handed in to read them.
 */
import type { ConfigFile, ConfigItem } from '../config/config-file.ts';
import { type OptionId, optionTable, type VmOption } from '../config/option-table.ts';
import { type Notice, parsePath } from '../config/option-values.ts';
import { located, parseSlotText } from '../config/slot.ts';
import { applyOption, argvWording, type DraftedVm, emptyDraft, finishDraft, type VmDraft } from '../config/vm-draft.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError, ExitCode } from '../devicemodel/core/errors.ts';
import { MiB } from '../devicemodel/core/units.ts';
import { lookupPciDriver, type PciDriverEntry, platformDrivers } from '../devicemodel/hw/registry.ts';
import { type GetoptItem, getoptLong } from './getopt.ts';

/** What `--help`, `-s help`, `-l help` or `-s DRIVER,help` asks for. */
export type HelpTopic =
  | { readonly kind: 'options' }
  | { readonly kind: 'drivers' }
  | { readonly kind: 'lpc' }
  | { readonly kind: 'driver'; readonly driver: PciDriverEntry };

/** A VM as ordered on the command line. */
export interface VmOrder extends DraftedVm {
  readonly action: 'run' | 'dry-run';
  readonly format: 'text' | 'json';
  readonly debug: boolean;
  /** Of a dry run: where the tree of another host is. */
  readonly hostRoot: string | undefined;
}

/** No VM yet: the API brings one. */
export interface ServeOrder {
  readonly action: 'serve';
  readonly options: Pick<VmConfig, 'apiSocket' | 'eventMonitor' | 'socketGroup' | 'afterEnd' | 'logger' | 'logFormat'>;
  /** What was said at the start counts for each VM that the API brings, unless that says otherwise. */
  readonly argv: readonly string[];
  readonly notices: readonly Notice[];
  readonly debug: boolean;
}

/** A guest of the program's own, on the hypervisor that is named. */
export interface BenchmarkOrder {
  readonly action: 'benchmark';
  readonly format: 'text' | 'json';
  readonly config: VmConfig;
  readonly debug: boolean;
}

export type CommandLine =
  | { readonly action: 'help'; readonly topic: HelpTopic }
  | { readonly action: 'version' }
  | { readonly action: 'list-passthru'; readonly format: 'text' | 'json'; readonly hostRoot: string | undefined }
  | BenchmarkOrder
  | ServeOrder
  | VmOrder;

const BENCHMARK_MEMORY_BYTES = 4 * MiB;

/** What is asked of the program, and the VM it is about. */
interface Collected {
  readonly vm: VmDraft;
  dryRun: 'text' | 'json' | undefined;
  listPassthru: 'text' | 'json' | undefined;
  benchmark: 'text' | 'json' | undefined;
  hostRoot: string | undefined;
  debug: boolean;
}

type Apply = (into: Collected, value: string, spelled: string) => void;

const obsolete: Apply = (into, _value, spelled) => {
  const option: { readonly help: string } | undefined = optionTable.find(
    (o) => spelled === `--${o.name}` || spelled === `-${o.short}`,
  );
  into.vm.notices.push({ level: 'warn', text: `${spelled}: obsolete, ignored: ${option?.help ?? ''}` });
};

/** Options that say nothing about the VM. */
const apply: Record<Exclude<OptionId, 'help' | 'version' | VmOption['id']>, Apply> = {
  // Read before everything else, since it counts as if it stood in front of it.
  config: () => {},
  'dry-run': (c, value) => void (c.dryRun = formatOf(value)),
  'list-passthru': (c, value) => void (c.listPassthru = formatOf(value)),
  benchmark: (c, value) => void (c.benchmark = formatOf(value)),
  'host-root': (c, value) => void (c.hostRoot = parsePath(value)),
  debug: (c) => void (c.debug = true),

  acpi: obsolete,
  mptgen: obsolete,
  iasl: (c, _value, spelled) => {
    c.vm.notices.push({ level: 'info', text: `${spelled}: not needed, ACPI tables are made without a compiler` });
  },
  mac_seed: obsolete,
  vsbl: obsolete,
  part_info: obsolete,
  ioc_node: obsolete,
  gvtargs: obsolete,
  uuid: obsolete,
  ncpus: obsolete,
  privil_vm: obsolete,
  pincpu: obsolete,
  vmcfg: obsolete,
  dump: obsolete,
  ptdev_no_reset: obsolete,
  ptdev_msi: obsolete,
  virtio_msix: obsolete,
  psram: obsolete,
  apcidev_pt: (c, value, spelled) => {
    c.vm.notices.push({
      level: 'warn',
      text: `${spelled}: releases 2.1 and 2.2 spelled --acpidev_pt so, it is taken as that`,
    });
    applyOption(c.vm, 'acpidev_pt', value, spelled);
  },
  '-T': obsolete,
  '-W': obsolete,
  '-C': obsolete,
  '-x': obsolete,
};

function formatOf(value: string): 'text' | 'json' {
  const format = value === '' ? 'text' : value;
  if (format !== 'text' && format !== 'json') throw new ConfigError(`"${value}" is not a format, it is json or text`);
  return format;
}

/**
 * @param argv without the program's name.
 * @param drivers the PCI drivers there are.
 * @param readConfig reads a file of `--config`: config/config-file.ts, which is not loaded for whoever has none.
 * @throws ConfigError: one line that says where, what and, in its hint, what to write instead.
 */
export function parseCommandLine(
  argv: readonly string[],
  drivers: readonly PciDriverEntry[],
  readConfig: (path: string) => ConfigFile = noConfig,
): CommandLine {
  const collected: Collected = {
    vm: emptyDraft(argvWording),
    dryRun: undefined,
    listPassthru: undefined,
    benchmark: undefined,
    hostRoot: undefined,
    debug: false,
  };
  const names: string[] = [];
  /** How a word that was not meant so may have become a name. */
  let slip: string | undefined;
  let before: GivenOption | undefined;
  const given = new Map<OptionId, string>();
  /** As spelled: what means nothing to a benchmark. */
  const besideBenchmark: string[] = [];
  const files = configPaths(argv).map(readConfig);
  const inFiles = itemsInForce(files);
  applyItems(collected.vm, inFiles);
  const nameInFile = files.findLast((file) => file.name !== undefined)?.name;
  for (const item of getoptLong(argv, optionTable)) {
    if (item.kind === 'positional') {
      names.push(item.text);
      slip ??= before === undefined ? undefined : slipOf(before, item.text);
      before = undefined;
      continue;
    }
    before = item;
    const { spelled, value } = item;
    const id = item.option.id;
    if (id === 'help') return { action: 'help', topic: { kind: 'options' } };
    if (id === 'version') return { action: 'version' };
    const topic = helpTopic(id, value, drivers);
    if (topic !== undefined) return { action: 'help', topic };
    // There may be several -l, so the line says which one it means; parseSlots does the same for -s.
    const where = id === 'lpc' ? `${spelled} ${value}` : spelled;
    noteRepetition(given, item, collected.vm);
    if (!benchmarkOptions.has(id)) besideBenchmark.push(spelled);
    try {
      if ('key' in item.option) applyOption(collected.vm, item.option.id, value ?? '', spelled);
      else apply[item.option.id as keyof typeof apply](collected, value ?? '', spelled);
    } catch (error) {
      throw located(where, error);
    }
  }
  if (collected.benchmark !== undefined) {
    return benchmarkOrderOf(collected, collected.benchmark, [...besideBenchmark, ...names], drivers);
  }
  if (collected.listPassthru !== undefined) {
    return { action: 'list-passthru', format: collected.listPassthru, hostRoot: collected.hostRoot };
  }
  if (collected.hostRoot !== undefined && collected.dryRun === undefined) {
    throw new ConfigError('--host-root: a VM runs with the devices of this host', {
      hint: 'it goes with --dry-run and --list-passthru',
    });
  }
  if (names.length === 0 && nameInFile !== undefined) names.push(nameInFile);
  try {
    return orderOf(collected, names, drivers, argv, names.length === 0 ? lostName(before, argv) : slip);
  } catch (error) {
    throw placedInFile(inFiles, error);
  }
}

type GivenOption = Extract<GetoptItem<(typeof optionTable)[number]>, { readonly kind: 'option' }>;

/** Options whose values add up, or where each is something of its own. */
const isList = ({ id, shape }: VmOption): boolean =>
  shape === 'texts' || id === 'cpu_affinity' || platformDrivers.some((d) => d.name === id && d.isList === true);

/** Of two values of one option the last counts: who wrote both may have meant the other. */
function noteRepetition(
  given: Map<OptionId, string>,
  { option, value, spelled }: GivenOption,
  { notices }: VmDraft,
): void {
  if (!('key' in option) || value === undefined || isList(option)) return;
  const before = given.get(option.id);
  given.set(option.id, value);
  if (before === undefined || before === value) return;
  notices.push({ level: 'warn', text: `${spelled} ${value}: replaces "${before}" of an earlier ${spelled}` });
}

/** How the word behind an option may have got there, other than as a name: `--dry-run json`, `-kernel bzImage`. */
function slipOf({ option, spelled, value }: GivenOption, word: string): string | undefined {
  if (value === undefined) {
    if (option.arg === 'optional') return /^(json|text)$/.test(word) ? `write ${spelled}=${word}` : undefined;
    if (option.argPattern === undefined || !/[,=]/.test(word)) return undefined;
    return `"${word}" is no value of ${spelled}: write ${spelled} ${option.metavar ?? 'VALUE'}`;
  }
  const long = optionTable.find(({ name }) => name !== undefined && `-${name}` === `${spelled}${value}`);
  return long === undefined ? undefined : `did you mean --${long.name}? ${spelled} has the value "${value}" here`;
}

const USAGE = 'usage: acrn-dm [OPTIONS] NAME';

/** The last option took the last word, which may have been meant as the name, or not: the usage is said in any case. */
function lostName(last: GivenOption | undefined, argv: readonly string[]): string | undefined {
  const isTaken = last?.value !== undefined && last.value === argv.at(-1) && !last.value.startsWith('-');
  return isTaken ? `${USAGE}; the last word, "${last.value}", is the value of ${last.spelled}` : undefined;
}

/** What goes with --benchmark: where its guest runs. */
const benchmarkOptions: ReadonlySet<OptionId> = new Set(['benchmark', 'hypervisor', 'cpu_affinity', 'debug']);

/** @param others words that do not go with it. */
function benchmarkOrderOf(
  { vm, debug }: Collected,
  format: 'text' | 'json',
  [other]: readonly string[],
  drivers: readonly PciDriverEntry[],
): BenchmarkOrder {
  if (other !== undefined) {
    throw new ConfigError(`--benchmark: runs a guest of its own, ${other} has no place there`, {
      hint: 'beside it go --hypervisor, --cpu_affinity and --debug',
    });
  }
  if (vm.hypervisor === 'acrn') {
    throw new ConfigError('--benchmark: measures the embedded hypervisor, ACRN is none', {
      hint: 'use --hypervisor soft, kvm or auto',
    });
  }
  vm.memoryBytes = BENCHMARK_MEMORY_BYTES;
  const { config } = finishDraft(vm, `bench-${process.pid}`, drivers);
  return { action: 'benchmark', format, config, debug };
}

const noConfig = (): never => {
  throw new ConfigError('--config: no file is read here');
};

/** Whether a word may be `--config`, or its beginning: only then is it worth loading what reads files. */
export function mayNameConfig(argv: readonly string[]): boolean {
  return argv.some((word) => word.startsWith('--co'));
}

/**
 * The files of `--config`, unless help or the version is asked for. What is wrong with the rest is said in its turn.
 * @throws ConfigError for what is no path.
 */
function configPaths(argv: readonly string[]): string[] {
  const texts: string[] = [];
  if (!mayNameConfig(argv)) return texts;
  try {
    for (const item of getoptLong(argv, optionTable)) {
      if (item.kind === 'positional') continue;
      if (item.option.id === 'help' || item.option.id === 'version') return [];
      if (item.option.id === 'config') texts.push(item.value ?? '');
    }
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
  }
  try {
    return texts.map(parsePath);
  } catch (error) {
    throw located('--config', error);
  }
}

/** What all files together say, in their order: a flag that a later one takes back is not in it. */
export function itemsInForce(files: readonly ConfigFile[]): readonly ConfigItem[] {
  return files.reduce<readonly ConfigItem[]>(
    (items, file) => [...items.filter(({ option }) => !file.unset.includes(option)), ...file.items],
    [],
  );
}

function applyItems(into: VmDraft, items: readonly ConfigItem[]): void {
  for (const { option, text, where } of items) {
    try {
      applyOption(into, option.id, text, `${where}: ${option.key}`);
    } catch (error) {
      throw inFile(where, option.key, error);
    }
  }
}

/** An error of the whole that names one device of a file says where that is. */
function placedInFile(items: readonly ConfigItem[], error: unknown): unknown {
  if (!(error instanceof ConfigError)) return error;
  const item = items.find(({ option, text }) => option.id === 'pci_slot' && error.message.startsWith(`-s ${text}: `));
  return item === undefined ? error : inFile(item.where, item.option.key, error);
}

function inFile(where: string, key: string, error: unknown): unknown {
  const placed = located(`${where}: ${key}`, error);
  if (placed instanceof ConfigError && placed.exitCode === ExitCode.Usage) placed.exitCode = ExitCode.Config;
  return placed;
}

/** `-s help`, `-s DRIVER,help`, `-s SLOT,DRIVER,help`, `-l help`. */
function helpTopic(id: OptionId, value: string | undefined, drivers: readonly PciDriverEntry[]): HelpTopic | undefined {
  if (id === 'lpc') return value === 'help' ? { kind: 'lpc' } : undefined;
  if (id !== 'pci_slot' || value === undefined) return undefined;
  if (value === 'help') return { kind: 'drivers' };
  const words = value.split(',');
  if (words.at(-1) !== 'help' || words.length > 3) return undefined;
  if (words.length === 3) parseSlotText(value);
  const found = lookupPciDriver(words.at(-2) as string, drivers);
  if (found.kind === 'driver') return { kind: 'driver', driver: found.entry };
  throw new ConfigError(`-s ${value}: ${found.message}`, found.kind === 'unknown' ? { hint: found.hint } : {});
}

/** An API socket that was named, and nothing that a VM would be made of. */
function isServeOrder({ vm }: Collected): boolean {
  const { apiSocket, slots, com, kernelPath, elfPath, ovmf, biosPath, ramdiskPath, bootargs, platform } = vm;
  const images = [kernelPath, elfPath, ovmf, biosPath, ramdiskPath, bootargs].every((image) => image === undefined);
  return (
    apiSocket !== undefined && apiSocket.kind !== 'off' && images && slots.length + com.length + platform.length === 0
  );
}

function serveOrderOf({ vm, debug }: Collected, argv: readonly string[]): ServeOrder {
  const { apiSocket, eventMonitor, socketGroup, afterEnd, logger, logFormat, notices } = vm;
  const options = {
    logger,
    afterEnd,
    ...(logFormat === undefined ? {} : { logFormat }),
    ...(apiSocket === undefined ? {} : { apiSocket }),
    ...(eventMonitor === undefined ? {} : { eventMonitor }),
    ...(socketGroup === undefined ? {} : { socketGroup }),
  };
  return { action: 'serve', options, argv, notices, debug };
}

function orderOf(
  c: Collected,
  names: readonly string[],
  drivers: readonly PciDriverEntry[],
  argv: readonly string[],
  slip: string | undefined,
): VmOrder | ServeOrder {
  if (names.length > 1) {
    const usual =
      names[0] === 'config'
        ? 'give one; as a command, config has the words convert, argv, check, schema and help'
        : 'give one; a value with spaces needs quotes, and the words of one option have commas between them and no space';
    throw new ConfigError(`${names.length} VM names are given: ${names.map((n) => `"${n}"`).join(', ')}`, {
      hint: slip ?? usual,
    });
  }
  const [name] = names;
  if (name === undefined && c.dryRun === undefined && isServeOrder(c)) return serveOrderOf(c, argv);
  if (name === undefined) {
    throw new ConfigError('the name of the VM is missing', {
      hint: slip ?? `${USAGE}; acrn-dm --help lists the options`,
    });
  }
  return {
    action: c.dryRun === undefined ? 'run' : 'dry-run',
    format: c.dryRun ?? 'text',
    ...finishDraft(c.vm, name, drivers),
    debug: c.debug,
    hostRoot: c.hostRoot,
  };
}
