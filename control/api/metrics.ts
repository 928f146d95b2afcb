/** Figures of a VM, its devices and its process, for Prometheus' text format or as JSON. */
import type { CounterKind, CounterName, Counters } from '../../devicemodel/core/counters.ts';
import { monotonicMs } from '../../devicemodel/core/monotonic.ts';
import { LAG_BOUNDS_S, type LagHistogram } from './thread-lag.ts';
import { stateOf, type Vmm } from './vmm.ts';

type Labels = Readonly<Record<string, string>>;

export interface Metric {
  readonly name: string;
  readonly type: 'gauge' | 'counter' | 'histogram';
  readonly help: string;
  /** `suffix`: behind the name, for the parts of a histogram. */
  readonly samples: readonly { readonly suffix?: string; readonly labels?: Labels; readonly value: number }[];
}

/** A process without a VM is in none of them. */
const states = ['created', 'running', 'paused', 'suspended', 'ended'] as const;

export function metricsText(vmm: Vmm, lag: LagHistogram): string {
  return `${metricsOf(vmm, lag).map(textOf).join('\n')}\n`;
}

export function metricsOf(vmm: Vmm, lag: LagHistogram): Metric[] {
  const { guest, version, events } = vmm;
  const stateNow = stateOf(vmm);
  const vmState: Metric = {
    name: 'acrn_vm_state',
    type: 'gauge',
    help: 'One for the state the VM is in.',
    samples: states.map((state) => ({ labels: { state }, value: state === stateNow ? 1 : 0 })),
  };
  const one = (type: Metric['type'], name: string, help: string, value: number): Metric => ({
    name,
    type,
    help,
    samples: [{ value }],
  });
  const { user, system } = process.cpuUsage();
  const process_ = [
    one(
      'gauge',
      'process_resident_memory_bytes',
      'Memory of the process, the guest included where it is its own.',
      process.memoryUsage.rss(),
    ),
    one('counter', 'process_cpu_seconds_total', 'CPU time of all threads.', (user + system) / 1e6),
    lagMetric(lag),
    one('counter', 'acrn_events_total', 'Events of the VM and its process.', events.seq),
  ];
  if (guest === undefined) return [vmState, ...process_];
  const { name, memoryBytes } = guest.config;
  return [
    {
      name: 'acrn_vm_info',
      type: 'gauge',
      help: 'The VM there is.',
      samples: [{ labels: { name, hypervisor: guest.hypervisor, version }, value: 1 }],
    },
    vmState,
    one('gauge', 'acrn_vm_uptime_seconds', 'Since the VM was launched.', (monotonicMs() - guest.launchedMs) / 1000),
    one('gauge', 'acrn_guest_memory_bytes', 'RAM of the guest.', memoryBytes),
    ...deviceMetrics(guest.counters.all),
    ...process_,
  ];
}

function lagMetric({ atMost, count, sumS }: LagHistogram): Metric {
  const bucket = (le: string, value: number) => ({ suffix: '_bucket', labels: { le }, value });
  return {
    name: 'acrn_device_thread_lag_seconds',
    type: 'histogram',
    help: 'How late the device thread came to what waited for it, looked at four times a second while figures are read.',
    samples: [
      ...LAG_BOUNDS_S.map((bound, i) => bucket(String(bound), atMost[i] as number)),
      bucket('+Inf', count),
      { suffix: '_sum', value: sumS },
      { suffix: '_count', value: count },
    ],
  };
}

/** A metric of some counters of a kind: the counters, and the labels that tell them apart. */
interface MetricOf<K extends CounterKind> {
  readonly name: string;
  readonly help: string;
  readonly counters: Partial<Record<CounterName<K>, Labels>>;
}

/** What the id of a block of counters is called. */
const idLabels = { disk: 'device', net: 'device', console: 'console', accesses: undefined } as const satisfies Record<
  CounterKind,
  string | undefined
>;

const deviceMetricTable: { readonly [K in CounterKind]: readonly MetricOf<K>[] } = {
  disk: [
    {
      name: 'acrn_disk_ops_total',
      help: 'Requests of the guest that were carried out.',
      counters: {
        reads: { op: 'read' },
        writes: { op: 'write' },
        flushes: { op: 'flush' },
        discards: { op: 'discard' },
      },
    },
    {
      name: 'acrn_disk_bytes_total',
      help: 'Bytes the guest read and wrote.',
      counters: { readBytes: { op: 'read' }, writeBytes: { op: 'write' } },
    },
    { name: 'acrn_disk_errors_total', help: 'Requests of the guest that failed.', counters: { errors: {} } },
  ],
  net: [
    {
      name: 'acrn_net_frames_total',
      help: 'Frames the guest sent (tx) and got (rx).',
      counters: { rxFrames: { direction: 'rx' }, txFrames: { direction: 'tx' } },
    },
    {
      name: 'acrn_net_bytes_total',
      help: 'Bytes of these frames.',
      counters: { rxBytes: { direction: 'rx' }, txBytes: { direction: 'tx' } },
    },
    {
      name: 'acrn_net_drops_total',
      help: 'Frames that were lost here.',
      counters: { rxDrops: { direction: 'rx' }, txDrops: { direction: 'tx' } },
    },
  ],
  console: [
    {
      name: 'acrn_console_bytes_total',
      help: 'Bytes the guest wrote (out) and read (in).',
      counters: { outBytes: { direction: 'out' }, inBytes: { direction: 'in' } },
    },
  ],
  accesses: [
    {
      name: 'acrn_io_requests_total',
      help: 'Accesses of the guest that the device model answered.',
      counters: {
        pioReads: { type: 'pio', op: 'read' },
        pioWrites: { type: 'pio', op: 'write' },
        mmioReads: { type: 'mmio', op: 'read' },
        mmioWrites: { type: 'mmio', op: 'write' },
        pciReads: { type: 'pci', op: 'read' },
        pciWrites: { type: 'pci', op: 'write' },
        unknown: { type: 'unknown', op: 'unknown' },
      },
    },
  ],
};

function deviceMetrics(all: readonly Counters[]): Metric[] {
  return (Object.keys(deviceMetricTable) as CounterKind[]).flatMap((kind) => {
    const ofKind = all.filter((counters) => counters.kind === kind);
    if (ofKind.length === 0) return [];
    return (deviceMetricTable[kind] as readonly MetricOf<CounterKind>[]).map(({ name, help, counters }) => ({
      name,
      type: 'counter' as const,
      help,
      samples: ofKind.flatMap((each) => samplesOf(each, counters)),
    }));
  });
}

function samplesOf(counters: Counters, wanted: Readonly<Record<string, Labels>>): Metric['samples'] {
  const values: Readonly<Record<string, number>> = counters.values();
  const idLabel = idLabels[counters.kind];
  return Object.entries(wanted).map(([counter, labels]) => ({
    labels: { ...(idLabel === undefined ? {} : { [idLabel]: counters.id }), ...labels },
    value: values[counter] ?? 0,
  }));
}

function textOf({ name, type, help, samples }: Metric): string {
  const lines = samples.map(({ suffix = '', labels = {}, value }) => {
    const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escaped(text)}"`);
    return `${name}${suffix}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}`;
  });
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...lines].join('\n');
}

/** As the format's label values are written. */
function escaped(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}
