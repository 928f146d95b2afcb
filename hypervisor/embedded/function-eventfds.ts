/** What an engine can do for the eventfds of the hypervisor's functions. */
import type { EngineEventfds } from './cpu-engine.ts';
import type { EventfdHost } from './eventfd-host.ts';
import type { FunctionEventfds } from './virtual-function.ts';

export function functionEventfds(engine: EngineEventfds, host: EventfdHost): FunctionEventfds {
  return {
    ring: (address, value, fd) => {
      const spec = { fd, address, space: 'mmio', sizeBytes: 4, dataMatch: BigInt(value) } as const;
      return engine.ioeventfd(spec, true) === 0 ? { dispose: () => void engine.ioeventfd(spec, false) } : undefined;
    },
    interrupts: (wanted) => engine.irqfds(wanted).map((irqfd) => (typeof irqfd === 'number' ? undefined : irqfd)),
    watch: (fd, onSignal) => host.watch(fd, onSignal),
  };
}
