/** What shows a VM's display: loaded only for a VM that has one. */
import type { FrontDoor } from '../control/front-doors.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { Display } from '../devicemodel/hw/display/display.ts';

/** @returns undefined where nobody is to look. */
export async function makeDisplay({ display }: VmConfig): Promise<Display | undefined> {
  if (display === undefined || display.kind === 'none') return undefined;
  const { Display } = await import('../devicemodel/hw/display/display.ts');
  return new Display();
}

/** @throws ConfigError, HostError */
export async function openDisplay(config: VmConfig, display: Display, log: Log): Promise<FrontDoor> {
  if (config.display?.kind !== 'vnc') throw new Error('there is no other display');
  const { VncServer } = await import('../devicemodel/hw/display/vnc/server.ts');
  const { name, socketGroup } = config;
  const server = new VncServer({ config: config.display, display, name, socketGroup, log: log.child('display') });
  await server.start();
  return server;
}
