/** Run one User VM to its end: choose the hypervisor, put the parts together, connect signals and control sockets. */
import { createRequire } from 'node:module';
import {
  type Control,
  connectSignals,
  startCmdMonitor,
  startLifeManagerLine,
  startMonitorSocket,
} from '../control/front-doors.ts';
import { openSoftware, splitRam } from '../devicemodel/core/boot/loader.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import { Disposer } from '../devicemodel/core/disposer.ts';
import { ExitCode } from '../devicemodel/core/errors.ts';
import { affinityOf, readHostMadt, vcpuLapicIds } from '../devicemodel/core/host-madt.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { TimerQueue } from '../devicemodel/core/timer-queue.ts';
import { type HostTurns, Vm } from '../devicemodel/core/vm.ts';
import type { VmEvent } from '../devicemodel/core/vm-events.ts';
import { pcBoard } from '../devicemodel/hw/board.ts';
import { CharBackendPool } from '../devicemodel/hw/uart/backends/pool.ts';
import { isWaitInterruptible } from '../hypervisor/acrn/acrn-hsm.ts';
import { Linger } from '../hypervisor/acrn/linger.ts';
import { chooseHsm } from '../hypervisor/choose.ts';

/** The guest runs first; what it does not need at once (watcher thread, monitor socket) is started this much later. */
const AFTER_START_NS = 2_000_000;

let running: Vm | undefined;
let runningHost: Host | undefined;

/** Something unforeseen was thrown: pause and destroy the VM at once, without waiting for anything. Safe at any time. */
export function abandonVm(): void {
  running?.abandon();
  running = undefined;
  runningHost?.stopNow();
}

/** How this thread shares itself between the guest and the event loop; see hypervisor/blocking-loop/wakeups.ts. */
interface Host {
  readonly clock: TimerQueue & { dispose(): void };
  readonly turns: HostTurns;
  readonly linger?: Linger;
  requestTurn(): void;
  /** Once the guest runs. */
  watch(): void;
  /** For a process that is about to exit: let no thread of ours keep it. */
  stopNow(): void;
  stop(): Promise<void>;
}

/** For a hypervisor whose wait blocks the thread. */
async function blockingHost(): Promise<Host> {
  const { SystemClock } = await import('../hypervisor/blocking-loop/system-clock.ts');
  const { installKickSignal } = await import('../devicemodel/core/host/signals.ts');
  const { Wakeups } = await import('../hypervisor/blocking-loop/wakeups.ts');
  installKickSignal();
  const clock = new SystemClock();
  const wakeups = new Wakeups();
  return {
    clock,
    turns: wakeups,
    requestTurn: () => wakeups.requestTurn(),
    watch: () => wakeups.start(createRequire(import.meta.url).resolve('koffi')),
    stopNow: () => wakeups.stopNow(),
    stop: async () => {
      await wakeups.stop();
      clock.dispose();
    },
  };
}

/**
 * For a wait that leaves this thread to the event loop while the guest idles.
 * @param lookEvery see EventLoopPoll. @param linger for where a request that comes soon saves two changes of thread.
 */
async function waitingHost(lookEvery?: number, linger?: Linger): Promise<Host> {
  const { TimerfdClock } = await import('../hypervisor/turn-loop/timerfd-clock.ts');
  const { EventLoopPoll } = await import('../hypervisor/turn-loop/event-loop-poll.ts');
  const clock = new TimerfdClock();
  const poll = new EventLoopPoll(lookEvery);
  return {
    clock,
    turns: poll,
    ...(linger === undefined ? {} : { linger }),
    requestTurn: () => poll.requestTurn(),
    watch: () => {},
    stopNow: () => {},
    stop: async () => clock.dispose(),
  };
}

async function hostFor(backend: 'acrn' | 'soft'): Promise<Host> {
  // The soft engine runs the guest for milliseconds on this thread before it comes back.
  if (backend === 'soft') return waitingHost(1);
  return isWaitInterruptible() ? blockingHost() : waitingHost(undefined, new Linger());
}

/** @returns the process's exit status: 0 after a power-off. @throws DmError if the VM cannot start or has to be given up. */
export async function runVm(config: VmConfig, log: Log): Promise<ExitCode> {
  const { backend, open } = chooseHsm(config, log);
  const undo = new Disposer();
  try {
    const cpus = backend === 'acrn' ? hostCpus(config, log) : guestCpus();
    const software = openSoftware(bootOf(config), splitRam(config.memoryBytes), log);
    undo.defer(() => software.close());
    const host = await hostFor(backend);
    runningHost = host;
    undo.defer(() => host.stop());
    const consoles = new CharBackendPool({ log, requestTurn: () => host.requestTurn() });
    undo.defer(() => consoles.dispose());

    let publish: (event: VmEvent) => void = () => {};
    const onVmEvent = (event: VmEvent) => publish(event);
    const vm: Vm = new Vm(config, {
      openHsm: open,
      makeBoard: pcBoard({
        consoles,
        lapicIds: cpus.lapicIds,
        onVmEvent,
        onWake: () => vm.wake(),
      }),
      software,
      cpuAffinity: cpus.affinity,
      clock: host.clock,
      turns: host.turns,
      ...(host.linger === undefined ? {} : { linger: host.linger }),
      onVmEvent,
      log,
    });
    running = vm;
    process.on('exit', abandonVm);
    undo.defer(() => void process.off('exit', abandonVm));
    const control: Control = { vm, config, clock: host.clock, log, undo };
    connectSignals(control);
    const lifeManager = await startLifeManagerLine(control, consoles);
    if (config.cmdMonitorPath !== undefined) publish = await startCmdMonitor(control, config.cmdMonitorPath);
    vm.once('started', () => {
      const later = host.clock.createTimer(() => {
        host.watch();
        void startMonitorSocket(control, lifeManager);
        host.requestTurn();
      });
      later.arm(host.clock.nowNs() + AFTER_START_NS);
    });
    await vm.run();
    return ExitCode.Ok;
  } finally {
    running = undefined;
    await undo.run();
  }
}

function bootOf(config: VmConfig): NonNullable<VmConfig['boot']> {
  if (config.boot === undefined) throw new TypeError('a VM without a boot image was let through');
  return config.boot;
}

interface Cpus {
  readonly affinity: bigint;
  readonly lapicIds: (count: number) => readonly number[];
}

/** ACRN: the command line names CPUs by local APIC id, the hypervisor by number. */
function hostCpus(config: VmConfig, log: Log): Cpus {
  const hostIds = readHostMadt();
  const { bitmap, unknownIds } = affinityOf(config.cpuAffinity, hostIds);
  if (unknownIds.length > 0) {
    log.warn(`--cpu_affinity: no CPU has local APIC id ${unknownIds.join(', ')}; this host has ${hostIds.join(', ')}`);
  }
  // Refused here rather than when the tables are written, while there is no VM yet.
  vcpuLapicIds(bitmap, 1, hostIds);
  return { affinity: bitmap, lapicIds: (count) => vcpuLapicIds(bitmap, count, hostIds) };
}

/** An embedded hypervisor runs vCPUs on whatever CPU is free: they count from 0. */
function guestCpus(): Cpus {
  return { affinity: 0n, lapicIds: (count) => Array.from({ length: count }, (_, id) => id) };
}
