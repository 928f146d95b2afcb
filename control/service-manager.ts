/**
 * systemd as the one who started this process: it hears when the guest runs, that it is shutting down and how long that
 * may take, and, if it wants to (WatchdogSec=), that the device thread and the threads beside it come round.
 */
import { NotifySocket } from '../devicemodel/core/host/sd-notify.ts';
import type { ThreadPulses } from '../devicemodel/core/thread-pulses.ts';
import type { EventStream, StreamEvent } from './event-stream.ts';
import type { FrontDoor } from './front-doors.ts';

const US_PER_MS = 1000;
/** Beside what the guest may take: the end of the VM itself. */
const END_TIMEOUT_MS = 10_000;

export interface ServiceManagerOptions {
  readonly events: EventStream;
  readonly vmName: string;
  /** Threads that are to come round beside this one. */
  readonly threads?: () => ThreadPulses | undefined;
  readonly env?: NodeJS.ProcessEnv;
}

export class ServiceManager implements FrontDoor {
  readonly #socket: NotifySocket;
  readonly #stop: () => void;
  readonly #watchdog: NodeJS.Timeout | undefined;
  readonly #vmName: string;
  readonly #threads: () => ThreadPulses | undefined;
  #isOneSilent = false;

  /** @param options.env has NOTIFY_SOCKET, and WATCHDOG_USEC where a watchdog waits for this very process. */
  constructor({ events, vmName, threads = () => undefined, env = process.env }: ServiceManagerOptions) {
    this.#socket = new NotifySocket(env['NOTIFY_SOCKET'] ?? '');
    this.#vmName = vmName;
    this.#threads = threads;
    for (const event of events.since(0) ?? []) this.#tell(event);
    this.#stop = events.listen((event) => this.#tell(event));
    const watchdogMs = watchdogOf(env);
    if (watchdogMs === undefined) return;
    // sd_watchdog_enabled(3) has half the time; half of that, as threads have until the next look to answer. A timer of
    // the event loop: it comes when this thread has a turn.
    this.#watchdog = setInterval(() => this.#feed(), watchdogMs / 4);
    this.#watchdog.unref();
  }

  /** The guest was asked to shut down. @param timeoutMs what it may take. */
  stopping(timeoutMs: number): void {
    const extendUs = (timeoutMs + END_TIMEOUT_MS) * US_PER_MS;
    this.#socket.send(`STOPPING=1\nEXTEND_TIMEOUT_USEC=${extendUs}\nSTATUS=${this.#vmName}: shutting down`);
  }

  /** The process is up, and waits for a VM to be described. */
  ready(): void {
    this.#socket.send('READY=1\nSTATUS=waiting for a VM');
  }

  /** The guest is gone. @param stays the process is not: it waits for orders. */
  ended(stays: boolean): void {
    const more = stays ? '' : `STOPPING=1\nEXTEND_TIMEOUT_USEC=${END_TIMEOUT_MS * US_PER_MS}\n`;
    this.#socket.send(`${more}STATUS=${this.#vmName}: ended${stays ? ', waiting for orders' : ''}`);
  }

  #feed(): void {
    const threads = this.#threads();
    const silent = threads?.silent ?? [];
    threads?.ask();
    if (silent.length === 0) {
      this.#isOneSilent = false;
      this.#socket.send('WATCHDOG=1');
    } else if (!this.#isOneSilent) {
      this.#isOneSilent = true;
      this.#socket.send(`STATUS=${this.#vmName}: the thread of ${silent.join(', ')} does not come round`);
    }
  }

  close(): void {
    clearInterval(this.#watchdog);
    this.#stop();
    this.#socket.close();
  }

  #tell({ source, event }: StreamEvent): void {
    if (source !== 'vm') return;
    const isUp = ['booted', 'rebooted', 'resumed'].includes(event);
    this.#socket.send(`${isUp ? 'READY=1\n' : ''}STATUS=${this.#vmName}: ${isUp ? 'running' : event}`);
  }
}

/** WATCHDOG_PID says whom it is about. */
function watchdogOf(env: NodeJS.ProcessEnv): number | undefined {
  const us = Number(env['WATCHDOG_USEC']);
  const pid = env['WATCHDOG_PID'];
  if (!(us > 0) || (pid !== undefined && Number(pid) !== process.pid)) return undefined;
  return us / US_PER_MS;
}
