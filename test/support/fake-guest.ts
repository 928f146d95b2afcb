/** vCPUs of a fake KVM whose threads are real: each makes the accesses that the test gives it, one after the other. */
import { createRequire } from 'node:module';
import { type Mapping, map } from '../../devicemodel/core/host/mapping.ts';
import { answers, type FakeExit, FakeKvm, FakeKvmVm, FakeVcpu } from './fake-kvm.ts';

export const FAKE_RUN_PATH = createRequire(import.meta.url).resolve('./fake-kvm-run.cjs');

const RUN_BYTES = 0x3000;
const CONTROL_BYTES = 0x1000;
const Control = { posted: 0, taken: 1, finished: 2, entered: 3 } as const;
const PATIENCE_MS = 20_000;
const tick = new Int32Array(new SharedArrayBuffer(4));

/** Let other threads run, without this one's event loop. */
export function sleepHere(ms: number): void {
  Atomics.wait(tick, 0, 0, ms);
}

export class GuestVcpu extends FakeVcpu {
  override readonly run: Uint8Array<ArrayBuffer>;
  readonly mapping: Mapping;
  readonly #control: Int32Array;

  constructor(id: number, log: string[]) {
    super(id, log);
    this.mapping = map(RUN_BYTES + CONTROL_BYTES, `vCPU ${id}`);
    this.run = this.mapping.bytes;
    this.#control = new Int32Array(this.mapping.bytes.buffer, RUN_BYTES, 4);
  }

  /** It makes an access, once it is in the guest. */
  post(exit: FakeExit): void {
    if (!this.isDone) throw new Error('its last access is not done');
    exit(new DataView(this.run.buffer, 0, RUN_BYTES));
    Atomics.add(this.#control, Control.posted, 1);
  }

  /** The access that it made last was answered, and it went on. */
  get isDone(): boolean {
    return Atomics.load(this.#control, Control.finished) === Atomics.load(this.#control, Control.posted);
  }

  /** How often it entered the guest. */
  get entered(): number {
    return Atomics.load(this.#control, Control.entered);
  }

  /** Make an access and wait for its answer. @param meanwhile what this thread does until then. */
  access(exit: FakeExit, meanwhile: () => void = () => sleepHere(1)): void {
    this.post(exit);
    for (const end = performance.now() + PATIENCE_MS; !this.isDone; meanwhile()) {
      if (performance.now() > end) throw new Error('the access is not answered');
    }
  }

  portValue(size: number): bigint {
    return answers.port(this.run, size);
  }

  mmioValue(size: number): bigint {
    return answers.mmio(this.run, size);
  }
}

export class GuestVm extends FakeKvmVm {
  override readonly vcpus: GuestVcpu[] = [];
  override createVcpu(id: number): GuestVcpu {
    const vcpu = new GuestVcpu(id, this.log);
    this.vcpus.push(vcpu);
    return vcpu;
  }
}

/** Its vCPUs leave the guest in threads of {@link FAKE_RUN_PATH}. */
export class GuestKvm extends FakeKvm {
  override readonly vm = new GuestVm();
  override createVm(): GuestVm {
    return this.vm;
  }
}
