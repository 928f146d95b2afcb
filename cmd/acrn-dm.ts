/** The program: command line → VM → exit status. The only file that ends the process. */
import './first-line.ts';
import { basename } from 'node:path';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { DmError, ExitCode } from '../devicemodel/core/errors.ts';
import { Log, LogLevel } from '../devicemodel/core/log.ts';
import { pciDrivers } from '../devicemodel/hw/registry.ts';
import { type BenchmarkOrder, mayNameConfig, parseCommandLine, type ServeOrder, type VmOrder } from './cli.ts';
import { errorLines, exitCodeOf, fdSink, oneLine, writeLines } from './report.ts';
import { disksOf, sizeThreadPool } from './thread-pool.ts';

/** Width of help where there is no terminal to ask. */
const DEFAULT_COLUMNS = 100;
const MIN_COLUMNS = 40;

const standardOutput = fdSink(1);
const standardError = fdSink(2);
const argv = process.argv.slice(2);
/** Asked before the command line is parsed: its own mistakes are reported too. */
const debug = argv.includes('--debug');
/** A link of that name: its clients, libvirt among them, start the program with its own options. */
const isCloudHypervisor = basename(process.argv[1] ?? '') === 'cloud-hypervisor';

/** What was asked for goes to standard output; who does not get it must not take the status for a yes. */
function print(lines: readonly string[]): ExitCode {
  if (writeLines(standardOutput, lines)) return ExitCode.Ok;
  writeLines(standardError, ['acrn-dm: standard output cannot be written (full, or closed by its reader)']);
  return ExitCode.IoError;
}

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
  const [{ describeVm, formatDryRun }, preflight, { claimFindings }] = await Promise.all([
    import('./dry-run.ts'),
    import('../config/preflight.ts'),
    import('../config/claims.ts'),
  ]);
  const { checkHost, fileProblems, groupProblems, hostTreeProblems, problemsOf } = preflight;
  const { config, hostRoot } = order;
  const found = await checkHost(config, { root: hostRoot ?? '', isPlan: true });
  // What another host lacks is what was asked; this one need not be where the VM will run.
  const obstacles = hostRoot === undefined ? [] : found.problems;
  const doubts = hostRoot === undefined ? found.problems.map((problem) => problem.message) : [];
  const shared = hostRoot === undefined ? claimFindings(config).warnings : [];
  writeLines(standardError, [
    ...order.notices.map((notice) => oneLine(`acrn-dm: ${notice.level === 'warn' ? 'warning: ' : ''}${notice.text}`)),
    ...[...doubts, ...found.warnings, ...shared].map((text) => oneLine(`acrn-dm: warning: ${text}`)),
  ]);
  const plan = await describeVm(config, hostRoot);
  const written = print(order.format === 'json' ? [JSON.stringify(plan, undefined, 2)] : formatDryRun(plan));
  const problems = [...problemsOf(config), ...obstacles];
  problems.push(...(hostRoot === undefined ? fileProblems(config) : hostTreeProblems(hostRoot)));
  if (hostRoot === undefined) problems.push(...(await groupProblems(config)));
  if (problems.length === 0) problems.push(...(await engineProblems(config, hostRoot)));
  for (const problem of problems) writeLines(standardError, errorLines(problem, { debug }));
  return problems[0]?.exitCode ?? written;
}

/**
 * Why the hypervisor that would be taken cannot run this VM. Where there is no ACRN and the user named none, the plan may
 * well be for another machine: then these are warnings.
 */
async function engineProblems(config: VmConfig, hostRoot: string | undefined): Promise<readonly DmError[]> {
  const [{ chooseHypervisor }, { checkHypervisor }, { silentLog }] = await Promise.all([
    import('../hypervisor/choose.ts'),
    import('../config/preflight.ts'),
    import('../devicemodel/core/log.ts'),
  ]);
  const hypervisor = await chooseHypervisor(config, silentLog);
  const problems = [...(await hypervisor.problems(config, hostRoot))];
  try {
    checkHypervisor(config, hypervisor);
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    problems.push(error);
  }
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
  sizeThreadPool(disksOf(config));
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
