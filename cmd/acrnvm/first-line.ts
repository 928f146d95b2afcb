/** Imported before everything else: from here on no SIGUSR1 opens a debugger's port. */
import { refuseDebugger } from '../../devicemodel/core/host/process-signals.ts';

refuseDebugger();
