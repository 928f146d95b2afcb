/** Which hypervisor runs the VM. Embedded engines are imported only when they are used. */
import type { VmConfig } from '../devicemodel/core/config.ts';
import type { HsmOpener } from '../devicemodel/core/hsm/hsm.ts';
import type { Log } from '../devicemodel/core/log.ts';
import { findHsmNode, openAcrnHsm } from './acrn/acrn-hsm.ts';

/**
 * `auto` takes ACRN when its device node exists, else the software engine, saying so in one line.
 * A hypervisor on /dev/kvm would be chosen here, between the two.
 */
export function chooseHsm(config: VmConfig, log: Log): { readonly backend: 'acrn' | 'soft'; readonly open: HsmOpener } {
  const node = config.hypervisor === 'auto' ? findHsmNode() : undefined;
  const backend = config.hypervisor === 'auto' ? (node === undefined ? 'soft' : 'acrn') : config.hypervisor;
  if (backend === 'acrn') return { backend, open: async () => openAcrnHsm() };
  if (config.hypervisor === 'auto') log.notice('no ACRN on this machine: using the embedded software hypervisor');
  return {
    backend,
    open: async () => {
      const { openSoftHsm } = await import('./soft/index.ts');
      return openSoftHsm({ config, log });
    },
  };
}
