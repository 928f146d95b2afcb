/**
 * Plays the driver behind /dev/acrn_hsm for one process, where that makes its C calls: a VM with one vCPU, whose guest is a
 * generator of accesses. Every ioctl is answered as the driver would; whether one fails instead is decided before it comes
 * here.
 */
import { constants } from 'node:os';
import { IOREQ_PAGE_BYTES, IoreqPage, IoreqState } from '../../../devicemodel/core/ioreq-page.ts';
import {
  AcrnIoeventfd,
  AcrnVmCreation,
  AcrnVmMemmap,
  Ioctl,
  type IoctlName,
  IoeventfdFlag,
  MemmapType,
} from '../../../hypervisor/acrn/abi.ts';
import type { Access, Guest, GuestMachine } from './guest.ts';

const { EBADF, EINVAL, ENODEV, ENOTTY, EINTR } = constants.errno;

export const ioctlNames: ReadonlyMap<number, IoctlName> = new Map(
  Object.entries(Ioctl).map(([name, request]) => [request, name as IoctlName]),
);

/** What of the C library the player needs itself. */
export interface PlayerHost {
  /** The bytes at an address of this process. */
  view(address: bigint, sizeBytes: number): Uint8Array;
  /** Sleep in the kernel. @returns whether a signal ended it. */
  sleep(ms: number): boolean;
  signalEventfd(fd: number): void;
  /** Told of each call that changes what the driver holds, for whoever looks afterwards. */
  note(state: 'created' | 'running' | 'paused' | 'destroyed'): void;
}

interface Kick {
  readonly address: number;
  readonly data: bigint | undefined;
  readonly fd: number;
}

const VMID = 1;
/** A guest that waits looks this often. */
const LOOK_MS = 1;

export class HsmPlayer implements GuestMachine {
  readonly #host: PlayerHost;
  readonly #makeGuest: (machine: GuestMachine) => Guest;
  #guest: Guest | undefined;
  #page: IoreqPage | undefined;
  #segments: { readonly gpa: number; readonly bytes: Uint8Array }[] = [];
  #kicks: Kick[] = [];
  #isRunning = false;
  #hasClient = false;
  #isPosted = false;
  #lastValue = 0;

  constructor(host: PlayerHost, makeGuest: (machine: GuestMachine) => Guest) {
    this.#host = host;
    this.#makeGuest = makeGuest;
  }

  ram(gpa: number, sizeBytes: number): DataView {
    const segment = this.#segments.find((s) => gpa >= s.gpa && gpa + sizeBytes <= s.gpa + s.bytes.length);
    if (segment === undefined) throw new Error('the guest has no such RAM');
    return new DataView(segment.bytes.buffer, segment.bytes.byteOffset + gpa - segment.gpa, sizeBytes);
  }

