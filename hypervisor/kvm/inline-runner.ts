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
  #isGuests = false;
  /** Taken back out of the guest, and not told of since. */
  #isRecalled = false;

  /** @param cpu where the vCPU runs, and the device thread with it; missing: anywhere. */
  constructor(vcpu: KvmVcpu, cpu: number | undefined) {
    this.#vcpu = vcpu;
    if (cpu !== undefined) pinDeviceThread(cpu);
  }

  resume(): void {
    this.#isGuests = true;
  }

  collect(onExit: OnExit): undefined {
    if (this.tell(onExit)) return;
    if (!this.#isGuests) {
      // It shut down, or an answer is awaited: only a signal brings something new.
      futexWait(this.#never, 0);
      return;
    }
    const result = this.#vcpu.enter();
    this.#isGuests = false;
    onExit(0, result);
  }

  /** It comes back in {@link collect}; or it was recalled, which is possible between two of those only. */
  tell(onExit: OnExit): boolean {
    if (!this.#isRecalled) return false;
    this.#isRecalled = false;
    onExit(0, -Errno.EINTR);
    return true;
  }

  recall(): void {
    this.#isRecalled ||= this.#isGuests;
    this.#isGuests = false;
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
