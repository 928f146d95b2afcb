/** Imported before everything else: from here on no signal ends the process by accident, or opens a debugger's port. */
import { holdSignals } from '../devicemodel/core/host/process-signals.ts';

holdSignals();

/**
 * Threads of Node's for calls that may block for long: each disk has at most one call there, and disks that hang must not
 * keep the flush of another from being made. (Node has 4, and makes them when the first is needed.)
 */
process.env['UV_THREADPOOL_SIZE'] ??= '16';
