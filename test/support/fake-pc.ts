/**
 * A whole PC on the fake hypervisor: the real VM life cycle and the real board with its devices, a guest that does what
 * the test says, RAM of this process.
 *
 *   const pc = makePc(['-s', '5,ivshmem,hv:/shm,2'], (hsm, life) => void hsm.guest.outb(0xcf9, 0x0e));
 *   await pc.vm.run();
 */
import { parseCommandLine } from '../../cmd/cli.ts';
import type { BoardParts } from '../../devicemodel/core/board.ts';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import type { GuestLoop } from '../../devicemodel/core/guest-loop.ts';
import { map } from '../../devicemodel/core/host/mapping.ts';
import type { VcpuRegs } from '../../devicemodel/core/hsm/hsm.ts';
import { KeptOverLives } from '../../devicemodel/core/kept-over-lives.ts';
import { Log, LogLevel } from '../../devicemodel/core/log.ts';
import { MiB } from '../../devicemodel/core/units.ts';
import { Vm } from '../../devicemodel/core/vm.ts';
import { pcBoard } from '../../devicemodel/hw/board.ts';
import type { HostTree } from '../../devicemodel/hw/pci/driver.ts';
import { ManagedFunctions } from '../../devicemodel/hw/pci/passthru/managed.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { CharBackendPool } from '../../devicemodel/hw/uart/backends/pool.ts';
import { FakeHsm } from './fake-hsm.ts';
import { EventLoopClock, TestLoop } from './test-loop.ts';

const MEMORY_BYTES = 128 * MiB;
/** Not cleared between machines: no test here looks at what a guest would find in it. */
const ram = new Uint8Array(MEMORY_BYTES);

const START_REGS: VcpuRegs = {
  rip: 0x100_0000n,
  cr0: 0x31n,
  cs: { selector: 0x10, base: 0n, limit: 0xffff_ffff, attributes: 0xc09b },
};

export interface FakePc {
  readonly vm: Vm;
  readonly config: VmConfig;
  /** One per life. */
  readonly lives: FakeHsm[];
  /** Every line up to debug. */
  readonly log: readonly string[];
  /** What the board of the present life was given. */
  readonly parts: BoardParts;
  /** RAM handed out and not given back. */
  readonly ramOut: number;
  dispose(): Promise<void>;
}

export interface FakePcOptions {
  readonly logLevel?: number;
  /** How requests come: see FakeHsm. */
  readonly serving?: 'inside' | 'from-page';
  /** Whose PCI functions are passed through. */
  readonly hostTree?: HostTree;
  readonly vcpuCount?: number;
  /** RAM of its own for each life, at real addresses: system calls and data threads work on it. */
  readonly hasOwnRam?: boolean;
  /** Default: a loop without a time of its own. */
  readonly loop?: GuestLoop;
}

/**
 * @param argv beside hostbridge, lpc and COM1 connected to nothing
 * @param prepare called with the hypervisor of each life, before anything is asked of it
 */
export function makePc(
  argv: readonly string[],
  prepare: (hsm: FakeHsm, life: number) => void = () => {},
  {
    logLevel = LogLevel.debug,
    serving = 'from-page',
    hasOwnRam = false,
    vcpuCount = 1,
    hostTree,
    loop,
  }: FakePcOptions = {},
): FakePc {
  const base = ['-m', '128M', '-k', 'kernel', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,null'];
  const order = parseCommandLine([...base, ...argv, 'vm1'], pciDrivers);
  if (order.action !== 'run') throw new TypeError('the options ask for no VM');
  const { config } = order;
  const lines: string[] = [];
  const log = new Log([{ maxLevel: logLevel, write: (_level, line) => void lines.push(line) }]);
  const clock = new EventLoopClock();
  const consoles = new CharBackendPool({ log, requestTurn: () => {} });
  const lives: FakeHsm[] = [];
  let parts: BoardParts | undefined;
  let ramOut = 0;
  const managed = new ManagedFunctions(log);
  const kept = new KeptOverLives();
  const board = pcBoard({
    consoles,
    lapicIds: (count) => Array.from({ length: count }, (_, id) => id),
    ...(hostTree === undefined ? {} : { hostTree }),
    managed,
    kept,
  });
  const vm: Vm = new Vm(config, {
    openHsm: async () => {
      const hsm = new FakeHsm({ serving, vcpuCount });
      lives.push(hsm);
      prepare(hsm, lives.length);
      return hsm;
    },
    makeBoard: (given) => {
      parts = given;
      return board(given);
    },
    software: { regions: [], save: () => {}, load: () => START_REGS },
    cpuAffinity: 0n,
    allocateRam: (regions) => {
      ramOut++;
      const pieces = regions.map(({ base, sizeBytes }) => {
        if (!hasOwnRam) return { base, bytes: ram.subarray(0, sizeBytes), hostAddress: 0x1000n, dispose: () => {} };
        const { bytes, address, dispose } = map(sizeBytes, 'RAM of a test');
        return { base, bytes, hostAddress: address, dispose };
      });
      return {
        chunks: pieces,
        segments: pieces.map(({ base, bytes, hostAddress }) => ({
          gpa: base,
          sizeBytes: bytes.length,
          bytes,
          hostAddress,
          writable: true,
        })),
        dispose: () => {
          ramOut--;
          for (const piece of pieces) piece.dispose();
        },
      };
    },
    loop: loop ?? new TestLoop({ clock, hasTurns: false }),
    log,
  });
  return {
    vm,
    config,
    lives,
    log: lines,
    get parts() {
      if (parts === undefined) throw new TypeError('there was no life yet');
      return parts;
    },
    get ramOut() {
      return ramOut;
    },
    dispose: async () => {
      await managed.giveBack();
      await kept.close();
      await consoles.dispose();
      clock.dispose();
    },
  };
}
