import type { AccessSize, Bdf, Gpa, Gsi } from './address.ts';

/**
 * What a device is, and the wires it may hold. A device knows no thread, no hypervisor and no other device: it is
 * handed lines, memory, a clock and back ends, and runs to completion on every call.
 */

/** A block of registers. Offsets count from the base of the range it was registered with. */
export interface IoRegion {
  /** @returns unsigned value; an unknown register reads as all ones of `size`. */
  read(offset: number, size: AccessSize): number;
  /** @param value unsigned, within `size`. */
  write(offset: number, size: AccessSize, value: number): void;
  /** For registers whose 64-bit read must not tear (the HPET main counter). Without it: two 32-bit reads, low first. */
  readU64?(offset: number): bigint;
  writeU64?(offset: number, value: bigint): void;
}

/** A level: the owner asserts and deasserts it, whoever wired it decides what that means (edge, level, polarity). */
export interface InterruptLine {
  readonly gsi: Gsi;
  set(asserted: boolean): void;
}

/** A memory write that is an interrupt (PCI 3.0 §6.8). */
export interface MsiMessage {
  readonly address: Gpa;
  readonly data: number;
}

export interface MsiSink {
  signal(message: MsiMessage): void;
}

/** Life cycle of everything that is emulated. Reset keeps placement and back ends. */
export interface Device {
  /** Host resources on: files, taps, timers. Called once, before the guest runs. */
  start?(): void | Promise<void>;
  /** Back to the power-on state; every register as after construction. */
  reset(): void;
  /** The guest enters S3: stop what costs time; registers are kept. */
  suspend?(): void;
  resume?(): void;
  /**
   * What was lent to others comes back, so that `reset`, `suspend` and `stop` need not wait for it. The VM is paused.
   * @param isFlushed what was written is on the medium then: the host may sleep, or whoever has the disk next reads it.
   * @returns when it is so; undefined: it is. @throws StorageHangError, asynchronously.
   */
  settle?(isFlushed: boolean): Promise<void> | undefined;
  /** Undo start. Safe to call twice, and without start. */
  stop?(): void | Promise<void>;
}

/** Config space as the ioreq loop sees it. */
export interface PciConfigAccess {
  readConfig(bdf: Bdf, offset: number, size: AccessSize): number;
  writeConfig(bdf: Bdf, offset: number, size: AccessSize, value: number): void;
}

/** Why the guest stops running. */
export type PowerEvent =
  | {
      readonly kind: 'poweroff';
      readonly reason: string;
      /** Now, and without waiting for storage. May follow an event without it. */
      readonly isForced?: boolean;
      /**
       * Who wrote sleep type 5: the guest; or, after a `triple-fault` event, the hypervisor in its name. `watchdog`: the
       * guest went astray. Absent: someone outside asked.
       */
      readonly by?: 'guest' | 'triple-fault' | 'watchdog';
      /** What was asked for, where nobody wants the guest to start anew. */
      readonly instead?: 'reset';
      /** Exit status that the guest asked for. Absent: what follows from the rest. */
      readonly status?: number;
    }
  | { readonly kind: 'full-reset'; readonly reason: string }
  | {
      readonly kind: 'system-reset';
      readonly reason: string;
      /** The guest has gone astray. */
      readonly by?: 'watchdog';
    }
  | { readonly kind: 'suspend'; readonly reason: string };

/** Devices that end or restart the VM tell it so; the loop acts after the current request is served. */
export interface PowerControl {
  request(event: PowerEvent): void;
}
