/** Memory of devices, at addresses that the guest chose. */
import { HsmError } from '../../devicemodel/core/hsm/errors.ts';
import type { Log } from '../../devicemodel/core/log.ts';
import type { MemoryWindow } from './cpu-engine.ts';

/** Where none can be (beyond what the CPU addresses) there is none, and the guest goes on. */
export function whereGuestPutIt(log: Log, map: () => MemoryWindow): MemoryWindow {
  try {
    return map();
  } catch (error) {
    if (!(error instanceof HsmError)) throw error;
    log.guest(() => error.message);
    return { dispose: () => {} };
  }
}
