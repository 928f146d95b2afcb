/**
 * Where a VM is in its life, and which call is allowed there. States and errnos are those of the real driver and
 * hypervisor: Linux drivers/virt/acrn/hsm.c, ACRN hypervisor/common/hypercall.c.
 */
import { constants } from 'node:os';
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { VmSpec } from '../../devicemodel/core/hsm/hsm.ts';
import { IOREQ_SLOTS } from '../../devicemodel/core/ioreq-page.ts';

const E = constants.errno;

/** `none` before CREATE_VM and after DESTROY_VM. */
export type VmState = 'none' | 'created' | 'running' | 'paused';

/** Bytes of a VM name, without the terminator. */
const MAX_NAME_BYTES = 15;

/** A number among the User VMs of the host, until it is released. */
export interface VmidClaim {
  readonly vmid: number;
  release(): void;
}

export class VmLife {
  #state: VmState = 'none';
  /** One VM per handle, as one VM per open file. */
  #used = false;
  readonly #closing = new AbortController();
  #claim: VmidClaim | undefined;
  #vcpuCount = 0;

  get state(): VmState {
    return this.#state;
  }
  /** 1 for the first User VM of this host; 0 while there is no VM. */
  get vmid(): number {
    return this.#claim?.vmid ?? 0;
  }
  get vcpuCount(): number {
    return this.#vcpuCount;
  }

  /**
   * @param makeVcpus makes the vCPUs and says how many there are.
   * @throws HsmError EINVAL: a second VM on this handle, or a name that is empty or longer than 15 bytes.
   */
  async create(
    spec: VmSpec,
    claimVmid: (name: string) => Promise<VmidClaim>,
    makeVcpus: () => Promise<number>,
  ): Promise<{ readonly vmid: number; readonly vcpuCount: number }> {
    const what = `"${spec.name}"`;
    const nameBytes = new TextEncoder().encode(spec.name).length;
    if (this.#used || this.isClosed) {
      throw new HsmError('CREATE_VM', E.EINVAL, { what, hint: 'open the hypervisor again for another VM' });
    }
    if (nameBytes === 0 || nameBytes > MAX_NAME_BYTES) {
      throw new HsmError('CREATE_VM', E.EINVAL, { what, hint: `a VM name has 1 to ${MAX_NAME_BYTES} bytes` });
    }
    this.#used = true;
    const claim = await claimVmid(spec.name);
    try {
      this.#checkOpen();
      this.#vcpuCount = Math.min(await makeVcpus(), IOREQ_SLOTS);
      this.#checkOpen();
    } catch (error) {
      claim.release();
      throw error;
    }
    this.#claim = claim;
    this.#state = 'created';
    return { vmid: claim.vmid, vcpuCount: this.#vcpuCount };
  }

  /** Whoever closes does not wait for what CREATE_VM waits for. @throws HsmError */
  #checkOpen(): void {
    this.closing.throwIfAborted();
  }

  start(): void {
    this.need('START_VM');
    if (this.#state !== 'created') throw new HsmError('START_VM', E.EPERM);
    this.#state = 'running';
  }

  pause(): void {
    this.need('PAUSE_VM');
    this.#state = 'paused';
  }

  /** Back to CREATED. */
  reset(): void {
    this.needPaused('RESET_VM');
    this.#state = 'created';
  }

  /** There is no VM any more, whatever state it was in. */
  end(): void {
    this.#state = 'none';
    this.#claim?.release();
    this.#claim = undefined;
  }

  get isClosed(): boolean {
    return this.#closing.signal.aborted;
  }

  /** Aborted when it is closed: CREATE_VM waits for nothing any more. */
  get closing(): AbortSignal {
    return this.#closing.signal;
  }

  /** @returns false if it was closed before. */
  close(): boolean {
    const isFirst = !this.isClosed;
    this.#closing.abort(new HsmError('CREATE_VM', E.EBADF, { hint: 'it was closed meanwhile' }));
    return isFirst;
  }

  /** @throws HsmError EINVAL without a VM, as the driver for every ioctl but CREATE_VM. */
  need(ioctl: string): void {
    if (this.#state === 'none') {
      throw new HsmError(ioctl, E.EINVAL, { hint: 'there is no VM: not created yet, or destroyed' });
    }
  }

  /** @throws HsmError EPERM, what a hypercall's -1 becomes, unless the VM is paused. */
  needPaused(ioctl: string): void {
    this.need(ioctl);
    if (this.#state !== 'paused') throw new HsmError(ioctl, E.EPERM);
  }

  /** @throws HsmError EPERM while the VM runs, and for a vCPU it does not have. */
  needStoppedVcpu(ioctl: string, vcpu: number): void {
    this.need(ioctl);
    if (this.#state === 'running' || vcpu < 0 || vcpu >= this.#vcpuCount) {
      throw new HsmError(ioctl, E.EPERM, { what: `vCPU ${vcpu}` });
    }
  }
}
