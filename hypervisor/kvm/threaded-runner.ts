/**
 * A thread for each vCPU, see vcpu-thread.ts. The device thread sleeps on a doorbell that each exit rings: in a futex, or
 * in its event loop if it is not for one VM alone. Neither side goes through the other's event loop otherwise. Where it sleeps
 * in a futex, its CPU follows the vCPU that keeps it busy.
 */
import { createRequire } from 'node:module';
import { ExitCode, HostError } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { Eventfd } from '../../devicemodel/core/host/eventfd.ts';
import { watchFd } from '../../devicemodel/core/host/fd-watch.ts';
import { futexWait, futexWaitFor, futexWake } from '../../devicemodel/core/host/futex.ts';
import type { KvmVcpu } from '../../devicemodel/core/host/kvm.ts';
import { RunField } from '../../devicemodel/core/host/kvm-abi.ts';
import { cpuMask, signalThread } from '../../devicemodel/core/host/scheduling.ts';
import { installKickSignal, KICK_SIGNAL } from '../../devicemodel/core/host/signals.ts';
import { startWorker } from '../../devicemodel/core/host/worker.ts';
import { CpuFollower } from './cpu-follower.ts';
import type { OnExit, VcpuRunner } from './runner.ts';
import { THREAD_ENDED, Turn, type VcpuThreadData, VcpuWord, vcpuThread, WORDS_PER_VCPU } from './vcpu-thread.ts';

/** A thread that was recalled is asked this often whether it is still there. */
const LOOK_MS = 100;

export interface ThreadedRunnerOptions {
  readonly vcpus: readonly KvmVcpu[];
  /** CPU of each vCPU; missing: any. */
  readonly cpus: readonly (number | undefined)[];
  /** The thread sleeps in a system call that a signal ends; else its event loop is free meanwhile. */
  readonly blocks: boolean;
  /** @internal What the threads do, for tests. */
  readonly thread?: () => void;
}

export class ThreadedRunner implements VcpuRunner {
  readonly #vcpus: readonly KvmVcpu[];
  readonly #words: Int32Array;
  readonly #doorbell = new Int32Array(new SharedArrayBuffer(4));
  readonly #doorbellFd: Eventfd | undefined;
  readonly #unwatch: (() => void) | undefined;
  readonly #follower: CpuFollower | undefined;
  /** Given to the guest, and not told of since. */
  readonly #isOut: boolean[];
  readonly #ended: Promise<unknown>[] = [];
  #onRing: (() => void) | undefined;
  #failure: Error | undefined;
  #isOver = false;

  /** @throws HostError when the host has no more threads or descriptors. */
  constructor({ vcpus, cpus, blocks, thread = vcpuThread }: ThreadedRunnerOptions) {
    installKickSignal();
    this.#vcpus = vcpus;
    this.#isOut = vcpus.map(() => false);
    this.#words = new Int32Array(new SharedArrayBuffer(4 * WORDS_PER_VCPU * vcpus.length));
    const koffiPath = createRequire(import.meta.url).resolve('koffi');
    const code = `(${thread.toString()})()`;
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
      for (const [index, vcpu] of vcpus.entries()) this.#startThread(code, index, vcpu.fd, koffiPath, cpus[index]);
    } catch (error) {
      // Those that run wait for their turn in the kernel, and the process would wait for them at its end.
      this.dispose();
      throw error;
    }
  }

  resume(vcpu: number): void {
    this.#isOut[vcpu] = true;
    this.#setTurn(vcpu, Turn.granted);
  }

  tell(onExit: OnExit): boolean {
    if (this.#failure !== undefined) throw this.#failure;
    let isAny = false;
    for (let vcpu = 0; vcpu < this.#isOut.length; vcpu++) {
      if (!this.#isOut[vcpu] || this.#word(vcpu, VcpuWord.turn) !== Turn.device) continue;
      isAny = true;
      this.#isOut[vcpu] = false;
      if (this.#word(vcpu, VcpuWord.result) === THREAD_ENDED) throw this.#lost(vcpu);
      this.#follower?.onExit(vcpu);
      onExit(vcpu, this.#word(vcpu, VcpuWord.result));
    }
    return isAny;
  }

  collect(onExit: OnExit): undefined | Promise<void> {
    const rung = Atomics.load(this.#doorbell, 0);
    if (this.tell(onExit)) return undefined;
    if (this.#doorbellFd === undefined) {
      futexWait(this.#doorbell, rung);
      if (Atomics.load(this.#doorbell, 0) === rung) this.#follower?.onOther();
      this.tell(onExit);
      return undefined;
    }
    return new Promise<void>((resolve) => {
      this.#onRing = resolve;
    }).then(() => void this.tell(onExit));
  }

  recall(): void {
    for (const [vcpu, { run }] of this.#vcpus.entries()) {
      const turnAt = this.#at(vcpu, VcpuWord.turn);
      Atomics.store(this.#words, this.#at(vcpu, VcpuWord.recalled), 1);
      // Whatever it is doing, it does not enter the guest again; the signal is for one that is there.
      run[RunField.immediateExit] = 1;
      const was = Atomics.compareExchange(this.#words, turnAt, Turn.granted, Turn.device);
      if (was === Turn.granted) Atomics.store(this.#words, this.#at(vcpu, VcpuWord.result), -Errno.EINTR);
      else if (was === Turn.guest) signalThread(this.#word(vcpu, VcpuWord.tid), KICK_SIGNAL);
    }
    for (const [vcpu, { run }] of this.#vcpus.entries()) {
      for (;;) {
        const rung = Atomics.load(this.#doorbell, 0);
        if (this.#word(vcpu, VcpuWord.turn) !== Turn.guest) break;
        futexWaitFor(this.#doorbell, rung, LOOK_MS);
        this.#takeFromTheDead(vcpu);
      }
      run[RunField.immediateExit] = 0;
      Atomics.store(this.#words, this.#at(vcpu, VcpuWord.recalled), 0);
    }
  }

  /** A thread that ended without its last word has the turn still: it is the device thread's then. */
  #takeFromTheDead(vcpu: number): void {
    const result = signalThread(this.#word(vcpu, VcpuWord.tid), KICK_SIGNAL);
    if (result !== -Errno.ESRCH || this.#word(vcpu, VcpuWord.turn) !== Turn.guest) return;
    Atomics.store(this.#words, this.#at(vcpu, VcpuWord.result), THREAD_ENDED);
    Atomics.store(this.#words, this.#at(vcpu, VcpuWord.turn), Turn.device);
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
    const doorbellFd = this.#doorbellFd;
    if (doorbellFd !== undefined) void Promise.allSettled(this.#ended).then(() => doorbellFd.dispose());
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

  /** It need not be up before its vCPU is resumed, nor before it is recalled. */
  #startThread(code: string, index: number, vcpuFd: number, koffiPath: string, cpu: number | undefined): void {
    const name = `vcpu${index}`;
    const workerData: VcpuThreadData = {
      words: this.#words,
      index,
      doorbell: this.#doorbell,
      doorbellFd: this.#doorbellFd?.fd ?? -1,
      vcpuFd,
      koffiPath,
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
