/**
 * What the device thread asks of the thread that has the hypervisor's functions, and what that one says. An order is
 * answered before the next one is given, and while it waits the device thread does nothing else: so what an order does must
 * not need the device thread.
 */
import type { MessagePort } from 'node:worker_threads';
import type { Bdf, Gpa } from '../../../devicemodel/core/address.ts';
import type { ExitCode } from '../../../devicemodel/core/errors.ts';
import type { HvVdev } from '../../../devicemodel/core/hsm/vdev.ts';
import type { LogLevelName } from '../../../devicemodel/core/log.ts';
import type { Irqfd } from '../../embedded/cpu-engine.ts';
import type { MeetingPlace } from '../../embedded/meeting-place.ts';
import type { VuartAddress } from '../../embedded/scenario.ts';
import type { VcpuWires } from '../threaded-runner.ts';

/** Words of the thread itself, in a SharedArrayBuffer. */
export const ThreadWord = {
  /** Counts answers: the device thread sleeps on it. */
  answers: 0,
  /** Id of the thread; 0 until it is up. */
  tid: 1,
  /** Counts how often it was asked whether it comes round, and {@link alive} what of that it has answered. */
  asked: 2,
  alive: 3,
  count: 4,
} as const;

export interface VdevThreadSetup {
  /** {@link ThreadWord} */
  readonly words: Int32Array;
  /** Of the VM; this thread writes what is in it, but for the register at port CF8. */
  readonly accessMap: Int32Array;
  /** Rung when a vCPU is the hypervisor's. */
  readonly bellFd: number;
  /** Orders come by it, and answers go. */
  readonly orders: MessagePort;
  readonly place: MeetingPlace;
}

/** As `VdevParts`, with memory by its address in this process. */
export type SentParts =
  | { readonly type: 'ivshmem'; readonly regionId: number; readonly address: bigint }
  | { readonly type: 'vuart'; readonly peer: VuartAddress | undefined }
  | { readonly type: 'root-port' };

/** struct kvm_run of a vCPU, mapped in this process until `detach`. */
export interface RunPage {
  readonly address: bigint;
  readonly sizeBytes: number;
}

export type Order =
  | { readonly kind: 'attach'; readonly vmFd: number; readonly runs: readonly RunPage[]; readonly wires: VcpuWires }
  | { readonly kind: 'detach' }
  | { readonly kind: 'create'; readonly vdev: HvVdev; readonly parts: SentParts }
  | { readonly kind: 'destroy'; readonly bdf: Bdf }
  | ({ readonly kind: 'map'; readonly key: number; readonly gpa: Gpa; readonly sizeBytes: number } & MapTo)
  | { readonly kind: 'unmap'; readonly key: number }
  | { readonly kind: 'route'; readonly wanted: readonly Irqfd[] }
  | { readonly kind: 'leave' };

interface MapTo {
  readonly hostAddress: bigint;
  readonly writable: boolean;
  readonly isDevice: boolean;
}

/** Not an order: nobody waits for it. The irqfd is gone. */
export interface Forget {
  readonly kind: 'forget';
  readonly fd: number;
}

export interface Failure {
  readonly message: string;
  readonly errno: number;
  readonly exitCode: ExitCode;
  readonly hint: string | undefined;
}

/** Of `route`: for each an errno, and the number that its message goes by (-1: it was dropped, or refused). */
export interface Routed {
  readonly errnos: readonly number[];
  readonly gsis: readonly number[];
}

export type Answer =
  | { readonly kind: 'done'; readonly routed?: Routed }
  | { readonly kind: 'failed'; readonly failure: Failure };

/** To the thread, before the first order. */
export type Join = { readonly kind: 'join'; readonly name: string } | { readonly kind: 'give up' };

/** From the thread, on its own. */
export type Told =
  | { readonly kind: 'joined'; readonly vmid: number }
  | { readonly kind: 'not joined'; readonly failure: Failure }
  | {
      readonly kind: 'line';
      readonly level: LogLevelName;
      /** Below the VM's; '': none. */
      readonly scope: string;
      readonly line: string;
      readonly isRationed: boolean;
    };
