import type { CounterPage } from '../../../../core/counters.ts';
import type { ImageIo } from '../../../storage/image-io.ts';
import type { WorkNote } from './work-note.ts';

/** What the device decides about requests. */
export interface BlockRequestState {
  /** Undefined: `nodisk`. */
  readonly backend: ImageIo | undefined;
  /** Writes stay in the host's cache until a flush: only if the driver knows how to flush. */
  readonly isWriteback: boolean;
  /**
   * The used length is what was written. Compat: legacy drivers see 1 for every request, as from the C device model; they
   * are to ignore it (§5.2.6, legacy interface).
   */
  readonly reportsLength: boolean;
  /** 20 bytes of ASCII. */
  readonly serial: Uint8Array;
  /** The driver goes on while requests are served: it did not kick through the request page. */
  readonly runsBesideDriver: boolean;
  /** Where what the thread waits for is written down. */
  readonly note?: WorkNote;
  /** Of kind `disk`, of this thread. */
  readonly counts?: CounterPage;
}
