/**
 * A thread for each vCPU, see vcpu-thread.ts. The device thread sleeps on a doorbell that each exit rings: in a futex, or
 * in its event loop if it is not for one VM alone. Neither side goes through the other's event loop otherwise. Where it sleeps
 * in a futex, its CPU follows the vCPU that keeps it busy.
 */
import { createRequire } from 'node:module';
import { BugError, ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { Eventfd, signalEventfd } from '../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import { futexWait, futexWaitFor, futexWake } from '../../devicemodel/core/host/futex.ts';
import type { KvmVcpu } from '../../devicemodel/core/host/kvm.ts';
import { RunField } from '../../devicemodel/core/host/kvm-abi.ts';
import { addressOf } from '../../devicemodel/core/host/mapping.ts';
import { cpuMask, signalThread } from '../../devicemodel/core/host/scheduling.ts';
import { installKickSignal, KICK_SIGNAL } from '../../devicemodel/core/host/signals.ts';
import { startWorker } from '../../devicemodel/core/host/worker.ts';
import { accessMapWords, isForFunction } from '../embedded/access-map.ts';
import { CpuFollower } from './cpu-follower.ts';
import type { OnExit, VcpuRunner } from './runner.ts';
import {
  HYPERVISOR_ENDED,
  THREAD_ENDED,
  Turn,
  type VcpuThreadData,
  VcpuWord,
  vcpuThread,
  WORDS_PER_VCPU,
} from './vcpu-thread.ts';

/** A thread that was recalled is asked this often whether it is still there. */
const LOOK_MS = 100;

/** The thread that answers for the hypervisor's functions, as vCPUs need it. */
export interface HypervisorThread {
  /** Rung when it has got a vCPU. */
  readonly bellFd: number;
  /** Nobody else has its number until this is let go. */
  holdBell(): () => void;
  /** False: it touches nothing any more. */
  readonly isThere: boolean;
  /** Why it is not there; undefined: it was told to end. */
  readonly failure: Error | undefined;
  /** Called when it has ended by itself. */
  onLost: (() => void) | undefined;
}

/** What the hypervisor's thread needs to serve vCPUs. */
export interface VcpuWires {
  /** Of all vCPUs, {@link VcpuWord}. */
  readonly words: Int32Array;
  /** Of the device thread. */
  readonly doorbell: Int32Array;
  /** -1: none. */
  readonly doorbellFd: number;
}

export interface ThreadedRunnerOptions {
  readonly vcpus: readonly KvmVcpu[];
  /** CPU of each vCPU; missing: any. */
  readonly cpus: readonly (number | undefined)[];
  /** Of the VM, see embedded/access-map.ts; default: nobody else has its register. */
  readonly accessMap?: Int32Array | undefined;
  readonly hypervisor?: HypervisorThread | undefined;
  /** The thread sleeps in a system call that a signal ends; else its event loop is free meanwhile. */
  readonly blocks: boolean;
  /** @internal What the threads do, for tests. */
  readonly thread?: typeof vcpuThread;
  /** @internal The module that their system calls go through, for tests. */
  readonly koffiPath?: string;
}

export class ThreadedRunner implements VcpuRunner {
  readonly #vcpus: readonly KvmVcpu[];
  readonly #words: Int32Array;
  readonly #doorbell = new Int32Array(new SharedArrayBuffer(4));
  readonly #doorbellFd: Eventfd | undefined;
  readonly #unwatch: (() => void) | undefined;
  readonly #follower: CpuFollower | undefined;
  readonly #hypervisor: HypervisorThread | undefined;
  readonly #letBellGo: (() => void) | undefined;
  /** Given to the guest, and not told of since. */
  readonly #isOut: boolean[];
  readonly #ended: Promise<unknown>[] = [];
  #onRing: (() => void) | undefined;
  #failure: Error | undefined;
  #isOver = false;

  /** @throws HostError when the host has no more threads or descriptors. */
  constructor(options: ThreadedRunnerOptions) {
    const { vcpus, cpus, blocks, hypervisor } = options;
    installKickSignal();
    this.#vcpus = vcpus;
    this.#hypervisor = hypervisor;
    this.#isOut = vcpus.map(() => false);
    this.#words = new Int32Array(new SharedArrayBuffer(4 * WORDS_PER_VCPU * vcpus.length));
    if (hypervisor !== undefined) hypervisor.onLost = () => this.#ring();
    this.#letBellGo = hypervisor?.holdBell();
    try {
      if (!blocks) {
        const eventfd = new Eventfd();
        this.#doorbellFd = eventfd;
        this.#unwatch = watchFd(eventfd.fd, () => {
          eventfd.take();
          this.#ring();
        });
      }
      this.#follower = blocks ? new CpuFollower(cpus) : undefined;
      const accessMap = options.accessMap ?? accessMapWords();
      for (const index of vcpus.keys()) this.#startThread(index, accessMap, options);
    } catch (error) {
      // Those that run wait for their turn in the kernel, and the process would wait for them at its end.
      this.dispose();
      throw error;
    }
  }

  get wires(): VcpuWires {
    return { words: this.#words, doorbell: this.#doorbell, doorbellFd: this.#doorbellFd?.fd ?? -1 };
  }

  resume(vcpu: number): void {
    this.#isOut[vcpu] = true;
    this.#setTurn(vcpu, Turn.granted);
  }

  handOn(vcpu: number, partsDone: number): void {
    const hypervisor = this.#hypervisor;
    if (hypervisor === undefined) throw new BugError(`vcpu${vcpu}: the hypervisor has no thread`);
    this.#isOut[vcpu] = true;
    Atomics.store(this.#words, this.#at(vcpu, VcpuWord.result), partsDone);
    Atomics.store(this.#words, this.#at(vcpu, VcpuWord.turn), Turn.hypervisor);
    signalEventfd(hypervisor.bellFd);
  }

  tell(onExit: OnExit): boolean {
    this.#failure ??= this.#hypervisor?.failure;
    if (this.#failure !== undefined) throw this.#failure;
    let isAny = false;
    for (let vcpu = 0; vcpu < this.#isOut.length; vcpu++) {
      if (!this.#isOut[vcpu] || this.#word(vcpu, VcpuWord.turn) !== Turn.device) continue;
      isAny = true;
      this.#isOut[vcpu] = false;
      const result = this.#word(vcpu, VcpuWord.result);
      if (result === THREAD_ENDED) throw this.#lost(vcpu);
      if (result === HYPERVISOR_ENDED) throw this.#lostHypervisor();
      this.#follower?.onExit(vcpu);
      onExit(vcpu, result);
    }
    return isAny;
  }

  collect(onExit: OnExit): boolean | Promise<boolean> {
    const rung = Atomics.load(this.#doorbell, 0);
    if (this.tell(onExit)) return true;
    if (this.#doorbellFd === undefined) {
      futexWait(this.#doorbell, rung);
      if (Atomics.load(this.#doorbell, 0) === rung) this.#follower?.onOther();
      return this.tell(onExit);
    }
    return new Promise<void>((resolve) => {
      this.#onRing = resolve;
    }).then(() => this.tell(onExit));
  }

  recall(): void {
    for (const [vcpu, { run }] of this.#vcpus.entries()) {
      const turnAt = this.#at(vcpu, VcpuWord.turn);
      // Whatever it is doing, it does not enter the guest again; the signal is for one that is there. The store behind it makes
      // sure that it is seen before the look at the turn.
      run[RunField.immediateExit] = 1;
      Atomics.store(this.#words, this.#at(vcpu, VcpuWord.recalled), 1);
      if (Atomics.load(this.#words, turnAt) === Turn.guest) signalThread(this.#word(vcpu, VcpuWord.tid), KICK_SIGNAL);
    }
    for (const [vcpu, { run }] of this.#vcpus.entries()) {
      this.#waitFor(vcpu);
      run[RunField.immediateExit] = 0;
      Atomics.store(this.#words, this.#at(vcpu, VcpuWord.recalled), 0);
    }
  }

  /** Until the vCPU is the device thread's, by itself or from what was given and not taken up. */
  #waitFor(vcpu: number): void {
    for (;;) {
      const rung = Atomics.load(this.#doorbell, 0);
      const was = Atomics.compareExchange(this.#words, this.#at(vcpu, VcpuWord.turn), Turn.granted, Turn.device);
      if (was === Turn.granted) Atomics.store(this.#words, this.#at(vcpu, VcpuWord.result), -Errno.EINTR);
      if (was !== Turn.guest && was !== Turn.hypervisor) return;
      futexWaitFor(this.#doorbell, rung, LOOK_MS);
      this.#takeFromTheDead(vcpu);
    }
  }

  /** A thread that ended without its last word has the turn still: it is the device thread's then. */
  #takeFromTheDead(vcpu: number): void {
    const at = this.#at(vcpu, VcpuWord.turn);
    const turn = Atomics.load(this.#words, at);
    let result: number;
    if (turn === Turn.guest) {
      if (signalThread(this.#word(vcpu, VcpuWord.tid), KICK_SIGNAL) !== -Errno.ESRCH) return;
      result = THREAD_ENDED;
    } else if (turn === Turn.hypervisor && this.#hypervisor?.isThere !== true) {
      result = HYPERVISOR_ENDED;
    } else {
      return;
    }
    // It may have said it just before.
    if (Atomics.load(this.#words, at) !== turn) return;
    Atomics.store(this.#words, this.#at(vcpu, VcpuWord.result), result);
    Atomics.store(this.#words, at, Turn.device);
  }

  #lostHypervisor(): Error {
    const message = "the thread of the hypervisor's devices ended by itself";
    this.#failure ??= new HostError(message, -HYPERVISOR_ENDED, { exitCode: ExitCode.VmFailed });
    return this.#failure;
  }

  #lost(vcpu: number, cause?: Error): Error {
    const message = `vcpu${vcpu}: its thread ended by itself${cause === undefined ? '' : `: ${cause.message}`}`;
    const details = { exitCode: ExitCode.VmFailed, ...(cause === undefined ? {} : { cause }) };
    this.#failure ??= new HostError(message, -THREAD_ENDED, details);
    return this.#failure;
  }

  forget(): void {
    this.#isOut.fill(false);
  }

  wake(): void {
    this.#ring();
  }

  /** Threads end by themselves after this; they use nothing that is given back meanwhile. */
  dispose(): void {
    this.#isOver = true;
    this.#follower?.leave();
    this.recall();
    for (const vcpu of this.#vcpus.keys()) this.#setTurn(vcpu, Turn.over);
    this.#unwatch?.();
    // A thread may be about to ring once more: the descriptor's number must not be somebody else's by then.
    void Promise.allSettled(this.#ended).then(() => {
      this.#doorbellFd?.dispose();
      this.#letBellGo?.();
    });
    this.#ring();
  }

  #ring(): void {
    const onRing = this.#onRing;
    this.#onRing = undefined;
    onRing?.();
  }

  #at(vcpu: number, word: number): number {
    return vcpu * WORDS_PER_VCPU + word;
  }

  #word(vcpu: number, word: number): number {
    return Atomics.load(this.#words, this.#at(vcpu, word));
  }

  #setTurn(vcpu: number, turn: number): void {
    const at = this.#at(vcpu, VcpuWord.turn);
    Atomics.store(this.#words, at, turn);
    futexWake(this.#words.subarray(at, at + 1));
  }

  /** It need not be up before its vCPU is resumed, nor before it is recalled. @throws HostError */
  #startThread(index: number, accessMap: Int32Array, options: ThreadedRunnerOptions): void {
    const { vcpus, cpus, thread = vcpuThread, koffiPath } = options;
    const { fd, run } = vcpus[index] as KvmVcpu;
    const cpu = cpus[index];
    const name = `vcpu${index}`;
    const code = `(${thread.toString()})(${isForFunction.toString()})`;
    const workerData: VcpuThreadData = {
      words: this.#words,
      index,
      doorbell: this.#doorbell,
      doorbellFd: this.#doorbellFd?.fd ?? -1,
      hypervisorFd: this.#hypervisor?.bellFd ?? -1,
      accessMap,
      runAddress: addressOf(run),
      runBytes: run.length,
      vcpuFd: fd,
      koffiPath: koffiPath ?? createRequire(import.meta.url).resolve('koffi'),
      name,
      cpuMask: cpu === undefined ? new Uint8Array(0) : cpuMask([cpu]),
    };
    const worker = startWorker(code, { eval: true, workerData, stdin: false, name }, name);
    // It ends by order; until then it is the VM that keeps the process.
    worker.unref();
    const onLost = (cause?: Error) => {
      if (this.#isOver) return;
      this.#lost(index, cause);
      this.#ring();
    };
    worker.on('error', onLost);
    const ended = new Promise<void>((resolve) => worker.once('exit', () => resolve()));
    this.#ended.push(ended.then(() => onLost()));
  }
}
