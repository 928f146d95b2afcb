/** A VM's display and what shows it: loaded only for a VM that has one. */
import type { FrontDoor } from '../control/front-doors.ts';
import type { VmConfig } from '../devicemodel/core/config.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { Display } from '../devicemodel/hw/display/display.ts';
import type { WindowClaim } from '../devicemodel/hw/display/sdl/window-claim.ts';

export interface ShownDisplay {
  readonly display: Display;
  /** Let viewers in, or open the window. @throws ConfigError, HostError */
  open(): Promise<FrontDoor>;
}

/** @param claim of the process. @returns undefined where nobody is to look. */
export async function makeDisplay(vm: VmConfig, log: Log, claim: WindowClaim): Promise<ShownDisplay | undefined> {
  const config = vm.display;
  if (config === undefined || config.kind === 'none') return undefined;
  const { Display } = await import('../devicemodel/hw/display/display.ts');
  const display = new Display();
  const { name, socketGroup } = vm;
  return {
    display,
    open: async () => {
      if (config.kind === 'sdl') {
        const { SdlFrontEnd } = await import('../devicemodel/hw/display/sdl/window.ts');
        const window = new SdlFrontEnd({ display, name, claim, log });
        await window.start();
        return window;
      }
      const { VncServer } = await import('../devicemodel/hw/display/vnc/server.ts');
      const server = new VncServer({ config, display, name, socketGroup, log });
      await server.start();
      return server;
    },
  };
}