  /** @returns 0 or an errno; never blocks but in ATTACH. */
  ioctl(name: IoctlName, argument: bigint | number | Uint8Array): number {
    switch (name) {
      case 'CREATE_VM':
        return this.#create(argument as Uint8Array);
      case 'DESTROY_VM':
        if (this.#page === undefined) return EINVAL;
        this.#isRunning = false;
        this.#hasClient = false;
        this.#page = undefined;
        this.#segments = [];
        this.#host.note('destroyed');
        return 0;
      case 'START_VM':
        this.#isRunning = true;
        this.#host.note('running');
        return 0;
      case 'PAUSE_VM':
        this.#isRunning = false;
        this.#host.note('paused');
        return 0;
      case 'RESET_VM':
        this.#begin();
        return 0;
      case 'CLEAR_VM_IOREQ':
        this.#page?.setState(0, IoreqState.Free);
        return 0;
      case 'CREATE_IOREQ_CLIENT':
        this.#hasClient = true;
        return 0;
      case 'DESTROY_IOREQ_CLIENT':
        this.#hasClient = false;
        return 0;
      case 'SET_MEMSEG':
        this.#addMemory(argument as Uint8Array);
        return 0;
      case 'NOTIFY_REQUEST_FINISH':
        return this.#finish();
      case 'IOEVENTFD':
        this.#setKick(argument as Uint8Array);
        return 0;
      case 'SETUP_ASYNCIO':
      case 'PM_GET_CPU_STATE':
        return ENOTTY;
      default:
        return 0;
    }
  }

  /** ATTACH: until there is a request, or a signal. @returns 0 or an errno. */
  attach(): number {
    for (;;) {
      const result = this.lookForRequest();
      if (result !== undefined) return result;
      if (this.#host.sleep(LOOK_MS)) return EINTR;
    }
  }

  /** One look of a thread that waits in ATTACH. @returns undefined: not yet. */
  lookForRequest(): number | undefined {
    const page = this.#page;
    if (!this.#hasClient || page === undefined) return page === undefined ? EBADF : ENODEV;
    if (this.#isPosted && page.state(0) === IoreqState.Processing) return 0;
    if (!this.#isRunning) return undefined;
    for (;;) {
      const next = this.#guest?.next(this.#lastValue);
      if (next === undefined || next.done === true || next.value === undefined) return undefined;
      if (this.#isKick(next.value)) continue;
      this.#post(page, next.value);
      return 0;
    }
  }

  #create(argument: Uint8Array): number {
    if (this.#page !== undefined) return EINVAL;
    const creation = AcrnVmCreation.decode(argument);
    this.#page = new IoreqPage(this.#host.view(BigInt(creation.ioreqBuf), IOREQ_PAGE_BYTES));
    argument.set(AcrnVmCreation.encode({ ...creation, vmid: VMID, vcpuNum: 1 }));
    this.#kicks = [];
    this.#begin();
    this.#host.note('created');
    return 0;
  }

  #begin(): void {
    this.#guest = this.#makeGuest(this);
    this.#isPosted = false;
    this.#lastValue = 0;
  }

  #addMemory(argument: Uint8Array): void {
    const { type, userVmPa, hostAddress, len } = AcrnVmMemmap.decode(argument);
    if (type !== MemmapType.Ram) return;
    this.#segments.push({ gpa: Number(userVmPa), bytes: this.#host.view(BigInt(hostAddress), Number(len)) });
  }

  #setKick(argument: Uint8Array): void {
    const { fd, flags, addr, data } = AcrnIoeventfd.decode(argument);
    const kick = {
      address: Number(addr),
      data: (flags & IoeventfdFlag.DataMatch) === 0 ? undefined : BigInt(data),
      fd,
    };
    this.#kicks = this.#kicks.filter((k) => k.address !== kick.address || k.data !== kick.data);
    if ((flags & IoeventfdFlag.Deassign) === 0) this.#kicks.push(kick);
  }

  #isKick(access: Access): boolean {
    if (access.kind !== 'pio' || access.value === undefined) return false;
    const value = BigInt(access.value);
    const kick = this.#kicks.find((k) => k.address === access.address && (k.data ?? value) === value);
    if (kick === undefined) return false;
    this.#host.signalEventfd(kick.fd);
    return true;
  }

  #post(page: IoreqPage, access: Access): void {
    const { kind, address, size, value } = access;
    const isWrite = value !== undefined;
    if (kind === 'pio') page.fillPortIo(0, isWrite, address, size, value ?? 0);
    else if (kind === 'mmio') page.fillMmio(0, isWrite, address, size, value ?? 0);
    else page.fillPciConfig(0, isWrite, access.bdf ?? 0, address, size, value ?? 0);
    page.setState(0, IoreqState.Processing);
    this.#isPosted = true;
  }

  #finish(): number {
    const page = this.#page;
    if (page === undefined || !this.#isPosted) return EINVAL;
    this.#lastValue = page.value(0);
    page.setState(0, IoreqState.Free);
    this.#isPosted = false;
    return 0;
  }
}
