/** In which order the fault run tries what, and what it takes for tried. */
import { constants } from 'node:os';
import { expect, test } from 'vitest';
import { type Call, callsToFail, FaultPlan } from './faults/plan.ts';
import type { Fault, Scenario } from './faults/run.ts';
import { Random } from './random.ts';

const scenario: Scenario = { name: 'made-up', options: () => [], order: { endings: [] } };
const { EIO, EACCES, EINTR, ENOMEM } = constants.errno;
const names = ['open', 'read', 'write', 'mmap', 'poll', 'eventfd', 'ioctl:START_VM', 'unlinkSync', 'close', 'listen'];
const faults: readonly Fault[] = names.flatMap((call) =>
  [1, 2, 3].flatMap((nth) =>
    [EIO, EACCES, EINTR, ENOMEM].map((errno) => ({
      scenario,
      thread: 'main',
      call,
      nth,
      errno,
      place: `${call} ${nth}`,
    })),
  ),
);
const isFatal = ({ call, errno }: Fault) => ['open', 'mmap'].includes(call) && errno !== EINTR;

/** A program that makes its calls in the order of {@link names}, and ends at one whose failure it cannot bear. */
function play(together: readonly Fault[], isWrong: (fault: Fault) => boolean = () => false) {
  const hits: { index: number; place: string }[] = [];
  for (const call of names) {
    const index = together.findIndex((fault) => fault.call === call);
    const fault = together[index];
    if (fault === undefined) continue;
    hits.push({ index, place: fault.place });
    if (isFatal(fault)) return { hits, hasEnded: true, hasProblems: together.some(isWrong) };
  }
  return { hits, hasEnded: false, hasProblems: together.some(isWrong) };
}

function playAll(plan: FaultPlan, isWrong?: (fault: Fault) => boolean) {
  const known: Fault[] = [];
  const runs: (readonly Fault[])[] = [];
  for (let together = plan.take(); together !== undefined; together = plan.take()) {
    const { hits, ...outcome } = play(together, isWrong);
    runs.push(together);
    known.push(...plan.finish(together, hits, outcome));
  }
  return { known, runs };
}

test('every fault is tried, none twice, in fewer runs', () => {
  const plan = new FaultPlan(faults, new Random(1), {});
  const { known, runs } = playAll(plan);
  expect(known).toHaveLength(faults.length);
  expect(new Set(known)).toEqual(new Set(faults));
  expect(runs.length).toBeLessThan(0.8 * faults.length);
  expect(plan.reachedIndex).toBe(faults.length);
});

test('each call fails by itself at least once, and a run has no two calls of a name', () => {
  const { runs } = playAll(new FaultPlan(faults, new Random(2), {}));
  const alone = new Set(runs.filter((run) => run.length === 1).map(([fault]) => fault?.place));
  expect(alone.size).toBe(names.length * 3);
  for (const run of runs) expect(new Set(run.map(({ call }) => call)).size).toBe(run.length);
  const together = runs.filter((run) => run.length > 1).flat();
  expect(together.length).toBeGreaterThan(0);
  expect(together.filter(({ call }) => call === 'unlinkSync')).toEqual([]);
});

test('what goes wrong is found by itself', () => {
  const isWrong = ({ call, nth, errno }: Fault) => call === 'close' && nth === 2 && errno === EACCES;
  const { known, runs } = playAll(new FaultPlan(faults, new Random(3), {}), isWrong);
  expect(new Set(known).size).toBe(faults.length);
  expect(runs.filter((run) => run.length === 1 && run.some(isWrong))).toHaveLength(1);
});

test('a fault that came to pass elsewhere than it was meant to is tried by itself', () => {
  const plan = new FaultPlan(faults, new Random(4), {});
  let together = plan.take();
  while (together !== undefined && together.length === 1) {
    plan.finish(together, play(together).hits, { hasProblems: false, hasEnded: false });
    together = plan.take();
  }
  const [first, ...others] = together ?? [];
  const hits = (together ?? []).map((fault, index) => ({ index, place: index === 0 ? 'elsewhere' : fault.place }));
  expect(plan.finish(together ?? [], hits, { hasProblems: false, hasEnded: false })).toEqual(others);
  expect(plan.take()).toEqual([first]);
});

test('of one place a few calls are taken, and none that an earlier scenario had', () => {
  const calls: Call[] = Array.from({ length: 40 }, (_, n) => ({
    thread: 'main',
    call: 'read',
    nth: n + 1,
    place: n % 2 === 0 ? 'a' : 'b',
  }));
  const taken = callsToFail(calls, new Random(1), new Set(['main read b']));
  expect(taken.map(({ nth }) => nth).filter((nth) => nth <= 5 || nth === 39)).toEqual([1, 3, 5, 39]);
  expect([taken.length, taken.every(({ place }) => place === 'a')]).toEqual([5, true]);
});
