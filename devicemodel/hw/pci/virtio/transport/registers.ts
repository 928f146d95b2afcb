/** Constants both register windows and the transport share. */

/** §2.1. */
export const Status = {
  Acknowledge: 1,
  Driver: 2,
  DriverOk: 4,
  FeaturesOk: 8,
  NeedsReset: 64,
  Failed: 128,
} as const;

/** §4.1.4.5. */
export const Isr = { Queue: 1, Config: 2 } as const;

export const NO_VECTOR = 0xffff;
