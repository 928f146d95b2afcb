/**
 * In which order faults are tried, and which of them in one run.
 *
 * Of each place in the program one errno is tried in a run of its own. If the program went on after it, it most likely does
 * after the others: those share runs, each with other calls. A fault of a shared run counts as tried if it came to pass at
 * the place where it was meant to, and nothing is wrong with the run; what did not come to pass, because one before it ended
 * the program, is tried again. If something is wrong each is tried by itself.
 */
import type { Random } from '../random.ts';
import { type Fault, isForItself, isSignal, type Scenario } from './run.ts';

/** A call in a run in which nothing fails. */
export interface Call {
  readonly thread: string;
  readonly call: string;
  readonly nth: number;
  readonly place: string;
}

const MAX_TOGETHER = 8;

/**
 * The calls to make fail: of each place the first three, the last and one between. What an earlier scenario did at the same
 * place is the same call.
 */
export function callsToFail(calls: readonly Call[], random: Random, known: Set<string>): Call[] {
  const places = new Map<string, Call[]>();
  for (const call of calls) {
    const key = `${call.thread} ${call.call} ${call.place}`;
    if (known.has(key)) continue;
    const same = places.get(key) ?? [];
    same.push(call);
    places.set(key, same);
  }
  for (const key of places.keys()) known.add(key);
  return [...places.values()].flatMap((same) => {
    const between = same.slice(3, -1);
    const picked = between[random.below(Math.max(between.length, 1))];
    const last = same.slice(3).at(-1);
    return [...same.slice(0, 3), ...(picked === undefined ? [] : [picked]), ...(last === undefined ? [] : [last])];
  });
}

interface Group {
  readonly scenario: Scenario;
  readonly isSignals: boolean;
  readonly faults: Fault[];
}

const callOf = ({ scenario, thread, call, nth }: Fault) => `${scenario.name} ${thread} ${call} ${nth}`;

export class FaultPlan {
  readonly of: number;
  readonly #order: readonly Fault[];
  readonly #index = new Map<Fault, number>();
  readonly #isFirst = new Set<Fault>();
  #next: number;
  /** In a run of their own. */
  #alone: Fault[] = [];
  /** With others. */
  #again: Fault[] = [];
  #groups: Group[] = [];
  /** Calls after whose failure the program ended. */
  readonly #fatal = new Set<string>();
  readonly #unfinished = new Set<Fault>();

  /** @param from leave out so many of the order. @param count take so many at most. */
  constructor(faults: readonly Fault[], random: Random, { from = 0, count = faults.length }) {
    const seen = new Map<string, number>();
    const turns: Fault[][] = [];
    for (const fault of shuffled(faults, random)) {
      const turn = seen.get(callOf(fault)) ?? 0;
      seen.set(callOf(fault), turn + 1);
      (turns[turn] ??= []).push(fault);
      if (turn === 0) this.#isFirst.add(fault);
    }
    const order = turns.flat();
    this.of = order.length;
    this.#order = order.slice(0, from + count);
    for (const [index, fault] of this.#order.entries()) this.#index.set(fault, index);
    this.#next = from;
  }

  /** Where a run with the same seed goes on. */
  get reachedIndex(): number {
    return Math.min(this.#next, ...[...this.#unfinished].map((fault) => this.#index.get(fault) ?? 0));
  }

  /** @returns faults for one run; undefined: there is nothing to do but what others are at. */
  take(): readonly Fault[] | undefined {
    for (;;) {
      const alone = this.#alone.pop();
      if (alone !== undefined) return [alone];
      const fault = this.#again.pop() ?? this.#order[this.#next];
      if (fault === undefined) return this.#groups.shift()?.faults;
      if (fault === this.#order[this.#next]) this.#next++;
      this.#unfinished.add(fault);
      if (this.#isFirst.has(fault) || this.#fatal.has(callOf(fault)) || isForItself(fault)) return [fault];
      const group = this.#groupFor(fault);
      group.faults.push(fault);
      if (group.faults.length < MAX_TOGETHER) continue;
      this.#groups.splice(this.#groups.indexOf(group), 1);
      return group.faults;
    }
  }

  /** No two calls of one name: after the first the second may be another one. A signal must not end the program. */
  #groupFor(fault: Fault): Group {
    const fits = (group: Group) =>
      group.scenario === fault.scenario &&
      group.isSignals === isSignal(fault) &&
      group.faults.every(({ thread, call }) => thread !== fault.thread || call !== fault.call);
    const found = this.#groups.find(fits);
    if (found !== undefined) return found;
    const group = { scenario: fault.scenario, isSignals: isSignal(fault), faults: [] };
    this.#groups.push(group);
    return group;
  }

  /**
   * What a run showed. @param hits which of the faults came to pass, in order, and where. @returns those of which the outcome
   * is known now; the others come again.
   */
  finish(
    faults: readonly Fault[],
    hits: readonly { readonly index: number; readonly place: string }[],
    { hasProblems, hasEnded }: { readonly hasProblems: boolean; readonly hasEnded: boolean },
  ): readonly Fault[] {
    const last = faults[hits.at(-1)?.index ?? -1];
    if (hasEnded && last !== undefined && !hasProblems) this.#fatal.add(callOf(last));
    const isAlone = faults.length === 1;
    const known = faults.filter((fault, n) => {
      const hit = hits.find(({ index }) => index === n);
      if (isAlone || (!hasProblems && hit?.place === fault.place)) return true;
      const isNotYet = hasEnded && hits.length > 0 && hit === undefined;
      (isNotYet ? this.#again : this.#alone).push(fault);
      return false;
    });
    for (const fault of known) this.#unfinished.delete(fault);
    return known;
  }
}

function shuffled<T>(values: readonly T[], random: Random): T[] {
  const result = [...values];
  for (let n = result.length - 1; n > 0; n--) {
    const other = random.below(n + 1);
    [result[n], result[other]] = [result[other] as T, result[n] as T];
  }
  return result;
}
