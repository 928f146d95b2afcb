/**
 * The threads that serve a VM beside the device thread, for whoever watches whether they still do. A thread that was asked
 * answers when it comes round in its loop; nobody waits for it.
 */
export interface ThreadPulse {
  /** What it serves, for messages: `the thread of ...`. */
  readonly what: string;
  /** Whether it has come round since it was asked last. */
  readonly hasAnswered: boolean;
  ask(): void;
}

export class ThreadPulses {
  readonly #all = new Set<ThreadPulse>();

  /** @returns what is called when the thread is gone. */
  add(pulse: ThreadPulse): () => void {
    this.#all.add(pulse);
    return () => void this.#all.delete(pulse);
  }

  ask(): void {
    for (const pulse of this.#all) pulse.ask();
  }

  /** What is served by threads that were asked and have not answered. */
  get silent(): readonly string[] {
    return [...this.#all].filter((pulse) => !pulse.hasAnswered).map(({ what }) => what);
  }
}
