/**
 * One vCPU on the device thread: an exit is served where it arrives, as a C program would. A kick ends KVM_RUN as it ends
 * any blocking call, and whoever kicks repeats it until it is heard (blocking-loop/wakeups.ts).
 */
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { futexWait } from '../../devicemodel/core/host/futex.ts';
import type { KvmVcpu } from '../../devicemodel/core/host/kvm.ts';
import { pinDeviceThread, unpinDeviceThread } from '../../devicemodel/core/host/scheduling.ts';
import type { OnExit, VcpuRunner } from './runner.ts';

export class InlineRunner implements VcpuRunner {
  readonly #vcpu: KvmVcpu;
  readonly #never = new Int32Array(new SharedArrayBuffer(4));
  /** The vCPU is not in the guest, nor to go there. */
  #isOut = true;
  /** Taken back out of the guest, and not told of since. */
  #isRecalled = false;

  /** @param cpu where the vCPU runs, and the device thread with it; missing: anywhere. */
  constructor(vcpu: KvmVcpu, cpu: number | undefined) {
    this.#vcpu = vcpu;
    if (cpu !== undefined) pinDeviceThread(cpu);
  }

  resume(): void {
    this.#isOut = false;
  }

  collect(onExit: OnExit): boolean {
    if (this.tell(onExit)) return true;
    if (this.#isOut) {
      // It shut down, or an answer is awaited: only a signal brings something new.
      futexWait(this.#never, 0);
      return false;
    }
    const result = this.#vcpu.enter();
    this.#isOut = true;
    onExit(0, result);
    return true;
  }

  /** It comes back in {@link collect}; or it was recalled, which is possible between two of those only. */
  tell(onExit: OnExit): boolean {
    if (!this.#isRecalled) return false;
    this.#isRecalled = false;
    onExit(0, -Errno.EINTR);
    return true;
  }

  recall(): void {
    this.#isRecalled ||= !this.#isOut;
    this.#isOut = true;
  }

  forget(): void {
    this.#isRecalled = false;
  }

  wake(): void {}

  /** The next VM on this thread may have another CPU, or any. */
  dispose(): void {
    unpinDeviceThread();
  }
}
