/** Figures of a VM and its process in Prometheus' text format. */
import type { Vmm } from './vmm.ts';

interface Metric {
  readonly name: string;
  readonly type: 'gauge' | 'counter';
  readonly help: string;
  readonly samples: readonly { readonly labels?: Readonly<Record<string, string>>; readonly value: number }[];
}

const states = ['created', 'running', 'paused', 'suspended', 'ended'] as const;

export function metricsText(vmm: Vmm): string {
  return `${metricsOf(vmm).map(textOf).join('\n')}\n`;
}

function metricsOf({ guest, version, events }: Vmm): Metric[] {
  const gauge = (name: string, help: string, value: number): Metric => ({
    name,
    type: 'gauge',
    help,
    samples: [{ value }],
  });
  const counter = (name: string, help: string, value: number): Metric => ({
    name,
    type: 'counter',
    help,
    samples: [{ value }],
  });
  const { user, system } = process.cpuUsage();
  const process_ = [
    gauge(
      'process_resident_memory_bytes',
      'Memory of the process, the guest included where it is its own.',
      process.memoryUsage.rss(),
    ),
    counter('process_cpu_seconds_total', 'CPU time of all threads.', (user + system) / 1e6),
    counter('acrn_events_total', 'Events of the VM and its process.', events.seq),
  ];
  if (guest === undefined) return process_;
  const { name, memoryBytes } = guest.config;
  return [
    {
      name: 'acrn_vm_info',
      type: 'gauge',
      help: 'The VM there is.',
      samples: [{ labels: { name, hypervisor: guest.hypervisor, version }, value: 1 }],
    },
    {
      name: 'acrn_vm_state',
      type: 'gauge',
      help: 'One for the state the VM is in.',
      samples: states.map((state) => ({ labels: { state }, value: state === guest.state ? 1 : 0 })),
    },
    gauge('acrn_vm_uptime_seconds', 'Since the VM was launched.', (performance.now() - guest.launchedMs) / 1000),
    gauge('acrn_guest_memory_bytes', 'RAM of the guest.', memoryBytes),
    ...process_,
  ];
}

function textOf({ name, type, help, samples }: Metric): string {
  const lines = samples.map(({ labels = {}, value }) => {
    const pairs = Object.entries(labels).map(([key, text]) => `${key}="${escaped(text)}"`);
    return `${name}${pairs.length === 0 ? '' : `{${pairs.join(',')}}`} ${value}`;
  });
  return [`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`, ...lines].join('\n');
}

/** As the format's label values are written. */
function escaped(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n');
}
