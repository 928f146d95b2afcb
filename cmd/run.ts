/** Run one User VM to its end, or wait for the API to bring one, with the signals of the process. */
import type { VmConfig } from '../devicemodel/core/config.ts';
import type { ExitCode } from '../devicemodel/core/errors.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { ServeOrder, VmOrder } from './cli.ts';
import { ProcessVmm, type VmmOptions } from './vmm.ts';

let running: ProcessVmm | undefined;

/** Something unforeseen was thrown: pause and destroy the VM at once, without waiting for anything. Safe at any time. */
export function abandonVm(): void {
  running?.abandon();
  running = undefined;
}

/** What of a VM's options is about the process. */
type ProcessOptions = Pick<VmConfig, 'apiSocket' | 'eventMonitor' | 'socketGroup' | 'afterEnd'>;

/**
 * @param check what a start looks at before it asks for a VM; for those that the API describes.
 * @returns the process's exit status. @throws DmError if the VM cannot start or has to be given up.
 */
export function runVm(config: VmConfig, log: Log, check: (order: VmOrder) => Promise<void>): Promise<ExitCode> {
  return newVmm(config, log, check).runVm(config);
}

/** Without a VM: `vm.create` and `vm.boot` bring one. */
export function serveApi(
  { options, argv }: Pick<ServeOrder, 'options' | 'argv'>,
  log: Log,
  check: (order: VmOrder) => Promise<void>,
): Promise<ExitCode> {
  return newVmm(options, log, check, argv).serve();
}

/** @param defaults words of the command line that count for VMs of the API, too. */
function newVmm(
  options: ProcessOptions,
  log: Log,
  check: (order: VmOrder) => Promise<void>,
  defaults: readonly string[] = [],
): ProcessVmm {
  const { apiSocket, eventMonitor, socketGroup, afterEnd } = options;
  const checkedVm: VmmOptions['checkedVm'] = async (body) => {
    const { orderOfChVm } = await import('./cloud-hypervisor.ts');
    const { order, config } = orderOfChVm(body, defaults);
    // These are the process's own, and in use: by it.
    const { apiSocket: _api, eventMonitor: _events, ...vm } = order.config;
    await check({ ...order, config: vm });
    return { vm, ch: config };
  };
  const createSchema = async () => (await import('../config/cloud-hypervisor.ts')).createSchema;
  const disks = async () => {
    const { addedDiskSchema: schema, mediumOf } = await import('../config/cloud-hypervisor.ts');
    return { schema, mediumOf };
  };
  running = new ProcessVmm({ log, apiSocket, eventMonitor, socketGroup, afterEnd, createSchema, disks, checkedVm });
  return running;
}
