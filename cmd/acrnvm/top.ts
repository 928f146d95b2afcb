/** `acrnvm top`: what each VM does now: processor, memory, disks, networks, accesses that were served. */
import { call, glanceAt, listVms, socketOf } from './client.ts';

interface Counter {
  readonly kind: string;
  readonly id: string;
  readonly [counter: string]: number | string;
}

interface Metric {
  readonly name: string;
  readonly samples: readonly { readonly suffix?: string; readonly value: number }[];
}

/** What was counted so far. */
interface Sample {
  readonly atMs: number;
  readonly cpuS: number;
  readonly residentBytes: number;
  readonly diskBytes: number;
  readonly diskOps: number;
  readonly netBytes: number;
  readonly accesses: number;
  /** How late its device thread was, in all, at so many looks. */
  readonly lateS: number;
  readonly looks: number;
}

/** One VM over one interval; rates are of a second. */
export interface Load {
  readonly name: string;
  readonly state: string;
  readonly cpuPercent?: number;
  readonly residentBytes?: number;
  readonly diskBytesPerS?: number;
  readonly diskOpsPerS?: number;
  readonly netBytesPerS?: number;
  readonly accessesPerS?: number;
  /** How late the device thread comes to what waits for it; absent when nobody looked meanwhile. */
  readonly lagMs?: number;
}

/** @returns undefined when nobody answers any more, or the process has no VM. */
async function sampleOf(name: string): Promise<Sample | undefined> {
  try {
    const at = socketOf(name);
    const counters = (await call(at, 'GET', '/v1/counters')) as readonly Counter[];
    const metrics = (await call(at, 'GET', '/v1/metrics', undefined, {
      headers: { accept: 'application/json' },
    })) as Metric[];
    const metric = (wanted: string) => metrics.find((each) => each.name === wanted)?.samples[0]?.value ?? 0;
    const lag = (suffix: string) =>
      metrics
        .find((each) => each.name === 'acrn_device_thread_lag_seconds')
        ?.samples.find((each) => each.suffix === suffix)?.value ?? 0;
    const sum = (kind: string, ...names: readonly string[]) =>
      counters
        .filter((each) => each.kind === kind)
        .reduce((all, each) => all + names.reduce((of, counter) => of + Number(each[counter] ?? 0), 0), 0);
    return {
      atMs: Date.now(),
      cpuS: metric('process_cpu_seconds_total'),
      residentBytes: metric('process_resident_memory_bytes'),
      diskBytes: sum('disk', 'readBytes', 'writeBytes'),
      diskOps: sum('disk', 'reads', 'writes', 'flushes', 'discards'),
      netBytes: sum('net', 'rxBytes', 'txBytes'),
      accesses: sum('accesses', 'pioReads', 'pioWrites', 'mmioReads', 'mmioWrites', 'pciReads', 'pciWrites'),
      lateS: lag('_sum'),
      looks: lag('_count'),
    };
  } catch {
    return undefined;
  }
}

/** Looks again each time it is called; rates are those since the call before. */
export class Top {
  readonly #before = new Map<string, Sample>();
  readonly #names: readonly string[];

  /** @param names of VMs, or the paths of their sockets; none: all that run. */
  constructor(names: readonly string[]) {
    this.#names = names;
  }

  async #meant(): Promise<readonly Pick<Load, 'name' | 'state'>[]> {
    const names = this.#names;
    if (names.length === 0) return listVms();
    const paths = names.filter((name) => name.includes('/'));
    const byName = paths.length === names.length ? [] : await listVms();
    const atPaths = await Promise.all(paths.map(vmAtPath));
    return [...byName.filter(({ name }) => names.includes(name)), ...atPaths.flat()];
  }

  async look(): Promise<Load[]> {
    return Promise.all(
      (await this.#meant()).map(async ({ name, state }) => {
        const now = await sampleOf(name);
        const before = this.#before.get(name);
        if (now === undefined) return { name, state };
        this.#before.set(name, now);
        return { name, state, residentBytes: now.residentBytes, ...ratesOf(now, before) };
      }),
    );
  }
}

async function vmAtPath(path: string): Promise<Pick<Load, 'name' | 'state'>[]> {
  try {
    return [{ name: path, state: (await glanceAt(path)).state }];
  } catch {
    return [];
  }
}

function ratesOf(now: Sample, before: Sample | undefined): Partial<Load> {
  const seconds = before === undefined ? 0 : (now.atMs - before.atMs) / 1000;
  if (before === undefined || seconds <= 0) return {};
  const rate = (of: (sample: Sample) => number) => Math.max(0, Math.round((of(now) - of(before)) / seconds));
  return {
    cpuPercent: Math.round((100 * (now.cpuS - before.cpuS)) / seconds),
    diskBytesPerS: rate(({ diskBytes }) => diskBytes),
    diskOpsPerS: rate(({ diskOps }) => diskOps),
    netBytesPerS: rate(({ netBytes }) => netBytes),
    accessesPerS: rate(({ accesses }) => accesses),
    ...(now.looks > before.looks
      ? { lagMs: Math.round((10_000 * (now.lateS - before.lateS)) / (now.looks - before.looks)) / 10 }
      : {}),
  };
}

const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'] as const;

/** `1.5 MiB` */
export function sizeText(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value < 10 && unit > 0 ? value.toFixed(1) : Math.round(value)} ${units[unit]}`;
}

export const topHead = ['NAME', 'STATE', 'CPU', 'MEMORY', 'DISK', 'OPS', 'NETWORK', 'ACCESSES', 'LAG'] as const;

export function topRow(load: Load): string[] {
  const shown = (value: number | undefined, text: (value: number) => string) =>
    value === undefined ? '' : text(value);
  const perS = (value: number) => `${value}/s`;
  return [
    load.name,
    load.state,
    shown(load.cpuPercent, (value) => `${value} %`),
    shown(load.residentBytes, sizeText),
    shown(load.diskBytesPerS, (value) => `${sizeText(value)}/s`),
    shown(load.diskOpsPerS, perS),
    shown(load.netBytesPerS, (value) => `${sizeText(value)}/s`),
    shown(load.accessesPerS, perS),
    shown(load.lagMs, (value) => `${value} ms`),
  ];
}
