/** Devices whose queues the kernel serves: the orders of <linux/vhost.h>, x86-64. */
import { HostError } from '../errors.ts';
import { describeErrno } from './errno.ts';
import { closeFd, OpenFlag, openFile } from './files.ts';
import { ioctlBytes, ioctlNumber } from './ioctl.ts';
import { startUnpinned } from './scheduling.ts';

export const VhostRequest = {
  VHOST_GET_FEATURES: 0x8008af00,
  VHOST_SET_FEATURES: 0x4008af00,
  VHOST_SET_OWNER: 0x0000af01,
  VHOST_SET_MEM_TABLE: 0x4008af03,
  VHOST_SET_VRING_NUM: 0x4008af10,
  VHOST_SET_VRING_ADDR: 0x4028af11,
  VHOST_SET_VRING_BASE: 0x4008af12,
  VHOST_GET_VRING_BASE: 0xc008af12,
  VHOST_SET_VRING_KICK: 0x4008af20,
  VHOST_SET_VRING_CALL: 0x4008af21,
  VHOST_NET_SET_BACKEND: 0x4008af30,
  VHOST_VSOCK_SET_GUEST_CID: 0x4008af60,
  VHOST_VSOCK_SET_RUNNING: 0x4004af61,
} as const;
export type VhostOrder = keyof typeof VhostRequest;

const REGION_BYTES = 32;
const VRING_ADDR_BYTES = 40;

/** Guest memory in one piece of this process. */
export interface VhostRegion {
  readonly gpa: number;
  readonly sizeBytes: number;
  readonly hostAddress: number;
}

/** Where the parts of a ring are in this process. */
export interface VhostRing {
  readonly descriptors: bigint;
  readonly used: bigint;
  readonly available: bigint;
}

/** One open vhost device; opened with the first order. */
export class VhostFd {
  readonly path: string;
  #fd: number | undefined;

  constructor(path: string) {
    this.path = path;
  }

  /** @throws HostError */
  open(): void {
    this.#fd ??= openFile(this.path, OpenFlag.ReadWrite | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
  }

  /** Waits for what is in flight. */
  close(): void {
    if (this.#fd !== undefined) closeFd(this.#fd);
    this.#fd = undefined;
  }

  /** One order to the kernel. @throws HostError that names it. */
  protected order(name: VhostOrder, argument: ArrayBufferView | undefined): void {
    this.open();
    const fd = this.#fd as number;
    const result =
      argument === undefined ? ioctlNumber(fd, VhostRequest[name], 0) : ioctlBytes(fd, VhostRequest[name], argument);
    if (result < 0) throw new HostError(`${this.path}: ${name}: ${describeErrno(-result)}`, -result);
  }

  getFeatures(): bigint {
    const bytes = new BigUint64Array(1);
    this.order('VHOST_GET_FEATURES', bytes);
    return bytes[0] as bigint;
  }

  setFeatures(features: bigint): void {
    this.order('VHOST_SET_FEATURES', BigUint64Array.of(features));
  }

  /** Makes the kernel's thread for this device: it has the CPUs of this one. */
  setOwner(): void {
    startUnpinned(() => this.order('VHOST_SET_OWNER', undefined));
  }

  setMemoryTable(regions: readonly VhostRegion[]): void {
    this.order('VHOST_SET_MEM_TABLE', memoryTable(regions));
  }

  setRingSize(queue: number, size: number): void {
    this.order('VHOST_SET_VRING_NUM', Uint32Array.of(queue, size));
  }

  setRingPosition(queue: number, position: number): void {
    this.order('VHOST_SET_VRING_BASE', Uint32Array.of(queue, position));
  }

  /** The kernel lets go of the queue. @returns how far it came. */
  takeRingPosition(queue: number): number {
    const state = Uint32Array.of(queue, 0);
    this.order('VHOST_GET_VRING_BASE', state);
    return state[1] as number;
  }

  setRingAddresses(queue: number, ring: VhostRing): void {
    // struct vhost_vring_addr: u32 index, u32 flags, u64 descriptors, u64 used, u64 available, u64 log.
    const address = new DataView(new ArrayBuffer(VRING_ADDR_BYTES));
    address.setUint32(0, queue, true);
    address.setBigUint64(8, ring.descriptors, true);
    address.setBigUint64(16, ring.used, true);
    address.setBigUint64(24, ring.available, true);
    this.order('VHOST_SET_VRING_ADDR', address);
  }

  setRingCall(queue: number, eventfd: number): void {
    this.order('VHOST_SET_VRING_CALL', Int32Array.of(queue, eventfd));
  }

  setRingKick(queue: number, eventfd: number): void {
    this.order('VHOST_SET_VRING_KICK', Int32Array.of(queue, eventfd));
  }

  /** @param fd a tap; the kernel begins with the queue. */
  setNetBackend(queue: number, fd: number): void {
    this.order('VHOST_NET_SET_BACKEND', Int32Array.of(queue, fd));
  }

  setVsockCid(cid: number): void {
    this.order('VHOST_VSOCK_SET_GUEST_CID', BigUint64Array.of(BigInt(cid)));
  }

  setVsockRunning(isRunning: boolean): void {
    this.order('VHOST_VSOCK_SET_RUNNING', Int32Array.of(isRunning ? 1 : 0));
  }
}

/** struct vhost_memory: u32 count, u32 padding, then guest address, size, host address, flags. */
export function memoryTable(regions: readonly VhostRegion[]): Uint8Array {
  const table = new DataView(new ArrayBuffer(8 + regions.length * REGION_BYTES));
  table.setUint32(0, regions.length, true);
  regions.forEach(({ gpa, sizeBytes, hostAddress }, i) => {
    const at = 8 + i * REGION_BYTES;
    table.setBigUint64(at, BigInt(gpa), true);
    table.setBigUint64(at + 8, BigInt(sizeBytes), true);
    table.setBigUint64(at + 16, BigInt(hostAddress), true);
  });
  return new Uint8Array(table.buffer);
}
