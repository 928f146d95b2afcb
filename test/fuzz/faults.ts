/**
 * Every call of the host that the built program makes fails once, with each errno it may plausibly have: while a VM
 * starts, while it runs, and while it ends. The program runs as a user has it; `faults/preload.ts` stands between it and
 * the C library, Node's files, sockets and threads, and plays the driver of ACRN.
 *
 * Whatever fails, the program ends by itself and says so in a line: no bug of its own (status 70), no hang, no VM, socket,
 * link or huge page left behind, and what a disk said was written is in its image.
 */
import { readdirSync, rmSync } from 'node:fs';
import { availableParallelism, constants } from 'node:os';
import { join } from 'node:path';
import { build } from 'esbuild';
import { makeScratch, sweepDead } from '../../tools/scratch.mjs';
import { errnoName, plausibleErrnos } from './faults/errnos.ts';
import { type Call, callsToFail, FaultPlan } from './faults/plan.ts';
import {
  type Fault,
  Run,
  type RunFolder,
  running,
  runPatiently,
  type Scenario,
  scenarios,
  sharedPrefix,
} from './faults/run.ts';
import { Random } from './random.ts';

/** Lines of the program's last words that are shown with a finding. */
const SHOWN_LINES = 6;
const PROGRESS_EVERY = 500;
const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const;

/** The calls of a run in which nothing fails. */
async function callsOf(scenario: Scenario, folder: RunFolder): Promise<Call[]> {
  const run = new Run(scenario, folder);
  try {
    const outcome = await run.run([]);
    const problems = run.problems(outcome, []);
    if (problems.length > 0) throw new Error(`${scenario.name}: ${problems.join('; ')}\n${outcome.stderr}`);
    const counts = new Map<string, number>();
    return run.notes('census').map((line) => {
      const [thread, call, place] = line.split('\t') as [string, string, string];
      const nth = (counts.get(`${thread} ${call}`) ?? 0) + 1;
      counts.set(`${thread} ${call}`, nth);
      return { thread, call, nth, place };
    });
  } finally {
    run.remove();
  }
}

async function allFaults(folder: RunFolder, random: Random, only: string | undefined): Promise<Fault[]> {
  const known = new Set<string>();
  const faults: Fault[] = [];
  for (const scenario of scenarios) {
    if (only !== undefined && !only.startsWith(scenario.name)) continue;
    const calls = await callsOf(scenario, folder);
    for (const call of only === undefined ? callsToFail(calls, random, known) : calls) {
      for (const errno of plausibleErrnos(call.call)) faults.push({ ...call, scenario, errno });
    }
  }
  return faults.filter((fault) => only === undefined || describe(fault).includes(only));
}

const describe = ({ scenario, thread, call, nth, errno }: Fault) =>
  `${scenario.name} ${thread} ${call.replaceAll(' ', '_')} ${nth} ${errnoName(errno)}`;

export interface FaultOptions {
  readonly seed: number;
  /** So long at most; missing: until all were tried. */
  readonly minutes?: number | undefined;
  /** So many at most. */
  readonly count?: number | undefined;
  /** Leave out so many of the order, which a run that was ended came to. */
  readonly from?: number | undefined;
  /** Only faults whose line has this in it: `resets main open 3 EACCES`. */
  readonly only?: string | undefined;
}

/** @throws Error with a line for each fault that did not end as it should. */
export async function fuzzFaults(
  options: FaultOptions,
): Promise<{ faults: number; reached: number; runs: number; of: number }> {
  const random = new Random(options.seed);
  let endedBy: NodeJS.Signals | undefined;
  const end = (signal: NodeJS.Signals) => {
    endedBy ??= signal;
    for (const child of running) child.kill('SIGKILL');
  };
  // Before the scratch folder's own.
  for (const signal of SIGNALS) process.on(signal, end);
  const path = makeScratch('faults');
  sweepDead('/dev/shm', /^faults-(\d+)-/);
  const folder: RunFolder = { folder: path, preload: join(path, 'preload.cjs') };
  const endMs = options.minutes === undefined ? Number.POSITIVE_INFINITY : performance.now() + options.minutes * 60_000;
  const findings: string[] = [];
  const numbers = { faults: 0, reached: 0, runs: 0 };
  const tryTogether = async (plan: FaultPlan, faults: readonly Fault[], scenario: Scenario) => {
    const { run, outcome } = await runPatiently(faults, scenario, folder);
    const problems = run.problems(outcome, faults);
    const hits = run.hits();
    run.remove();
    if (endedBy !== undefined) return;
    numbers.runs++;
    const known = plan.finish(faults, hits, { hasProblems: problems.length > 0, hasEnded: outcome.status !== 0 });
    for (const fault of known) {
      if (++numbers.faults % PROGRESS_EVERY === 0) {
        console.log(`${numbers.faults} of ${plan.of} in ${numbers.runs} runs, ${findings.length} findings`);
      }
      if (hits.length > 0) numbers.reached++;
      const isShown = options.only !== undefined && options.count === undefined;
      if (problems.length === 0 && !isShown) continue;
      const line = `${describe(fault)}: ${problems.join('; ') || `status ${outcome.status}`}`;
      console.log([line, ...outcome.stderr.trim().split('\n').slice(-SHOWN_LINES)].join('\n    '));
      if (problems.length > 0) findings.push(line);
    }
  };
  try {
    await build({
      entryPoints: [join(import.meta.dirname, 'faults/preload.ts')],
      outfile: folder.preload,
      bundle: true,
      platform: 'node',
      format: 'cjs',
      logLevel: 'error',
    });
    const plan = new FaultPlan(await allFaults(folder, random, options.only), random, options);
    const work = async () => {
      while (performance.now() < endMs && endedBy === undefined) {
        const faults = plan.take();
        const scenario = faults?.[0]?.scenario;
        if (faults === undefined || scenario === undefined) return;
        await tryTogether(plan, faults, scenario);
      }
    };
    await Promise.all(Array.from({ length: Math.min(2, availableParallelism()) }, work));
    // What the last run of the other one gave back.
    await work();
    if (endedBy !== undefined) {
      console.log(
        `ended by ${endedBy}: ${numbers.faults} of ${plan.of} in ${numbers.runs} runs, ${findings.length} findings; --from ${plan.reachedIndex} goes on`,
      );
      process.exitCode = 128 + constants.signals[endedBy];
    }
    if (findings.length > 0) {
      throw new Error(
        `${findings.length} of ${numbers.faults} faults did not end as they should:\n${findings.join('\n')}`,
      );
    }
    return { ...numbers, of: plan.of };
  } finally {
    for (const signal of SIGNALS) process.off(signal, end);
    // One that was killed may make a last file.
    rmSync(path, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 });
    for (const name of readdirSync('/dev/shm')) if (name.startsWith(sharedPrefix)) rmSync(join('/dev/shm', name));
  }
}
