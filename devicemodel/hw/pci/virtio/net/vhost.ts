/**
 * vhost: the kernel serves a device's queues (<linux/vhost.h>). It gets the memory table, the rings and a pair of
 * eventfds for each queue; this process sees no request.
 */
import { HostError } from '../../../../core/errors.ts';
import type { GuestRam } from '../../../../core/guest-buffers.ts';
import { describeErrno, lastErrno, libc, native, OpenFlag } from '../../../../core/host/libc.ts';
import type { QueueWires } from '../transport/device.ts';

/** ioctls of type 0xAF, x86-64. */
export const Vhost = {
  GetFeatures: 0x8008af00,
  SetFeatures: 0x4008af00,
  SetOwner: 0x0000af01,
  SetMemTable: 0x4008af03,
  SetVringNum: 0x4008af10,
  SetVringAddr: 0x4028af11,
  SetVringBase: 0x4008af12,
  GetVringBase: 0xc008af12,
  SetVringKick: 0x4008af20,
  SetVringCall: 0x4008af21,
  NetSetBackend: 0x4008af30,
  VsockSetGuestCid: 0x4008af60,
  VsockSetRunning: 0x4004af61,
} as const;

const REGION_BYTES = 32;

/** One open vhost device. Opened anew for every driver: some of the kernel's forget nothing until closed. */
export class VhostDevice {
  readonly path: string;
  #fd: number | undefined;
  #features: bigint | undefined;

  constructor(path: string) {
    this.path = path;
  }

  /** What the kernel can do, with the device opened if it was not. @throws HostError */
  get features(): bigint {
    if (this.#features === undefined) {
      const bytes = new BigUint64Array(1);
      this.ioctl(Vhost.GetFeatures, bytes, 'VHOST_GET_FEATURES');
      this.#features = bytes[0] as bigint;
    }
    return this.#features;
  }

  /** @throws HostError */
  open(): void {
    this.#fd ??= libc.open(this.path, OpenFlag.ReadWrite | OpenFlag.NonBlock | OpenFlag.CloseOnExec);
  }

  close(): void {
    if (this.#fd !== undefined) libc.close(this.#fd);
    this.#fd = undefined;
  }

  /** @throws HostError */
  ioctl(request: number, argument: ArrayBufferView | undefined, name: string): void {
    this.open();
    const result =
      argument === undefined
        ? native('int ioctl(int, unsigned long, unsigned long)')(this.#fd, request, 0)
        : native('int ioctl(int, unsigned long, void *)')(this.#fd, request, argument);
    if (result >= 0) return;
    const errno = lastErrno();
    throw new HostError(`${this.path}: ${name}: ${describeErrno(errno)}`, errno);
  }

  /** Memory, rings and descriptors to the kernel; it begins with the queues once they have a back end. @throws HostError */
  start(ram: GuestRam, features: bigint, wires: readonly QueueWires[]): void {
    this.ioctl(Vhost.SetOwner, undefined, 'VHOST_SET_OWNER');
    this.ioctl(Vhost.SetFeatures, BigUint64Array.of(features), 'VHOST_SET_FEATURES');
    this.ioctl(Vhost.SetMemTable, memoryTable(ram), 'VHOST_SET_MEM_TABLE');
    wires.forEach((wire, index) => {
      this.#startQueue(ram, index, wire);
    });
  }

  #startQueue(ram: GuestRam, index: number, { queue, kickFd, callFd }: QueueWires): void {
    const { desc, avail, used } = queue.addresses;
    this.ioctl(Vhost.SetVringNum, Uint32Array.of(index, queue.size), 'VHOST_SET_VRING_NUM');
    this.ioctl(Vhost.SetVringBase, Uint32Array.of(index, queue.position), 'VHOST_SET_VRING_BASE');
    // struct vhost_vring_addr: u32 index, u32 flags, u64 descriptors, u64 used, u64 available, u64 log.
    const address = new DataView(new ArrayBuffer(40));
    address.setUint32(0, index, true);
    address.setBigUint64(8, hostAddress(ram, desc, 16 * queue.size), true);
    address.setBigUint64(16, hostAddress(ram, used, 6 + 8 * queue.size), true);
    address.setBigUint64(24, hostAddress(ram, avail, 6 + 2 * queue.size), true);
    this.ioctl(Vhost.SetVringAddr, address, 'VHOST_SET_VRING_ADDR');
    this.ioctl(Vhost.SetVringCall, Int32Array.of(index, callFd), 'VHOST_SET_VRING_CALL');
    this.ioctl(Vhost.SetVringKick, Int32Array.of(index, kickFd), 'VHOST_SET_VRING_KICK');
  }

  /** The kernel lets go of everything: when this returns it touches neither rings nor buffers. */
  stop(wires: readonly QueueWires[]): void {
    wires.forEach(({ queue }, index) => {
      try {
        const state = Uint32Array.of(index, 0);
        this.ioctl(Vhost.GetVringBase, state, 'VHOST_GET_VRING_BASE');
        queue.resumeAt(state[1] as number);
      } catch {
        // The queue was never begun with.
      }
    });
    // Compat: C keeps the device open and resets it, which vsock refuses; closing waits for what is in flight.
    this.close();
  }
}

/** struct vhost_memory: u32 count, u32 padding, then guest address, size, host address, flags. @throws HostError */
export function memoryTable(ram: GuestRam): Uint8Array {
  const regions: Array<{ gpa: number; size: number; host: number }> = [];
  for (let i = 0; i < ram.bytes.length; i++) {
    const gpa = ram.baseOf(i);
    const size = ram.endOf(i) - gpa;
    const host = ram.hostAddresses[i] as number;
    if (Number.isNaN(host)) throw new HostError('vhost: guest RAM of this hypervisor has no host address', 0);
    const last = regions.at(-1);
    if (last !== undefined && last.gpa + last.size === gpa && last.host + last.size === host) last.size += size;
    else regions.push({ gpa, size, host });
  }
  const table = new DataView(new ArrayBuffer(8 + regions.length * REGION_BYTES));
  table.setUint32(0, regions.length, true);
  regions.forEach(({ gpa, size, host }, i) => {
    const at = 8 + i * REGION_BYTES;
    table.setBigUint64(at, BigInt(gpa), true);
    table.setBigUint64(at + 8, BigInt(size), true);
    table.setBigUint64(at + 16, BigInt(host), true);
  });
  return new Uint8Array(table.buffer);
}

/** Where a part of a ring is in this process. @throws HostError unless it is in one piece there. */
function hostAddress(ram: GuestRam, gpa: number, size: number): bigint {
  const first = ram.chunkAt(gpa);
  const last = ram.chunkAt(gpa + size - 1);
  const at = (chunk: number, address: number) => (ram.hostAddresses[chunk] as number) + address - ram.baseOf(chunk);
  if (first < 0 || last < 0 || at(last, gpa + size - 1) - at(first, gpa) !== size - 1) {
    throw new HostError('vhost: a ring is not in one piece of memory', 0);
  }
  return BigInt(at(first, gpa));
}
