/**
 * Hostile guests of every virtio device: random registers, configuration space, rings and memory, and a host that fails
 * in between. Nothing may throw, every call ends soon, reads are within width, nothing outside of guest RAM changes or
 * gets out, and the log stays short.
 */
import { readdirSync } from 'node:fs';
import { makeTargets, type Target } from './virtio-targets.ts';

/** Steps on one device before the next has its turn: it takes several to get anywhere. */
const RUN_STEPS = 250;
const CHECK_EVERY_RUNS = 40;
/** One call into a device may take this long; an endless loop takes longer. */
const MAX_CALL_MS = 2000;
/** Lines of one device that its guest provoked: the ration of every scope, with room for what hosts do. */
const MAX_LINES_A_SECOND = 50;

/** Time between two steps: none to speak of, or more than anything waits. */
const PAUSES_NS = [1, 1000, 1e7, 6e9];
const SHORT_PAUSES_NS = [1, 1000, 1e5];
/** Of the steps of a busy guest, one in this many is none of its work. */
const BUSY_RARITY = 50;

/** Descriptors and threads this process may have more afterwards: its compiler's. A leak has one for every reset. */
const MAX_NEW_HANDLES = 50;
const handles = () => readdirSync('/proc/self/fd').length + readdirSync('/proc/self/task').length;

export interface FuzzResult {
  readonly steps: number;
  readonly devices: number;
  readonly kicks: number;
  readonly served: number;
  readonly interrupts: number;
}

/** What comes to a machine from outside of its guest. */
function interrupt({ machine, random }: Target): void {
  const chance = random.below(40);
  if (chance === 0) machine.host.reset();
  else if (chance < 3) machine.host.suspend();
  else if (chance < 6) machine.host.resume();
}

function step(target: Target): void {
  const { machine, guest, random, hostEvent } = target;
  const isBroken = (machine.fn.status & 0x40) !== 0 || machine.fn.status === 0;
  if (isBroken && random.oneIn(8)) guest.setUp();
  if (machine.isBusy && !random.oneIn(BUSY_RARITY)) {
    guest.offer();
    return;
  }
  switch (random.below(48)) {
    case 0:
      guest.setUp();
      break;
    case 1:
    case 2:
      guest.configAccess();
      break;
    case 3:
      machine.clock.advance(random.pick(machine.isBusy ? SHORT_PAUSES_NS : PAUSES_NS));
      break;
    case 4:
      hostEvent();
      break;
    case 5:
      interrupt(target);
      break;
    case 6:
      guest.vectorAccess();
      break;
    case 7:
      guest.kick(random.oneIn(4) ? random.value() & 0xffff : random.below(8));
      break;
    case 8:
    case 9:
    case 10:
    case 11:
    case 12:
      guest.access();
      break;
    case 13:
    case 14:
    case 15:
    case 16:
      guest.scribble();
      break;
    default:
      guest.offer();
  }
}

/** Timers are kept from drifting apart: what waits for the event loop has its turn at fixed steps. */
const turn = () => new Promise((resolve) => setImmediate(resolve));

/**
 * @param filter names of devices begin with it; '' for all
 * @throws Error with device, seed and step
 */
export async function fuzzVirtio(seed: number, steps: number, filter = ''): Promise<FuzzResult> {
  const handlesBefore = handles();
  const { targets, dispose } = await makeTargets(seed, filter);
  let done = 0;
  let name = '';
  try {
    for (const target of targets) await target.machine.host.start();
    const startMs = performance.now();
    for (let run = 0; done < steps; run++) {
      const target = targets[run % targets.length] as Target;
      name = target.name;
      for (let i = 0; i < RUN_STEPS && done < steps; i++, done++) {
        const from = performance.now();
        step(target);
        if (performance.now() - from > MAX_CALL_MS) throw new Error('one call took too long');
      }
      await turn();
      if (Math.floor(run / targets.length) % CHECK_EVERY_RUNS === 0) target.check();
    }
    const seconds = 1 + (performance.now() - startMs) / 1000;
    for (const target of targets) {
      name = target.name;
      target.check();
      await target.machine.stop();
      if (target.machine.logLines > MAX_LINES_A_SECOND * seconds)
        throw new Error(`${target.machine.logLines} log lines`);
    }
  } catch (error) {
    throw new Error(`${name}: seed ${seed}, step ${done} of ${steps}: ${(error as Error).message}`, { cause: error });
  } finally {
    for (const target of targets) target.dispose();
    dispose();
  }
  await turn();
  const leaked = handles() - handlesBefore;
  if (leaked > MAX_NEW_HANDLES) throw new Error(`seed ${seed}: ${leaked} descriptors and threads are left`);
  const sum = (of: (target: Target) => number) => targets.reduce((total, target) => total + of(target), 0);
  return {
    steps: done,
    devices: targets.length,
    kicks: sum((t) => t.guest.kicks),
    served: sum((t) => t.guest.served),
    interrupts: sum((t) => t.machine.interrupts),
  };
}
