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
    const eventfd = this.#eventfd;
    this.#unwatch = watchFd(eventfd.fd, () => {
      eventfd.take();
      ring.drain((event) => this.#events.emit('event', event));
    });
    return true;
  }

  /** Only after the VM is destroyed: until then the hypervisor may write to the page. Safe twice, and without start. */
  stop(): void {
    this.#unwatch?.();
    this.#unwatch = undefined;
    this.#eventfd?.dispose();
    this.#eventfd = undefined;
    this.#page?.dispose();
    this.#page = undefined;
  }
}
