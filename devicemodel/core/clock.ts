/** Time, as devices see it. Tests hand in a clock that stands still until it is told to move. */
export interface Clock {
  /** Monotonic time in nanoseconds since an arbitrary start: a safe integer for 104 days of uptime. */
  nowNs(): number;
  /** Host wall clock, milliseconds since 1970-01-01 UTC. May jump. */
  wallMs(): number;
  /** A timer that is not running yet. `onDue` runs on the device thread, never inside another device call. */
  createTimer(onDue: () => void): Timer;
}

/** A one-shot timer; periodic devices arm it again from `onDue`, so that no tick is lost or doubled unseen. */
export interface Timer {
  /** Run at `dueNs` (same scale as `nowNs`); replaces an earlier arming. A time in the past is due at once. */
  arm(dueNs: number): void;
  cancel(): void;
  /** When it is due, or undefined while it is not running. */
  readonly dueNs: number | undefined;
}
