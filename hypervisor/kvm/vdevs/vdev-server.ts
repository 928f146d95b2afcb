/**
 * The hypervisor's functions, their neighbours, and the slots and messages of their VM, on a thread of their own. Two
 * things wake it: a vCPU whose access is for a function, by the bell, and its event loop (orders, sockets, eventfds).
 * Nothing here waits for another thread.
 */
import type { MessagePort } from 'node:worker_threads';
import { type Bdf, bdfToNumber, formatBdf, hex } from '../../../devicemodel/core/address.ts';
import type { MsiMessage } from '../../../devicemodel/core/device.ts';
import { BugError, DmError, ExitCode, HostError } from '../../../devicemodel/core/errors.ts';
import { Errno } from '../../../devicemodel/core/host/errno.ts';
import { signalEventfd, takeEventfd } from '../../../devicemodel/core/host/eventfd.ts';
import { closeWatches, watchFd } from '../../../devicemodel/core/host/fd-watch.ts';
import { futexWake } from '../../../devicemodel/core/host/futex.ts';
import type { KvmVmPart } from '../../../devicemodel/core/host/kvm.ts';
import { KvmExit, RunField } from '../../../devicemodel/core/host/kvm-abi.ts';
import { viewOf } from '../../../devicemodel/core/host/mapping.ts';
import { threadId } from '../../../devicemodel/core/host/scheduling.ts';
import { haveOwnUmask } from '../../../devicemodel/core/host/umask.ts';
import type { HvVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import { IOREQ_PAGE_BYTES, IoreqPage } from '../../../devicemodel/core/ioreq-page.ts';
import { Log, LogLevel, type LogLevelName, type LogSink } from '../../../devicemodel/core/log.ts';
import { AccessMap } from '../../embedded/access-map.ts';
import { EventfdTable } from '../../embedded/eventfd-table.ts';
import { functionEventfds } from '../../embedded/function-eventfds.ts';
import { AccessRouter } from '../../embedded/guest-bus.ts';
import { whereGuestPutIt } from '../../embedded/guest-placed.ts';
import { hostEventfds } from '../../embedded/host-eventfds.ts';
import { isMsiAddress } from '../../embedded/msi-address.ts';
import { Neighbours } from '../../embedded/neighbours.ts';
import { makeVdev, type VdevParts } from '../../embedded/vdevs.ts';
import type { VirtualFunctionHost } from '../../embedded/virtual-function.ts';
import { ExitAccess } from '../exit-access.ts';
import { GsiRoutes } from '../gsi-routes.ts';
import { MemorySlots } from '../memory-slots.ts';
import type { VcpuWires } from '../threaded-runner.ts';
import { Turn, VcpuWord, WORDS_PER_VCPU } from '../vcpu-thread.ts';
import { vmEventfds } from '../vm-eventfds.ts';
import {
  type Answer,
  type Failure,
  type Forget,
  type Join,
  type Order,
  type SentParts,
  ThreadWord,
  type Told,
  type VdevThreadSetup,
} from './orders.ts';

/** Each has two BARs in the access map at most. */
const MAX_FUNCTIONS = 256;

interface Vcpu {
  readonly view: DataView;
  readonly access: ExitAccess;
}

/** What of a VM is here, from `attach` to `detach`. */
interface Machine {
  readonly vm: KvmVmPart;
  readonly vcpus: readonly Vcpu[];
  readonly wires: VcpuWires;
  readonly slots: MemorySlots;
  readonly routes: GsiRoutes;
  /** Memory of the device thread's, by its key. */
  readonly windows: Map<number, { dispose(): void }>;
}

/** Lines go to the device thread, which has the sinks; those that a guest can provoke are counted at both ends. */
class ThreadLog extends Log {
  readonly #sink: LineSink;
  constructor(sink: LineSink) {
    super([sink]);
    this.#sink = sink;
  }
  override child(scope: string): Log {
    return new ThreadLog(this.#sink.below(scope));
  }
  override rationed(level: LogLevelName, text: () => string): void {
    this.#sink.isRationed = true;
    super.rationed(level, text);
    this.#sink.isRationed = false;
  }
}

class LineSink implements LogSink {
  readonly maxLevel = LogLevel.debug;
  isRationed = false;
  readonly #tell: (told: Told) => void;
  readonly #scope: string;
  constructor(tell: (told: Told) => void, scope = '') {
    this.#tell = tell;
    this.#scope = scope;
  }
  below(scope: string): LineSink {
    return new LineSink(this.#tell, this.#scope === '' ? scope : `${this.#scope}.${scope}`);
  }
  write(level: LogLevelName, line: string): void {
    this.#tell({ kind: 'line', level, scope: this.#scope, line, isRationed: this.isRationed });
  }
}

export class VdevServer {
  readonly #setup: VdevThreadSetup;
  readonly #parent: MessagePort;
  readonly #vmOf: (fd: number) => KvmVmPart;
  readonly #log: Log;
  readonly #page = new IoreqPage(new Uint8Array(IOREQ_PAGE_BYTES));
  readonly #router: AccessRouter;
  readonly #neighbours: Neighbours;
  readonly #host: VirtualFunctionHost;
  readonly #unwatch: () => void;
  /** By BDF as a number. */
  readonly #functions = new Set<number>();
  #claim: { readonly vmid: number; release(): void } | undefined;
  readonly #givingUp = new AbortController();
  #machine: Machine | undefined;

  constructor(setup: VdevThreadSetup, parent: MessagePort, vmOf: (fd: number) => KvmVmPart) {
    this.#setup = setup;
    this.#parent = parent;
    this.#vmOf = vmOf;
    const log = new ThreadLog(new LineSink((told) => parent.postMessage(told)));
    this.#log = log;
    const signal = (message: MsiMessage) => this.#signalMsi(message);
    const { accessMap: words } = setup;
    // Eventfds of the device model that KVM did not take are the device thread's to serve.
    const noEventfds = new EventfdTable(hostEventfds, { signal });
    this.#router = new AccessRouter(this.#page, noEventfds, { words, map: new AccessMap(words) });
    this.#router.isUnattended = false;
    this.#neighbours = new Neighbours(setup.place, log, { hasBells: true });
    const eventfds = vmEventfds(
      () => this.#need(),
      () => this.#machine,
    );
    const vmid = () => this.#claim?.vmid ?? 0;
    this.#host = {
      get vmid() {
        return vmid();
      },
      log,
      eventfds: functionEventfds(eventfds, hostEventfds),
      signal,
      addRegisters: (base, sizeBytes, region) => this.#router.addRegisters(base, sizeBytes, region),
      addMemory: (base, bytes, hostAddress) =>
        whereGuestPutIt(log, () => this.#need().slots.add(base, bytes, hostAddress ?? 0n, true)),
    };
    haveOwnUmask();
    // However it ends: descriptors, sockets and their names are the process's.
    process.on('exit', () => this.#letGo());
    process.on('exit', closeWatches);
    parent.on('message', (join: Join) => {
      if (join.kind === 'join') void this.#join(join.name);
      else this.#givingUp.abort();
    });
    setup.orders.on('message', (order: Order | Forget) => this.#obey(order));
    this.#unwatch = watchFd(setup.bellFd, () => {
      try {
        this.#serveAll();
      } catch (error) {
        // Whoever calls back for a descriptor keeps what is thrown to itself; this ends the thread, and with it the VM.
        setImmediate(() => {
          throw error;
        });
        this.#letGo();
      }
    });
    Atomics.store(setup.words, ThreadWord.tid, threadId());
  }

  async #join(name: string): Promise<void> {
    try {
      this.#claim = await this.#neighbours.join(name, this.#givingUp.signal);
      this.#tell({ kind: 'joined', vmid: this.#claim.vmid });
    } catch (error) {
      this.#tell({ kind: 'not joined', failure: failureOf(error) });
      this.#end();
    }
  }

  #tell(told: Told): void {
    this.#parent.postMessage(told);
  }

  // ---- orders

  #obey(order: Order | Forget): void {
    if (order.kind === 'forget') {
      this.#machine?.routes.forget(order.fd);
      return;
    }
    let answer: Answer;
    try {
      answer = this.#do(order);
    } catch (error) {
      answer = { kind: 'failed', failure: failureOf(error) };
    }
    const { orders, words } = this.#setup;
    orders.postMessage(answer);
    Atomics.add(words, ThreadWord.answers, 1);
    Atomics.notify(words, ThreadWord.answers);
    if (order.kind === 'leave') this.#end();
  }

  #do(order: Order): Answer {
    switch (order.kind) {
      case 'attach':
        this.#attach(order);
        break;
      case 'detach':
        this.#machine = undefined;
        break;
      case 'create':
        this.#create(order.vdev, order.parts);
        break;
      case 'destroy':
        this.#destroy(order.bdf);
        break;
      case 'map': {
        const { key, gpa, sizeBytes, hostAddress, writable, isDevice } = order;
        const { slots, windows } = this.#need();
        const window = isDevice
          ? slots.addDevice(gpa, sizeBytes, hostAddress)
          : slots.add(gpa, viewOf(hostAddress, sizeBytes), hostAddress, writable);
        windows.set(key, window);
        break;
      }
      case 'unmap':
        this.#machine?.windows.get(order.key)?.dispose();
        this.#machine?.windows.delete(order.key);
        break;
      case 'route': {
        const { routes } = this.#need();
        const errnos = routes.attach(order.wanted);
        return { kind: 'done', routed: { errnos, gsis: order.wanted.map(({ fd }) => routes.gsiOf(fd) ?? -1) } };
      }
      case 'leave':
        this.#letGo();
        break;
    }
    return { kind: 'done' };
  }

  #attach({ vmFd, runs, wires }: Extract<Order, { readonly kind: 'attach' }>): void {
    const vm = this.#vmOf(vmFd);
    const vcpus = runs.map(({ address, sizeBytes }): Vcpu => {
      const run = viewOf(address, sizeBytes);
      return { view: new DataView(run.buffer, run.byteOffset, run.byteLength), access: new ExitAccess(run) };
    });
    const slots = new MemorySlots(vm, this.#log);
    this.#machine = { vm, vcpus, wires, slots, routes: new GsiRoutes(vm, this.#log), windows: new Map() };
  }

  /** @throws HostError */
  #create(vdev: HvVdev, sent: SentParts): void {
    if (this.#functions.size >= MAX_FUNCTIONS) {
      throw new HostError(`${formatBdf(vdev.bdf)}: the hypervisor has ${MAX_FUNCTIONS} devices already`, Errno.ENOSPC);
    }
    const fn = makeVdev(vdev, partsOf(vdev, sent), this.#neighbours, this.#host);
    if (fn === undefined) throw new BugError(`${vdev.type} of parts for ${sent.type}`);
    try {
      this.#router.addFunction(fn);
    } catch (error) {
      fn.dispose();
      throw error;
    }
    this.#functions.add(bdfToNumber(vdev.bdf));
  }

  #destroy(bdf: Bdf): void {
    const fn = this.#router.functionAt(bdf);
    if (fn === undefined) return;
    this.#functions.delete(bdfToNumber(bdf));
    this.#router.removeFunction(fn);
  }

  /** Safe twice. */
  #letGo(): void {
    this.#unwatch();
    const claim = this.#claim;
    this.#claim = undefined;
    for (const step of [() => this.#router.removeAllFunctions(), () => claim?.release()]) {
      try {
        step();
      } catch (error) {
        this.#log.debug(`on the way out: ${error}`);
      }
    }
  }

  /** Nothing keeps the thread after this. */
  #end(): void {
    this.#unwatch();
    this.#setup.orders.close();
    this.#parent.close();
  }

  // ---- accesses

  #serveAll(): void {
    const { bellFd, words: own } = this.#setup;
    takeEventfd(bellFd);
    Atomics.store(own, ThreadWord.alive, Atomics.load(own, ThreadWord.asked));
    const machine = this.#machine;
    if (machine === undefined) return;
    const { words } = machine.wires;
    for (const [index, vcpu] of machine.vcpus.entries()) {
      if (Atomics.load(words, index * WORDS_PER_VCPU + VcpuWord.turn) === Turn.hypervisor) {
        this.#serve(machine, index, vcpu);
      }
    }
  }

  /** All of the access that is for functions here; the vCPU goes on then, or to the device thread with what is left. */
  #serve({ wires }: Machine, index: number, { view, access }: Vcpu): void {
    const { words } = wires;
    const at = index * WORDS_PER_VCPU;
    if (view.getUint32(RunField.exitReason, true) === KvmExit.Io) access.beginIo();
    else access.beginMmio();
    access.skip(Atomics.load(words, at + VcpuWord.result));
    while (access.fill(this.#page, index)) {
      if (!this.#router.submit(index)) {
        Atomics.store(words, at + VcpuWord.result, access.partsDone + 1);
        Atomics.store(words, at + VcpuWord.turn, Turn.device);
        ringDeviceThread(wires);
        return;
      }
      this.#router.retire(index);
      access.take(this.#page, index);
    }
    Atomics.store(words, at + VcpuWord.turn, Turn.granted);
    futexWake(words.subarray(at + VcpuWord.turn, at + VcpuWord.turn + 1));
    // Somebody waits for it, on the doorbell.
    if (Atomics.load(words, at + VcpuWord.recalled) !== 0) ringDeviceThread(wires);
  }

  /** From a function: a bad address is the guest's fault, and dropped. */
  #signalMsi({ address, data }: MsiMessage): void {
    if (isMsiAddress(address)) this.#machine?.vm.signalMsi(address, data);
    else this.#log.guest(() => `MSI to ${hex(address)}, which is no interrupt address: dropped`);
  }

  #need(): Machine {
    if (this.#machine === undefined) throw new BugError('no VM is attached');
    return this.#machine;
  }
}

function ringDeviceThread({ doorbell, doorbellFd }: VcpuWires): void {
  Atomics.add(doorbell, 0, 1);
  futexWake(doorbell);
  if (doorbellFd >= 0) signalEventfd(doorbellFd);
}

function partsOf(vdev: HvVdev, sent: SentParts): VdevParts {
  if (sent.type !== 'ivshmem') return sent;
  const { regionId, address } = sent;
  const sizeBytes = vdev.type === 'ivshmem' ? vdev.sizeBytes : 0;
  return { type: 'ivshmem', regionId, memory: { address, bytes: viewOf(address, sizeBytes) } };
}

function failureOf(error: unknown): Failure {
  const { message } = error instanceof Error ? error : new Error(String(error));
  return {
    message,
    errno: error instanceof HostError ? error.errno : 0,
    exitCode: error instanceof DmError ? error.exitCode : ExitCode.Software,
    hint: error instanceof DmError ? error.hint : undefined,
  };
}
