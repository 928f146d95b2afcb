/**
 * `--event-monitor path=|fd=`: what happens, as Cloud Hypervisor writes it: JSON objects with an empty line behind each.
 * Nobody is waited for: what a full pipe does not take is lost. What a file does not take is lost, too, with one line.
 */
import { closeSync, writeSync } from 'node:fs';
import type { EventMonitorTarget } from '../devicemodel/core/config.ts';
import { attributed } from '../devicemodel/core/errors.ts';
import { describeErrno, Errno } from '../devicemodel/core/host/errno.ts';
import { setNonBlocking } from '../devicemodel/core/host/files.ts';
import { openOutput } from '../devicemodel/core/host/output-file.ts';
import { errnoOf } from '../devicemodel/core/host/path-failure.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { EventStream, StreamEvent } from './event-stream.ts';
import type { FrontDoor } from './front-doors.ts';

const STDERR_FD = 2;

/** @param log is told once of events that a file does not take. @throws HostError when it cannot be opened. */
export function openEventMonitor(target: EventMonitorTarget, events: EventStream, log: Log): FrontDoor {
  const startedMs = Date.now();
  const fd = 'fd' in target ? target.fd : openNamed(target.path);
  const restore = 'fd' in target ? unblocked(fd) : () => closeSync(fd);
  let isLossKnown = false;
  const tell = (event: StreamEvent): void => {
    try {
      writeSync(fd, textOf(event, startedMs));
    } catch (error) {
      // A reader that is slow or gone is no reason to stop a VM, nor is a full disk.
      const errno = errnoOf(error);
      if (isLossKnown || errno === Errno.EAGAIN || errno === Errno.EPIPE) return;
      isLossKnown = true;
      log.warn(`--event-monitor: events are lost: ${describeErrno(errno)}`);
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

function openNamed(path: string): number {
  try {
    return openOutput(path, 0o640);
  } catch (error) {
    throw attributed('--event-monitor', error);
  }
}

/** Standard output and error are shared with the log, which is waited for. @returns how to undo it. */
function unblocked(fd: number): () => void {
  if (fd <= STDERR_FD) return () => {};
  const what = `--event-monitor fd=${fd}`;
  const wasNonBlocking = setNonBlocking(fd, true, what);
  return () => void setNonBlocking(fd, wasNonBlocking, what);
}

/** The time is that since the process began to tell. */
function textOf({ timeMs, source, event, data }: StreamEvent, startedMs: number): string {
  const sinceMs = Math.max(0, timeMs - startedMs);
  const timestamp = { secs: Math.floor(sinceMs / 1000), nanos: (sinceMs % 1000) * 1_000_000 };
  return `${JSON.stringify({ timestamp, source, event, properties: data ?? null }, undefined, 2)}\n\n`;
}
