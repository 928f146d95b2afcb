/** A device clock whose timers run one at a time, when a test says so. */
import type { Timer } from '../../devicemodel/core/clock.ts';
import { FakeClock } from './fake-clock.ts';

/** Stands still but for `step`, which runs the timer due next and no other: a turn of the device loop. */
export class StepClock extends FakeClock {
  readonly #armed: Timer[] = [];
  /** For tests of how long something takes: what ends a slice is then the host's time. */
  isHostTime = false;
  override nowNs(): number {
    return this.isHostTime ? performance.now() * 1e6 : super.nowNs();
  }
  override createTimer(onDue: () => void): Timer {
    const armed = this.#armed;
    const timer: Timer = {
      dueNs: undefined,
      arm() {
        if (!armed.includes(timer)) armed.push(timer);
        turns.set(timer, onDue);
      },
      cancel() {
        const at = armed.indexOf(timer);
        if (at >= 0) armed.splice(at, 1);
      },
    };
    return timer;
  }
  /** @returns false when there was nothing to do. */
  step(): boolean {
    const timer = this.#armed.shift();
    if (timer === undefined) return false;
    turns.get(timer)?.();
    return true;
  }
}
const turns = new WeakMap<Timer, () => void>();
