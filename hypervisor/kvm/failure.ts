/** Why KVM gave a vCPU back that it cannot run any further, in words. <linux/kvm.h>. */
import { hex } from '../../devicemodel/core/address.ts';
import { KvmExit, RunField } from '../../devicemodel/core/host/kvm-abi.ts';

/** KVM_INTERNAL_ERROR_*. */
const SUBERRORS: Readonly<Record<number, string>> = {
  1: 'it cannot emulate the instruction',
  2: 'two interrupts at once',
  3: 'an interrupt could not be delivered',
  4: 'an exit nobody expected',
};

/** @param run struct kvm_run. */
export function describeFailure(run: DataView): string {
  const reason = run.getUint32(RunField.exitReason, true);
  switch (reason) {
    case KvmExit.InternalError: {
      const { suberror, dataCount, data } = RunField.internal;
      const code = run.getUint32(suberror, true);
      const count = Math.min(run.getUint32(dataCount, true), 16);
      const words = Array.from({ length: count }, (_, i) => hex(run.getBigUint64(data + 8 * i, true)));
      return `internal error ${code} (${SUBERRORS[code] ?? 'unknown'})${words.length > 0 ? `, data ${words.join(' ')}` : ''}`;
    }
    case KvmExit.FailEntry: {
      const { reason: at } = RunField.failEntry;
      return `the CPU refused its state, hardware reason ${hex(run.getBigUint64(at, true))}`;
    }
    case KvmExit.SystemEvent:
      return `system event ${run.getUint32(RunField.systemEvent.type, true)}`;
    default:
      return `exit reason ${reason}`;
  }
}
