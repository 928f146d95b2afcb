/** Eventfds that KVM serves for a VM. */
import type { KvmVm } from '../../devicemodel/core/host/kvm.ts';
import type { EngineEventfds, Irqfd } from '../embedded/cpu-engine.ts';

/** Who connects eventfds with messages. */
export interface MessageRoutes {
  /** @returns for each 0 or an errno. */
  attach(wanted: readonly Irqfd[]): readonly number[];
  detach(fd: number): void;
}

interface Parts {
  readonly vm: Pick<KvmVm, 'ioeventfd'>;
  readonly routes: MessageRoutes;
}

/** @param need the VM, or an exception. @param present the VM, if it is still there. */
export function vmEventfds(need: () => Parts, present: () => Parts | undefined): EngineEventfds {
  return {
    ioeventfd: ({ fd, address, sizeBytes, dataMatch, space }, assign) => {
      const of = { fd, address, sizeBytes, isPort: space === 'pio', ...(dataMatch === undefined ? {} : { dataMatch }) };
      return Math.max(0, -need().vm.ioeventfd(of, assign));
    },
    irqfds: (wanted) =>
      need()
        .routes.attach(wanted)
        .map((errno, i) => {
          const fd = wanted[i]?.fd ?? -1;
          return errno === 0 ? { dispose: () => present()?.routes.detach(fd) } : errno;
        }),
  };
}
