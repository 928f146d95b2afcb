/**
 * How fast an embedded hypervisor is on this machine: instructions and exits a second of a guest of its own, which goes
 * through all that a User VM goes through but a board with devices.
 */
import type { Board, BoardParts } from '../devicemodel/core/board.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { ConfigError, ExitCode } from '../devicemodel/core/errors.ts';
import { allocateGuestRam } from '../devicemodel/core/guest-ram.ts';
import type { VcpuRegs } from '../devicemodel/core/hsm/hsm.ts';
import { type Log, silentLog } from '../devicemodel/core/log.ts';
import { Vm } from '../devicemodel/core/vm.ts';
import { chooseHypervisor } from '../hypervisor/choose.ts';
import { Command, INSTRUCTIONS_A_LOOP, type Kind, kinds, machineCode } from './benchmark-guest.ts';

export interface BenchmarkResult {
  readonly hypervisor: 'kvm' | 'soft';
  readonly vcpus: number;
  /**
   * What vCPU 0 does, as 32-bit code without paging, in a second of CPU time of this process: what else the machine does
   * hardly counts.
   */
  readonly instructionsPerSecond: number;
  /** Reads of an I/O port that the device model answers, in a second that passes. */
  readonly portExitsPerSecond: number;
  /** Reads of device memory that the device model answers, in a second that passes. */
  readonly mmioExitsPerSecond: number;
  /** Of which these are the medians. */
  readonly rounds: number;
}

/** A round that takes less is not counted: the next one is twice as long. */
const MIN_ROUND_MS = 150;
const ROUNDS = 5;
const MAX_LOOPS = 0x2000_0000;
/** In these everything is compiled that runs at each exit; they never count. */
const WARM_UP_LOOPS = 4000;

/** Where the guest is and what it touches. */
const At = { code: 0x1000, stack: 0x7000, data: 0x8000, device: 0xf000_0000 } as const;
const Port = { command: 0x5f0, exit: 0x80 } as const;
const DEVICE_BYTES = 0x1000;

/** Of clocks that do not jump. */
export interface Times {
  readonly passedMs: number;
  /** Of this process. */
  readonly cpuMs: number;
}

function times(): Times {
  const { user, system } = process.cpuUsage();
  return { passedMs: performance.now(), cpuMs: (user + system) / 1000 };
}

/** What the guest is told to do next, and how long the last took: begins where a round is long enough to be measured. */
export class BenchmarkPlan {
  readonly #perSecond: Record<Kind, number[]> = { work: [], port: [], mmio: [] };
  #kind: Kind = 'work';
  #loops = WARM_UP_LOOPS;
  #isWarm = false;
  #start: Times | undefined;

  /** The guest is at the end of what it was told. @returns its next command; 0: nothing is left. */
  next(now: Times): number {
    const clock = this.#kind === 'work' ? 'cpuMs' : 'passedMs';
    if (this.#start !== undefined) this.#finish(now[clock] - this.#start[clock]);
    if (this.#perSecond.mmio.length === ROUNDS) return 0;
    this.#start = now;
    return Command[this.#kind] | this.#loops;
  }

  /** Median of a kind, in loops a second. */
  perSecond(kind: Kind): number {
    return this.#perSecond[kind].toSorted((a, b) => a - b)[ROUNDS >> 1] ?? 0;
  }

  #finish(tookMs: number): void {
    if (tookMs < MIN_ROUND_MS && this.#loops < MAX_LOOPS) {
      this.#loops *= 2;
      return;
    }
    if (!this.#isWarm) {
      this.#isWarm = true;
      return;
    }
    const rounds = this.#perSecond[this.#kind];
    rounds.push((this.#loops / tookMs) * 1000);
    if (rounds.length < ROUNDS) return;
    const following = kinds[kinds.indexOf(this.#kind) + 1];
    if (following === undefined) return;
    this.#kind = following;
    this.#loops = WARM_UP_LOOPS;
    this.#isWarm = false;
  }
}

/**
 * Start the guest on the hypervisor that the configuration names, and measure. It takes some seconds.
 * @param config without a boot image or devices.
 * @throws ConfigError where ACRN would be taken; HostError when the hypervisor cannot be had.
 */
export async function measureHypervisor(config: VmConfig, log: Log): Promise<BenchmarkResult> {
  const hypervisor = await chooseHypervisor(config, log, { ownsThread: true });
  const { kind } = hypervisor;
  if (kind === 'acrn') {
    throw new ConfigError('--benchmark: this machine has ACRN, and only the embedded hypervisor is measured', {
      exitCode: ExitCode.Unavailable,
      hint: 'add --hypervisor soft or kvm',
    });
  }
  const [problem] = await hypervisor.problems(config);
  if (problem !== undefined) throw problem;
  const { affinity } = hypervisor.cpus(config, log);
  const loop = await hypervisor.loop(log);
  const plan = new BenchmarkPlan();
  let vcpus = 0;
  try {
    const vm = new Vm(config, {
      openHsm: () => hypervisor.open(config, log),
      makeBoard: async (parts) => {
        vcpus = parts.vcpuCount;
        return bareBoard(parts, plan);
      },
      software: {
        regions: [],
        load: (memory) => {
          memory.write(At.code, machineCode);
          return startRegs;
        },
        save: () => {},
      },
      cpuAffinity: affinity,
      // A few pages: how large they are does not matter, nor does anybody want to hear of it.
      allocateRam: (regions) => allocateGuestRam(regions, true, silentLog),
      loop,
      log: silentLog,
    });
    await vm.run();
  } finally {
    await loop.stop();
  }
  return {
    hypervisor: kind,
    vcpus,
    instructionsPerSecond: Math.round(plan.perSecond('work') * INSTRUCTIONS_A_LOOP),
    portExitsPerSecond: Math.round(plan.perSecond('port')),
    mmioExitsPerSecond: Math.round(plan.perSecond('mmio')),
    rounds: ROUNDS,
  };
}

/** 32-bit protected mode, flat, interrupts off. */
const startRegs: VcpuRegs = {
  rip: BigInt(At.code),
  rsp: BigInt(At.stack),
  rdx: BigInt(Port.command),
  rsi: BigInt(At.data),
  rdi: BigInt(At.device),
  cr0: 0x31n,
  cs: { selector: 0x10, base: 0n, limit: 0xffff_ffff, attributes: 0xc09b },
  ss: 0x18,
  ds: 0x18,
  es: 0x18,
};

/** What the guest talks to, and no PC around it. */
function bareBoard({ pio, mmio, power, undo }: BoardParts, plan: BenchmarkPlan): Board {
  const ignore = () => {};
  undo.add(
    pio.register(
      { base: Port.command, size: 4, name: 'benchmark' },
      {
        read: () => {
          const command = plan.next(times());
          if (command === 0) power.request({ kind: 'poweroff', reason: 'all is measured' });
          return command;
        },
        write: ignore,
      },
    ),
  );
  const device = { read: () => 0, write: ignore };
  undo.add(pio.register({ base: Port.exit, size: 1, name: 'benchmark' }, device));
  undo.add(mmio.register({ base: At.device, size: DEVICE_BYTES, name: 'benchmark' }, device));
  return {
    pciConfig: { readConfig: () => 0xffff_ffff, writeConfig: ignore },
    start: async () => {},
    writeTables: ignore,
    flush: ignore,
    settle: () => undefined,
    reset: async () => {},
    restore: ignore,
    suspend: ignore,
    resume: ignore,
    pressPowerButton: () => false,
    rescanBlockDevice: async () => false,
    changeMedium: async () => {},
    resizeDisk: async () => 0,
    setLink: async () => {},
  };
}
