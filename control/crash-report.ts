/** What is known of a guest at the moment it was given up: by a triple fault, or by its own watchdog. */
import type { TappableLine } from '../devicemodel/core/char-backend.ts';
import type { CounterBook } from '../devicemodel/core/counters.ts';
import { writeOutput } from '../devicemodel/core/host/output-file.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { LogLine } from '../devicemodel/core/log-tail.ts';
import { monotonicMs } from '../devicemodel/core/monotonic.ts';
import type { GuestCrash } from '../devicemodel/core/vm-events.ts';

export interface CrashReport extends GuestCrash {
  /** ISO 8601. */
  readonly time: string;
  readonly name: string;
  readonly hypervisor: string;
  readonly uptimeS: number;
  readonly memoryBytes: number;
  /** The newest output of each, where a panic is told. */
  readonly consoles: Readonly<Record<string, string>>;
  readonly counters: readonly object[];
  readonly log: readonly object[];
}

export interface CrashedGuest {
  readonly config: { readonly name: string; readonly memoryBytes: number };
  readonly hypervisor: string;
  readonly lines: readonly TappableLine[];
  readonly counters: Pick<CounterBook, 'all'>;
  readonly launchedMs: number;
}

export function crashReport(crash: GuestCrash, guest: CrashedGuest, log: readonly LogLine[]): CrashReport {
  return {
    ...crash,
    time: new Date().toISOString(),
    name: guest.config.name,
    hypervisor: guest.hypervisor,
    uptimeS: Math.round((monotonicMs() - guest.launchedMs) / 1000),
    memoryBytes: guest.config.memoryBytes,
    consoles: Object.fromEntries(guest.lines.map((line) => [line.id, Buffer.from(line.history()).toString('utf8')])),
    counters: guest.counters.all.map((each) => ({ kind: each.kind, id: each.id, ...each.values() })),
    log: log.map(({ timeMs, level, message }) => ({ time: new Date(timeMs).toISOString(), level, message })),
  };
}

/** A guest's output is not for everybody. */
const MODE = 0o600;

/** Never fails: the guest is lost in any case, and one line says that its report is. */
export async function writeCrashReport(report: CrashReport, path: string, log: Log): Promise<void> {
  try {
    await writeOutput(path, `${JSON.stringify(report, undefined, 2)}\n`, MODE);
    log.notice(`what is known of the guest is in ${path}`);
  } catch (error) {
    log.error(`--crash-dump: ${(error as Error).message}`);
  }
}
