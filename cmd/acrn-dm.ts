/** The program: command line → VM → exit status. The only file that ends the process. */
import './first-line.ts';
import { basename } from 'node:path';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { BugError, DmError, ExitCode } from '../devicemodel/core/errors.ts';
import { Log, LogLevel } from '../devicemodel/core/log.ts';
import { pciDrivers } from '../devicemodel/hw/registry.ts';
import type { Hypervisor } from '../hypervisor/hypervisor.ts';
import { type BenchmarkOrder, mayNameConfig, parseCommandLine, type ServeOrder, type VmOrder } from './cli.ts';
import { errorLines, exitCodeOf, fdSink, oneLine, print, writeLines } from './report.ts';
import { hangingCallsOf, sizeThreadPool } from './thread-pool.ts';

/** Width of help where there is no terminal to ask. */
const DEFAULT_COLUMNS = 100;
const MIN_COLUMNS = 40;

const standardError = fdSink(2);
const argv = process.argv.slice(2);
/** Asked before the command line is parsed: its own mistakes are reported too. */
const debug = argv.includes('--debug');
/** A link of that name: its clients, libvirt among them, start the program with its own options. */
const isCloudHypervisor = basename(process.argv[1] ?? '') === 'cloud-hypervisor';

function fail(error: unknown): ExitCode {
  writeLines(standardError, errorLines(error, { debug }));
  return exitCodeOf(error);
}

/** The terminal's width; COLUMNS counts where there is none. */
function columns(): number {
  const asked = Number(process.env['COLUMNS']);
  return process.stdout.columns ?? (Number.isInteger(asked) && asked >= MIN_COLUMNS ? asked : DEFAULT_COLUMNS);
}

async function main(): Promise<ExitCode> {
  if (argv[0] === 'config') {
    const { isConfigCommand, runConfigCommand } = await import('./config-command.ts');
    if (isConfigCommand(argv)) return print(runConfigCommand(argv.slice(1), pciDrivers));
  }
  let words: readonly string[] = argv;
  if (isCloudHypervisor) {
    const { parseChCommandLine } = await import('./cloud-hypervisor.ts');
    const asked = parseChCommandLine(argv);
    if (asked.kind === 'print') return print(asked.lines);
    words = asked.argv;
  }
  const readConfig = mayNameConfig(words) ? (await import('../config/config-file.ts')).readConfigFile : undefined;
  const order = parseCommandLine(words, pciDrivers, readConfig);
  switch (order.action) {
    case 'version': {
      const { versionLine } = await import('./version.ts');
      return print([versionLine()]);
    }
    case 'help': {
      const { helpText } = await import('./help.ts');
      const text = await helpText(order.topic, pciDrivers, columns());
      return print(text.trimEnd().split('\n'));
    }
    case 'list-passthru': {
      const { formatList, listPassthrough } = await import('../devicemodel/hw/pci/passthru/list.ts');
      // Of another host's hypervisor nothing is known.
      const { stubDriverHere } = await import('../hypervisor/choose.ts');
      const stub = order.hostRoot === undefined ? await stubDriverHere() : undefined;
      const list = listPassthrough(order.hostRoot ?? '', stub);
      return print(order.format === 'json' ? [JSON.stringify(list, undefined, 2)] : formatList(list));
    }
    case 'benchmark':
      return measure(order);
    case 'serve':
      return serve(order);
    case 'dry-run':
      return dryRun(order);
    case 'run':
      return run(order);
  }
}

async function dryRun(order: VmOrder): Promise<ExitCode> {
  const [{ describeVm, formatDryRun }, preflight, { claimFindings, pipeWarnings }] = await Promise.all([
    import('./dry-run.ts'),
    import('../config/preflight.ts'),
    import('../config/claims.ts'),
  ]);
  const { checkHost, hostProblems, hostTreeProblems, imageProblems, problemsOf } = preflight;
  const { config, hostRoot } = order;
  const isThisHost = hostRoot === undefined;
  const found = await checkHost(config, { root: hostRoot ?? '', isPlan: true });
  const hypervisor = await hypervisorOf(config);
  // What a host lacks that the VM need not run on is worth a word and no more.
  const isForHere = !isThisHost || (hypervisor.kind === 'acrn' ? hypervisor.isPresent() : config.hypervisor !== 'auto');
  const doubts = isForHere ? [] : found.problems.map((problem) => problem.message);
  const clashes = isThisHost ? claimFindings(config) : { problems: [], warnings: [] };
  const shared = isThisHost ? [...clashes.warnings, ...pipeWarnings(config)] : [];
  writeLines(standardError, [
    ...order.notices.map((notice) => oneLine(`acrn-dm: ${notice.level === 'warn' ? 'warning: ' : ''}${notice.text}`)),
    ...[...doubts, ...shared, ...found.warnings].map((text) => oneLine(`acrn-dm: warning: ${text}`)),
  ]);
  const images = isThisHost ? imageProblems(config) : [];
  // In the order in which a start would meet them: the first is what it would end with.
  const problems = [...problemsOf(config)];
  problems.push(...(isThisHost ? await hostProblems(config) : hostTreeProblems(hostRoot)));
  if (isForHere) problems.push(...found.problems);
  if (problems.length === 0) problems.push(...(await engineProblems(config, hypervisor, hostRoot, images)));
  problems.push(...images.filter((image) => isNew(image, problems)));
  let written: ExitCode = ExitCode.Ok;
  try {
    const plan = await describeVm(config, hostRoot, hypervisor.kind === 'acrn' || config.hypervisor === 'auto');
    written = print(order.format === 'json' ? [JSON.stringify(plan, undefined, 2)] : formatDryRun(plan));
  } catch (error) {
    if (!(error instanceof DmError) || error instanceof BugError) throw error;
    // Two that want the same cannot be put together, either: that is said already, by what was ordered.
    if (clashes.problems.length === 0 && isNew(error, problems)) problems.push(error);
  }
  for (const problem of problems) writeLines(standardError, errorLines(problem, { debug }));
  return problems[0]?.exitCode ?? written;
}

