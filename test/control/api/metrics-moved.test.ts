/** Every figure the program can tell is moved by a real guest: in which script, and by which check of it. */
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { expect, test } from 'vitest';
import { metricsOf } from '../../../control/api/metrics.ts';
import { ThreadLag } from '../../../control/api/thread-lag.ts';
import { type CounterKind, countersOf } from '../../../devicemodel/core/counters.ts';
import { FakeVmm } from '../../support/fake-vmm.ts';

const root = fileURLToPath(new URL('../../..', import.meta.url));

/** Debian on the software CPU, beside /proc, the tap and strace. At its end it asks by itself whether all it saw has moved. */
const counters = 'test/soft/counters.sh';
const disk = (op: string) => String.raw`acrn_disk_ops_total{$disk,op=\"${op}\"}`;
const net = (what: string, direction: string) => `acrn_net_${what}_total{$net,direction=\\"${direction}\\"}`;

/** Labels that name one of several devices are left out. */
const movedBy: Readonly<Record<string, readonly [script: string, check: string]>> = {
  acrn_vm_info: [counters, '"the guest is there"'],
  'acrn_vm_state{state=created}': [counters, 'state_of created'],
  'acrn_vm_state{state=running}': [counters, 'state running'],
  'acrn_vm_state{state=paused}': [counters, 'state paused'],
  'acrn_vm_state{state=suspended}': [counters, 'state suspended'],
  'acrn_vm_state{state=ended}': [counters, 'state ended'],
  acrn_vm_uptime_seconds: [counters, 'value acrn_vm_uptime_seconds'],
  acrn_guest_memory_bytes: [counters, 'counted acrn_guest_memory_bytes'],
  'acrn_disk_ops_total{op=read}': [counters, disk('read')],
  'acrn_disk_ops_total{op=write}': ['test/guest/virtio.sh', 'writes, of which Linux has'],
  'acrn_disk_ops_total{op=flush}': [counters, disk('flush')],
  'acrn_disk_ops_total{op=discard}': ['test/guest/virtio.sh', 'there were flushes and discards'],
  'acrn_disk_bytes_total{op=read}': [counters, String.raw`acrn_disk_bytes_total{$disk,op=\"read\"}`],
  'acrn_disk_bytes_total{op=write}': [counters, String.raw`acrn_disk_bytes_total{$disk,op=\"write\"}`],
  acrn_disk_errors_total: [counters, `counted 'acrn_disk_errors_total{device="00:06.0"}' "$failed"`],
  'acrn_net_frames_total{direction=rx}': [counters, net('frames', 'rx')],
  'acrn_net_frames_total{direction=tx}': [counters, net('frames', 'tx')],
  'acrn_net_bytes_total{direction=rx}': [counters, net('bytes', 'rx')],
  'acrn_net_bytes_total{direction=tx}': [counters, net('bytes', 'tx')],
  'acrn_net_drops_total{direction=rx}': [counters, `moved "${net('drops', 'rx')}"`],
  'acrn_net_drops_total{direction=tx}': [counters, `moved "${net('drops', 'tx')}"`],
  'acrn_console_bytes_total{direction=out}': [counters, 'port-0",direction="out"}\' 5036'],
  'acrn_console_bytes_total{direction=in}': [counters, 'port-0",direction="in"}\' 100'],
  'acrn_io_requests_total{type=pio,op=read}': [counters, 'for type in pio mmio pci'],
  'acrn_io_requests_total{type=pio,op=write}': [counters, 'for type in pio mmio pci'],
  'acrn_io_requests_total{type=mmio,op=read}': [counters, 'for type in pio mmio pci'],
  'acrn_io_requests_total{type=mmio,op=write}': [counters, 'for type in pio mmio pci'],
  'acrn_io_requests_total{type=pci,op=read}': [counters, 'for type in pio mmio pci'],
  'acrn_io_requests_total{type=pci,op=write}': [counters, 'for type in pio mmio pci'],
  // Of a kind that no hypervisor here makes of what a guest does: requests by hand.
  'acrn_io_requests_total{type=unknown,op=unknown}': ['test/hostile/requests.test.ts', 'AccessCount.unknown'],
  acrn_device_thread_lag_seconds_bucket: [counters, 'one look that was late'],
  acrn_device_thread_lag_seconds_sum: [counters, 'they are in the sum'],
  acrn_device_thread_lag_seconds_count: [counters, 'four times a second'],
  process_resident_memory_bytes: [counters, 'value process_resident_memory_bytes'],
  process_cpu_seconds_total: [counters, 'value process_cpu_seconds_total'],
  acrn_events_total: [counters, 'moved acrn_events_total'],
};

/** One of each kind of device. */
function everyFigure(): string[] {
  const vmm = new FakeVmm();
  for (const kind of Object.keys(countersOf) as CounterKind[]) vmm.counters.of(kind, 'one');
  const lag = new ThreadLag();
  const all = metricsOf(vmm, lag.ask()).flatMap(({ name, samples }) =>
    samples.map(({ suffix = '', labels = {} }) => {
      const telling = Object.entries(labels).filter(
        ([key]) => !['device', 'console', 'name', 'hypervisor', 'version', 'le'].includes(key),
      );
      const text = telling.map(([key, value]) => `${key}=${value}`).join(',');
      return `${name}${suffix}${text === '' ? '' : `{${text}}`}`;
    }),
  );
  lag.close();
  return [...new Set(all)];
}

test('there is a row for each of them, and for no other', () => {
  expect(everyFigure().sort()).toEqual(Object.keys(movedBy).sort());
});

test.each(Object.entries(movedBy))('%s is moved', (_, [script, check]) => {
  expect(readFileSync(`${root}/${script}`, 'utf8')).toContain(check);
});
