/**
 * The thread that has the hypervisor's functions of one VM, seen from the device thread: there where vCPUs have threads of
 * their own and the VM is to have such functions. Accesses go to it from the vCPUs' threads, and never come here; what the
 * device thread wants of it is an order, which it waits for (orders.ts). It ends with the VM.
 */
import { existsSync, rmSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { MessageChannel, type MessagePort, receiveMessageOnPort, type Worker } from 'node:worker_threads';
import { type Gpa, hex } from '../../../devicemodel/core/address.ts';
import { BugError, ExitCode, HostError } from '../../../devicemodel/core/errors.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { Eventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { onProcessExit } from '../../../devicemodel/core/host/exit-hooks.ts';
import type { KvmVcpu, KvmVm } from '../../../devicemodel/core/host/kvm.ts';
import { addressOf } from '../../../devicemodel/core/host/mapping.ts';
import { signalThread } from '../../../devicemodel/core/host/scheduling.ts';
import { startWorker } from '../../../devicemodel/core/host/worker.ts';
import { HsmError } from '../../../devicemodel/core/hsm/errors.ts';
import type { HvVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { Log } from '../../../devicemodel/core/log.ts';
import type { ThreadPulse } from '../../../devicemodel/core/thread-pulses.ts';
import { accessMapWords, isForFunction, secondaryBusOf } from '../../embedded/access-map.ts';
import type { Irqfd, MemoryWindow } from '../../embedded/cpu-engine.ts';
import type { MeetingPlace } from '../../embedded/meeting-place.ts';
import type { ClaimedParts } from '../../embedded/vdevs.ts';
import type { VirtualFunction } from '../../embedded/virtual-function.ts';
import type { VmidClaim } from '../../embedded/vm-state.ts';
import type { EngineHypervisorThread, Tables } from '../kvm-engine.ts';
import type { SlotTable } from '../memory-slots.ts';
import type { VcpuRunner } from '../runner.ts';
import { type HypervisorThread, ThreadedRunner } from '../threaded-runner.ts';
import type { MessageRoutes } from '../vm-eventfds.ts';
import {
  type Answer,
  type Failure,
  type Join,
  type Order,
  type SentParts,
  ThreadWord,
  type Told,
  type VdevThreadSetup,
} from './orders.ts';

/** The worker is a file of its own beside the program. */
const builtWorkerUrl = new URL('./vdev-thread-main.js', import.meta.url);
/** While an answer is awaited, the thread is asked this often whether it is still there. */
const LOOK_MS = 100;
const NO_SIGNAL = 0;

interface Started {
  readonly worker: Worker;
  /** Orders go by it, and answers come. */
  readonly orders: MessagePort;
  readonly bell: Eventfd;
}

export interface VdevThreadOptions {
  readonly log: Log;
  /** Where the VMs of this host meet. */
  readonly place: MeetingPlace;
  readonly workerUrl: URL;
}

export class VdevThread implements HypervisorThread, EngineHypervisorThread, ThreadPulse {
  readonly what = "the hypervisor's devices";
  readonly accessMap = accessMapWords();
  onLost: (() => void) | undefined;
  readonly #options: VdevThreadOptions;
  readonly #words = new Int32Array(new SharedArrayBuffer(4 * ThreadWord.count));
  #started: Started | undefined;
  /** The bell's number must not be somebody else's while a thread may write to it. */
  #bellHolders = 0;
  #failure: Error | undefined;
  #hasEnded = false;
  /** It was told to end. */
  #isOver = false;
  #nextKey = 1;

  /** Where the worker is; undefined: this program was built without. */
  static workerUrl(): URL | undefined {
    return existsSync(fileURLToPath(builtWorkerUrl)) ? builtWorkerUrl : undefined;
  }

  constructor(options: VdevThreadOptions) {
    this.#options = options;
  }

  /** @throws HostError when the host has no more threads or descriptors. */
  #start(): Started {
    const { place, workerUrl } = this.#options;
    const bell = new Eventfd();
    const { port1: orders, port2 } = new MessageChannel();
    const workerData: VdevThreadSetup = {
      words: this.#words,
      accessMap: this.accessMap,
      bellFd: bell.fd,
      orders: port2,
      place,
    };
    let worker: Worker;
    try {
      const options = { workerData, transferList: [port2], stdin: false, name: 'hypervisor' };
      worker = startWorker(workerUrl, options, "thread of the hypervisor's devices");
    } catch (error) {
      orders.close();
      bell.dispose();
      throw error;
    }
    const letBellGo = this.holdBell();
    worker.on('message', (told: Told) => this.#hear(told));
    worker.on('error', (cause) => this.#lost(cause));
    worker.once('exit', () => {
      this.#hasEnded = true;
      orders.close();
      letBellGo();
      this.#lost();
    });
    return { worker, orders, bell };
  }

  holdBell(): () => void {
    this.#bellHolders++;
    return () => {
      if (--this.#bellHolders === 0) this.#started?.bell.dispose();
    };
  }

  get bellFd(): number {
    return this.#up.bell.fd;
  }

  get failure(): Error | undefined {
    return this.#failure;
  }

  get isThere(): boolean {
    if (this.#hasEnded) return false;
    const tid = Atomics.load(this.#words, ThreadWord.tid);
    return tid === 0 || signalThread(tid, NO_SIGNAL) !== -Errno.ESRCH;
  }

  /** One that is gone is missed otherwise: it has ended the VM. */
  get hasAnswered(): boolean {
    const [asked, alive] = [ThreadWord.asked, ThreadWord.alive].map((word) => Atomics.load(this.#words, word));
    return asked === alive || this.#hasEnded || this.#isOver;
  }

  ask(): void {
    if (!this.hasAnswered || this.#hasEnded || this.#isOver) return;
    Atomics.store(this.#words, ThreadWord.asked, (Atomics.load(this.#words, ThreadWord.asked) + 1) | 0);
    this.#started?.bell.signal();
  }

  isForFunction(isPort: boolean, address: number): boolean {
    return isForFunction(this.accessMap, isPort, address);
  }

  get #up(): Started {
    if (this.#started === undefined) throw new BugError('no VM has joined');
    return this.#started;
  }

  /**
   * Start it, and meet the other VMs of this host. It is up when this returns. @param ending gives up.
   * @throws HostError, or the signal's reason
   */
  async join(name: string, ending?: AbortSignal): Promise<VmidClaim> {
    const { folder } = this.#options.place;
    const { worker } = (this.#started = this.#start());
    const giveUp = () => worker.postMessage({ kind: 'give up' } satisfies Join);
    const answer = new Promise<number>((resolve, reject) => {
      worker.on('message', (told: Told) => {
        if (told.kind === 'joined') resolve(told.vmid);
        if (told.kind === 'not joined') reject(errorOf(told.failure));
      });
      this.onLost = () => reject(this.#failure);
      if (this.#failure !== undefined) reject(this.#failure);
      worker.postMessage({ kind: 'join', name } satisfies Join);
      if (ending?.aborted === true) giveUp();
      else ending?.addEventListener('abort', giveUp, { once: true });
    });
    let vmid: number;
    try {
      vmid = await answer;
    } catch (error) {
      ending?.throwIfAborted();
      throw error;
    } finally {
      ending?.removeEventListener('abort', giveUp);
    }
    this.onLost = undefined;
    // It ends by order; until then it is the VM that keeps the process.
    worker.unref();
    const sockets = ['sock', 'bells'].map((kind) => `${folder}/vm-${vmid}.${kind}`);
    const removeExitHook = onProcessExit(() => {
      for (const path of sockets) rmSync(path, { force: true });
    });
    return {
      vmid,
      release: () => {
        removeExitHook();
        // One that is there takes them away itself, and then they may be another VM's.
        const isThere = this.isThere;
        this.dispose();
        if (!isThere) for (const path of sockets) rmSync(path, { force: true });
      },
    };
  }

  /** The function of a CREATE_VDEV, as this thread knows it. @throws HostError */
  create(vdev: HvVdev, { parts, release }: ClaimedParts): VirtualFunction {
    this.#order({ kind: 'create', vdev, parts: sentParts(parts) });
    const { bdf } = vdev;
    const words = this.accessMap;
    const bridge = vdev.type === 'root-port' ? bridgeOf(words, vdev.secondaryBus) : undefined;
    return {
      bdf,
      ...(bridge === undefined ? {} : { bridge }),
      // Accesses go to the thread. One that it passed on is nobody's: the function was just going, or a vCPU moved the register
      // at port CF8 meanwhile, without the lock that its guest has for it.
      readConfig: (_offset, size) => (size === 4 ? 0xffff_ffff : size === 2 ? 0xffff : 0xff),
      writeConfig: () => {},
      dispose: () => {
        this.#orderIfThere({ kind: 'destroy', bdf });
        release();
      },
    };
  }

  attach(vm: KvmVm, vcpus: readonly KvmVcpu[], runner: VcpuRunner): Tables {
    if (!(runner instanceof ThreadedRunner)) throw new BugError('vCPUs without threads of their own');
    const runs = vcpus.map(({ run }) => ({ address: addressOf(run), sizeBytes: run.length }));
    this.#order({ kind: 'attach', vmFd: vm.fd, runs, wires: runner.wires });
    return { slots: this.#slots(), routes: this.#routes(vm) };
  }

  detach(): void {
    this.#orderIfThere({ kind: 'detach' });
  }

  /** End it. Safe twice. */
  dispose(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.onLost = undefined;
    this.#orderIfThere({ kind: 'leave' });
  }

  #slots(): SlotTable {
    const seen = new Set<{ readonly gpa: Gpa; readonly bytes: Uint8Array }>();
    const map = (gpa: Gpa, sizeBytes: number, hostAddress: bigint, writable: boolean, isDevice: boolean) => {
      const key = this.#nextKey++;
      const answer = this.#ask({ kind: 'map', key, gpa, sizeBytes, hostAddress, writable, isDevice });
      if (answer.kind === 'failed') {
        throw new HsmError('SET_MEMSEG', answer.failure.errno, { what: `${hex(gpa)}+${hex(sizeBytes)}` });
      }
      return { dispose: () => this.#orderIfThere({ kind: 'unmap', key }) };
    };
    return {
      add: (gpa, bytes, hostAddress, writable): MemoryWindow => {
        const window = map(gpa, bytes.length, hostAddress, writable, false);
        const memory = { gpa, bytes };
        seen.add(memory);
        return {
          dispose: () => {
            seen.delete(memory);
            window.dispose();
          },
        };
      },
      addDevice: (base, sizeBytes, hostAddress) => map(base, sizeBytes, hostAddress, true, true),
      bytesAt: (at) => {
        const memory = [...seen].find(({ gpa, bytes }) => at >= gpa && at < gpa + bytes.length);
        return memory?.bytes.subarray(at - memory.gpa);
      },
    };
  }

  #routes(vm: KvmVm): MessageRoutes {
    const gsis = new Map<number, number>();
    return {
      attach: (wanted: readonly Irqfd[]) => {
        const answer = this.#order({ kind: 'route', wanted });
        for (const [i, { fd }] of wanted.entries()) {
          const gsi = answer.routed?.gsis[i] ?? -1;
          if (gsi >= 0) gsis.set(fd, gsi);
        }
        return answer.routed?.errnos ?? [];
      },
      // Many at once, when a guest turns its devices off: nobody waits for the other thread.
      detach: (fd) => {
        const gsi = gsis.get(fd);
        if (gsi === undefined) return;
        gsis.delete(fd);
        vm.irqfd(fd, gsi, false);
        if (this.isThere) this.#up.orders.postMessage({ kind: 'forget', fd });
      },
    };
  }

  #hear(told: Told): void {
    if (told.kind !== 'line') return;
    const { level, scope, line, isRationed } = told;
    const log = scope === '' ? this.#options.log : this.#options.log.child(scope);
    if (isRationed) log.rationed(level, () => line);
    else log[level](line);
  }

  #lost(cause?: Error): void {
    if (this.#isOver) return;
    // Who waited for an answer may have seen it gone before it was heard why.
    if (this.#failure?.cause === undefined) this.#failure = lostError(cause);
    this.onLost?.();
  }

  // ---- orders

  /** @throws HostError */
  #order(order: Order): Extract<Answer, { readonly kind: 'done' }> {
    const answer = this.#ask(order);
    if (answer.kind === 'failed') throw errorOf(answer.failure);
    return answer;
  }

  /** On the way out: what a thread that is gone had is gone with it, or with the VM. */
  #orderIfThere(order: Order): void {
    try {
      this.#order(order);
    } catch (error) {
      if (!(error instanceof HostError)) throw error;
      this.#failure ??= error;
    }
  }

  /** @throws HostError when there is nobody to answer. */
  #ask(order: Order): Answer {
    if (!this.isThere) throw (this.#failure ??= lostError());
    const { orders } = this.#up;
    let answers = Atomics.load(this.#words, ThreadWord.answers);
    orders.postMessage(order);
    for (;;) {
      const received = receiveMessageOnPort(orders) as { readonly message: Answer } | undefined;
      if (received !== undefined) return received.message;
      const hasWaited = Atomics.wait(this.#words, ThreadWord.answers, answers, LOOK_MS);
      answers = Atomics.load(this.#words, ThreadWord.answers);
      if (hasWaited === 'timed-out' && !this.isThere) throw (this.#failure ??= lostError());
    }
  }
}

function lostError(cause?: Error): HostError {
  const message = `the thread of the hypervisor's devices ended by itself${cause === undefined ? '' : `: ${cause.message}`}`;
  return new HostError(message, 0, { exitCode: ExitCode.VmFailed, ...(cause === undefined ? {} : { cause }) });
}

function errorOf({ message, errno, exitCode, hint }: Failure): HostError {
  return new HostError(message, errno, { exitCode, ...(hint === undefined ? {} : { hint }) });
}

function sentParts(parts: ClaimedParts['parts']): SentParts {
  if (parts.type !== 'ivshmem') return parts;
  const { regionId, memory } = parts;
  return { type: 'ivshmem', regionId, address: memory.address };
}

function bridgeOf(words: Int32Array, firstSecondaryBus: number): NonNullable<VirtualFunction['bridge']> {
  return {
    firstSecondaryBus,
    get secondaryBus() {
      return secondaryBusOf(words, firstSecondaryBus);
    },
  };
}