/** Two looks at one thing find the same. */
function isNew({ message }: Error, known: readonly Error[]): boolean {
  return known.every((other) => other.message !== message);
}

async function hypervisorOf(config: VmConfig): Promise<Hypervisor> {
  const [{ chooseHypervisor }, { silentLog }] = await Promise.all([
    import('../hypervisor/choose.ts'),
    import('../devicemodel/core/log.ts'),
  ]);
  return chooseHypervisor(config, silentLog);
}

/**
 * Why the hypervisor that would be taken cannot run this VM, but for what is wrong with its images on any. Where there
 * is no ACRN and the user named none, the plan may well be for another machine: then these are warnings.
 */
async function engineProblems(
  config: VmConfig,
  hypervisor: Hypervisor,
  hostRoot: string | undefined,
  images: readonly DmError[],
): Promise<readonly DmError[]> {
  const { checkHypervisor, problemIn } = await import('../config/preflight.ts');
  const found: DmError[] = problemIn(() => checkHypervisor(config, hypervisor));
  try {
    found.push(...(await hypervisor.problems(config, hostRoot)));
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    found.push(error);
  }
  const problems = found.filter((problem) => isNew(problem, images));
  if (config.hypervisor !== 'auto' && hypervisor.kind !== 'acrn' && problems.length === 0) {
    // What a start says of its vCPUs.
    const write = (_level: string, line: string) => void writeLines(standardError, [`acrn-dm: warning: ${line}`]);
    hypervisor.cpus(config, new Log([{ maxLevel: LogLevel.warn, write }]));
  }
  if (config.hypervisor !== 'auto' || hypervisor.kind === 'acrn') return problems;
  const lines = problems.map((p) => `acrn-dm: warning: not on this machine, which has no ACRN: ${p.message}`);
  writeLines(standardError, lines);
  return [];
}

/** @param name of the VM, or what there is instead: for files. */
async function openLog(
  { debug: isLoud, notices }: Pick<VmOrder, 'debug' | 'notices'>,
  { logger, logFormat }: Pick<VmConfig, 'logger' | 'logFormat'>,
  name: string,
): Promise<Log> {
  const { createSinks } = await import('../devicemodel/core/log-sinks.ts');
  // --debug is about the console: the last setting of a sink counts.
  const loggers = isLoud ? [...logger, { sink: 'console', level: LogLevel.debug } as const] : logger;
  const log = new Log(createSinks(loggers, name, { format: logFormat }));
  for (const notice of notices) log[notice.level](notice.text);
  return log;
}

/** Everything that shows before a VM is asked for. @throws DmError */
async function checkOrder({ config }: VmOrder, log: Log): Promise<void> {
  const { checkStart } = await import('../config/preflight.ts');
  await checkStart(config, (text) => log.warn(text));
}

async function run(order: VmOrder): Promise<ExitCode> {
  const { config } = order;
  sizeThreadPool(hangingCallsOf(config));
  const log = await openLog(order, config, config.name);
  await checkOrder(order, log);
  const { abandonVm, runVm } = await import('./run.ts');
  abandon = abandonVm;
  return runVm(config, log, (other) => checkOrder(other, log));
}

async function measure({ config, format, debug: isLoud }: BenchmarkOrder): Promise<ExitCode> {
  const { benchmark } = await import('./benchmark.ts');
  const level = isLoud ? LogLevel.debug : LogLevel.warn;
  const logger = [{ sink: 'console', level }] as const;
  const log = await openLog({ debug: isLoud, notices: [] }, { logger }, config.name);
  return print(await benchmark(config, format, log));
}

async function serve(order: ServeOrder): Promise<ExitCode> {
  sizeThreadPool();
  const log = await openLog(order, order.options, `api-${process.pid}`);
  const { abandonVm, serveApi } = await import('./run.ts');
  abandon = abandonVm;
  return serveApi(order, log, (vm) => checkOrder(vm, log));
}

/** Undo of last resort, once there may be a VM. */
let abandon: () => void = () => {};

function onUnforeseen(error: unknown): void {
  try {
    abandon();
  } finally {
    process.exit(fail(error));
  }
}
process.on('uncaughtException', onUnforeseen);
process.on('unhandledRejection', onUnforeseen);

main().then(
  (code) => process.exit(code),
  (error: unknown) => process.exit(fail(error)),
);
