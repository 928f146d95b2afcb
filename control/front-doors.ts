/**
 * The ways in from outside while a VM runs. A door takes a moment to come up, and the VM may end in that moment: then the
 * door is told to give up, and if it comes up nevertheless it is closed at once.
 */

/** Something that listens, and asks commands of the VM (vm-commands.ts). */
export interface FrontDoor {
  /** Nothing of it is left afterwards: no socket file, no listener, no timer. Safe twice. */
  close(): void | Promise<void>;
}

export class FrontDoors {
  readonly #giveUp = new AbortController();
  readonly #opening = new Set<Promise<unknown>>();
  readonly #doors: FrontDoor[] = [];

  /** @param ending aborted once the VM is to end: nobody waits any longer for a door to come up. */
  constructor(ending: AbortSignal) {
    if (ending.aborted) this.#giveUp.abort();
    else ending.addEventListener('abort', () => this.#giveUp.abort(), { once: true, signal: this.#giveUp.signal });
  }

  /**
   * Waits until the door is open, or not wanted any more.
   * @param open gets a signal that it may give up; what it throws then does not matter.
   * @throws what `open` throws.
   */
  async add(open: (giveUp: AbortSignal) => FrontDoor | Promise<FrontDoor>): Promise<void> {
    const { signal } = this.#giveUp;
    if (signal.aborted) return;
    const opening = (async () => {
      const door = await open(signal);
      this.#doors.push(door);
    })();
    this.#opening.add(opening);
    try {
      await opening;
    } catch (error) {
      if (!signal.aborted) throw error;
    } finally {
      this.#opening.delete(opening);
    }
  }

  /** Close all, the last first, those that are coming up included. @throws AggregateError after all were tried. */
  async close(): Promise<void> {
    this.#giveUp.abort();
    await Promise.allSettled(this.#opening);
    const failures: unknown[] = [];
    for (let door = this.#doors.pop(); door !== undefined; door = this.#doors.pop()) {
      try {
        await door.close();
      } catch (error) {
        failures.push(error);
      }
    }
    if (failures.length > 0) throw new AggregateError(failures, 'some front doors could not be closed');
  }
}
