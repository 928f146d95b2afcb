/**
 * `--event-monitor path=|fd=`: what happens, as Cloud Hypervisor writes it: JSON objects with an empty line behind each.
 * Nobody is waited for: what a full pipe does not take is lost.
 */
import { closeSync, constants, openSync, writeSync } from 'node:fs';
import type { EventMonitorTarget } from '../devicemodel/core/config.ts';
import { ExitCode, HostError } from '../devicemodel/core/errors.ts';
import { setNonBlocking } from '../devicemodel/core/host/files.ts';
import type { EventStream, StreamEvent } from './event-stream.ts';
import type { FrontDoor } from './front-doors.ts';

const STDERR_FD = 2;
const { O_WRONLY, O_CREAT, O_APPEND, O_NONBLOCK } = constants;

/** @throws HostError when it cannot be opened. */
export function openEventMonitor(target: EventMonitorTarget, events: EventStream): FrontDoor {
  const startedMs = Date.now();
  const fd = 'fd' in target ? target.fd : open(target.path);
  const restore = 'fd' in target ? unblocked(fd) : () => closeSync(fd);
  const tell = (event: StreamEvent): void => {
    try {
      writeSync(fd, textOf(event, startedMs));
    } catch {
      // A reader that is slow or gone is no reason to stop a VM.
    }
  };
  for (const event of events.since(0) ?? []) tell(event);
  const stop = events.listen(tell);
  let isOpen = true;
  return {
    close: () => {
      if (!isOpen) return;
      isOpen = false;
      stop();
      restore();
    },
  };
}

/** Standard output and error are shared with the log, which is waited for. @returns how to undo it. */
function unblocked(fd: number): () => void {
  if (fd <= STDERR_FD) return () => {};
  const what = `--event-monitor fd=${fd}`;
  const wasNonBlocking = setNonBlocking(fd, true, what);
  return () => void setNonBlocking(fd, wasNonBlocking, what);
}

function open(path: string): number {
  try {
    return openSync(path, O_WRONLY | O_CREAT | O_APPEND | O_NONBLOCK, 0o640);
  } catch (cause) {
    const { errno = 0, code } = cause as NodeJS.ErrnoException;
    throw new HostError(`--event-monitor: ${path}: cannot be opened (${code})`, Math.abs(errno), {
      exitCode: ExitCode.CannotCreate,
      cause,
      ...(code === 'ENXIO' ? { hint: 'nobody reads from this pipe yet' } : {}),
    });
  }
}

/** The time is that since the process began to tell. */
function textOf({ timeMs, source, event, data }: StreamEvent, startedMs: number): string {
  const sinceMs = Math.max(0, timeMs - startedMs);
  const timestamp = { secs: Math.floor(sinceMs / 1000), nanos: (sinceMs % 1000) * 1_000_000 };
  return `${JSON.stringify({ timestamp, source, event, properties: data ?? null }, undefined, 2)}\n\n`;
}
