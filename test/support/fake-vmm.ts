/** The process of a VM as the API sees it, with a guest that notes what is asked of it. */
import { addedDiskSchema, createSchema, mediumOf } from '../../config/cloud-hypervisor.ts';
import type { RunningGuest, Vmm } from '../../control/api/vmm.ts';
import { EventStream } from '../../control/event-stream.ts';
import type { TappableLine } from '../../devicemodel/core/char-backend.ts';
import type { VmConfig } from '../../devicemodel/core/config.ts';
import { CounterBook } from '../../devicemodel/core/counters.ts';
import { LogTail } from '../../devicemodel/core/log-tail.ts';
import { monotonicMs } from '../../devicemodel/core/monotonic.ts';
import type { VmState } from '../../devicemodel/core/vm-events.ts';
import { fakeTarget } from './fake-command-target.ts';

export class FakeVmm implements Vmm {
  readonly version = '1.2.3';
  readonly events = new EventStream();
  readonly counters = new CounterBook();
  readonly logTail = new LogTail();
  readonly log: Vmm['log'] = {
    tail: this.logTail,
    levels: [{ sink: 'console', level: 4 }],
    setLevel: (level, sink) => {
      this.calls.push(`log level ${level} of ${sink ?? 'all'}`);
      return sink !== 'kmsg';
    },
  };
  readonly calls: string[] = [];
  config: Vmm['config'] = { payload: { kernel: 'k' } };
  hasRun = false;
  crash: Vmm['crash'];
  isBooted = true;
  state: VmState = 'running';
  /** What was typed on com1, and who listens to it. */
  typed = '';
  room = 1000;
  readonly listeners = new Set<(data: Uint8Array) => void>();
  readonly #addedIds = new Map<string, string>();
  readonly #target = fakeTarget({ blkrescan: (medium) => medium.startsWith('0:4:0,') && this.asked.length === 1 });

  get guest(): RunningGuest | undefined {
    if (!this.isBooted) return undefined;
    const blk = (device: number, path: string) => ({
      bdf: { bus: 0, device, function: 0 },
      driver: 'virtio-blk',
      options: { path },
      text: path,
    });
    const config = {
      name: 'vm1',
      memoryBytes: 1 << 28,
      pci: [
        blk(3, 'disk.img'),
        blk(4, ''),
        { bdf: { bus: 0, device: 5, function: 0 }, driver: 'ahci-cd', options: { ports: [{ drive: 'cd' }] }, text: '' },
      ],
    } as unknown as VmConfig;
    return {
      config,
      hypervisor: 'soft',
      state: this.state,
      commands: this.#target.commands,
      lines: [this.line],
      counters: this.counters,
      launchedMs: monotonicMs(),
      addedIds: this.#addedIds,
    };
  }

  get asked(): readonly string[] {
    return this.#target.calls;
  }

  readonly line: TappableLine = {
    id: 'com1',
    backend: 'pty /dev/pts/7',
    history: () => Buffer.from('login: '),
    tap: (listener) => {
      this.listeners.add(listener);
      return {
        type: (data) => {
          const taken = data.subarray(0, this.room);
          this.room -= taken.length;
          this.typed += Buffer.from(taken).toString();
          return taken.length;
        },
        detach: () => void this.listeners.delete(listener),
      };
    },
  };

  async disks() {
    return { schema: addedDiskSchema, mediumOf };
  }
  async createSchema() {
    return createSchema;
  }
  async create(config: unknown): Promise<void> {
    this.calls.push('create');
    this.config = config as Vmm['config'];
  }
  async boot(): Promise<void> {
    this.calls.push('boot');
    this.isBooted = true;
  }
  async remove(): Promise<void> {
    this.calls.push('remove');
    this.config = undefined;
    this.isBooted = false;
  }
  quit(): void {
    this.calls.push('quit');
  }
}
