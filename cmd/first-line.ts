/** Imported before everything else: from here on no signal ends the process by accident, or opens a debugger's port. */
import { holdSignals } from '../devicemodel/core/host/process-signals.ts';

holdSignals();
