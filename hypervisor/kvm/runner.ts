/** How vCPUs come to run: on the device thread itself, or each in a thread of its own. */

/**
 * Told of a vCPU that left the guest. @param result of KVM_RUN: 0 or a negative errno. Positive: 1 more than the parts of
 * its access that the hypervisor's thread has answered; the next one is not for that.
 */
export type OnExit = (vcpu: number, result: number) => void;

export interface VcpuRunner {
  /** The vCPU goes on in the guest. Only one that is not there. */
  resume(vcpu: number): void;
  /** The hypervisor's thread has the vCPU's access from its next part on. Only where there is one. */
  handOn?(vcpu: number, partsDone: number): void;
  /** Tell of every vCPU that came back by now. @returns whether there was any. */
  tell(onExit: OnExit): boolean;
  /** As {@link tell}; if none came back, wait until one does, or for a kick, {@link wake} or a signal. */
  collect(onExit: OnExit): boolean | Promise<boolean>;
  /** Every vCPU comes back, now. What it came back for is told by a later {@link collect}, unless it is forgotten. */
  recall(): void;
  /** What vCPUs came back for does not matter any more. */
  forget(): void;
  /** End a wait of {@link collect}. */
  wake(): void;
  dispose(): void;
}
