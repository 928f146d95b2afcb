/** The hypervisor's end of VM events: the ring's page, the eventfd that announces elements, and their registration. */
import { Eventfd } from './host/eventfd.ts';
import { watchFd } from './host/fd-watch.ts';
import { type Mapping, map } from './host/mapping.ts';
import type { VmEventAbility } from './hsm/hsm.ts';
import type { Log } from './log.ts';
import { EVENT_PAGE_BYTES, VmEventRing, type VmEventSink } from './vm-events.ts';

export class VmEventSource {
  readonly #log: Log;
  readonly #events: VmEventSink;
  #page: Mapping | undefined;
  #eventfd: Eventfd | undefined;
  #unwatch: (() => void) | undefined;
  #ring: VmEventRing | undefined;

  constructor(options: { readonly log: Log; readonly events: VmEventSink }) {
    this.#log = options.log;
    this.#events = options.events;
  }

  /**
   * Register with the hypervisor. Called once the VM exists and before it starts.
   * @returns false when the kernel has no such interface: the VM runs without events.
   * @throws HostError when the page or the descriptor cannot be had.
   */
  start(ability: VmEventAbility): boolean {
    this.#page = map(EVENT_PAGE_BYTES, 'vm event ring');
    this.#eventfd = new Eventfd();
    const ring = new VmEventRing(this.#page.bytes, this.#log);
    if (!ability.setup(this.#page.address, this.#eventfd.fd)) {
      this.stop();
      return false;
    }
    this.#ring = ring;
    this.#unwatch = watchFd(this.#eventfd.fd, () => this.poll());
    return true;
  }

  /** Hand on what has come: it may be announced and not heard of yet. */
  poll(): void {
    this.#eventfd?.take();
    this.#ring?.drain((event) => this.#events.emit('event', event));
  }

  /** Only after the VM is destroyed: until then the hypervisor may write to the page. Safe twice, and without start. */
  stop(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#ring = undefined;
    this.#eventfd?.dispose();
    this.#eventfd = undefined;
    this.#page?.dispose();
    this.#page = undefined;
  }
}
