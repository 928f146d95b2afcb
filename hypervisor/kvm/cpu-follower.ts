/**
 * Where the device thread runs beside vCPUs that have threads of their own: on any CPU, or on that of the one vCPU that keeps
 * it busy. There an exit is two changes of thread on one CPU; otherwise it wakes a sleeping CPU twice, which takes longer
 * than to serve it. The vCPU loses nothing: it waits meanwhile.
 *
 * Which one it is, is a majority vote: exits of the candidate count for it, those of others and what else wanted the device
 * thread against it. So a vCPU that computes while the device thread has work for others gets its CPU back.
 */
import { keepDeviceThreadOn, unpinDeviceThread } from '../../devicemodel/core/host/scheduling.ts';

/** So many votes ahead of everybody else; no vote counts beyond. */
const MAJORITY = 64;
/** Of an exit of another vCPU, which waits for one that computes meanwhile: only four of five exits make it worth that. */
const OTHER_VCPU_WEIGHT = 4;
/** A wake-up for something else is work of unknown length, which would take the vCPU's CPU. */
const OTHER_WEIGHT = 8;

export interface ThreadPlace {
  /** @returns whether it is there: it may not be meant for it. */
  pin(cpu: number): boolean;
  unpin(): unknown;
}

const deviceThread: ThreadPlace = { pin: keepDeviceThreadOn, unpin: unpinDeviceThread };

export class CpuFollower {
  readonly #cpus: readonly (number | undefined)[];
  readonly #place: ThreadPlace;
  #candidate = 0;
  #votes = 0;
  #isPinned = false;

  /** @param cpus CPU of each vCPU; those on any CPU are not followed. */
  constructor(cpus: readonly (number | undefined)[], place: ThreadPlace = deviceThread) {
    this.#cpus = cpus;
    this.#place = place;
  }

  /** The device thread has an exit of this vCPU before it. */
  onExit(vcpu: number): void {
    if (this.#votes === 0) this.#candidate = vcpu;
    if (vcpu !== this.#candidate) this.#voteAgainst(OTHER_VCPU_WEIGHT);
    else if (this.#votes < MAJORITY && ++this.#votes === MAJORITY) this.#follow();
  }

  /** It was woken, and not by an exit. */
  onOther(): void {
    this.#voteAgainst(OTHER_WEIGHT);
  }

  /** Back to any CPU. */
  leave(): void {
    this.#votes = 0;
    if (!this.#isPinned) return;
    this.#isPinned = false;
    this.#place.unpin();
  }

  #voteAgainst(weight: number): void {
    this.#votes = Math.max(0, this.#votes - weight);
    if (this.#votes === 0) this.leave();
  }

  #follow(): void {
    const cpu = this.#cpus[this.#candidate];
    if (cpu === undefined || this.#isPinned) return;
    this.#isPinned = this.#place.pin(cpu);
  }
}
