/**
 * vhost: the kernel serves a device's queues (<linux/vhost.h>). It gets the memory table, the rings and a pair of
 * eventfds for each queue; this process sees no request.
 */
import { HostError } from '../../../../core/errors.ts';
import type { GuestRam } from '../../../../core/guest-buffers.ts';
import { VhostFd, type VhostRegion } from '../../../../core/host/vhost.ts';
import type { QueueWires } from '../transport/device.ts';

/** One open vhost device. Opened anew for every driver: some of the kernel's forget nothing until closed. */
export class VhostDevice extends VhostFd {
  #features: bigint | undefined;

  /** What the kernel can do, with the device opened if it was not. @throws HostError */
  get features(): bigint {
    this.#features ??= this.getFeatures();
    return this.#features;
  }

  /** Memory, rings and descriptors to the kernel; it begins with the queues once they have a back end. @throws HostError */
  start(ram: GuestRam, features: bigint, wires: readonly QueueWires[]): void {
    this.setOwner();
    this.setFeatures(features);
    this.setMemoryTable(regionsOf(ram));
    wires.forEach((wire, index) => {
      this.#startQueue(ram, index, wire);
    });
  }

  #startQueue(ram: GuestRam, index: number, { queue, kickFd, callFd }: QueueWires): void {
    const { desc, avail, used } = queue.addresses;
    this.setRingSize(index, queue.size);
    this.setRingPosition(index, queue.position);
    this.setRingAddresses(index, {
      descriptors: hostAddress(ram, desc, 16 * queue.size),
      used: hostAddress(ram, used, 6 + 8 * queue.size),
      available: hostAddress(ram, avail, 6 + 2 * queue.size),
    });
    this.setRingCall(index, callFd);
    this.setRingKick(index, kickFd);
  }

  /** The kernel lets go of everything: when this returns it touches neither rings nor buffers. */
  stop(wires: readonly QueueWires[]): void {
    wires.forEach(({ queue }, index) => {
      try {
        queue.resumeAt(this.takeRingPosition(index));
      } catch {
        // The queue was never begun with.
      }
    });
    // Compat: C keeps the device open and resets it, which vsock refuses; closing waits for what is in flight.
    this.close();
  }
}

/** Guest RAM in as few pieces as it has in this process. @throws HostError where it has no address. */
export function regionsOf(ram: GuestRam): VhostRegion[] {
  const regions: Array<{ gpa: number; sizeBytes: number; hostAddress: number }> = [];
  for (let i = 0; i < ram.bytes.length; i++) {
    const gpa = ram.baseOf(i);
    const sizeBytes = ram.endOf(i) - gpa;
    const host = ram.hostAddresses[i] as number;
    if (Number.isNaN(host)) throw new HostError('vhost: guest RAM of this hypervisor has no host address', 0);
    const last = regions.at(-1);
    if (last !== undefined && last.gpa + last.sizeBytes === gpa && last.hostAddress + last.sizeBytes === host) {
      last.sizeBytes += sizeBytes;
    } else regions.push({ gpa, sizeBytes, hostAddress: host });
  }
  return regions;
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
