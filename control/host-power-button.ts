/**
 * The power button of this machine, which presses the VM's own: the Service VM has its key to itself then, and whoever
 * presses it means the guests (C: arch/x86/power_button.c). Several VMs may listen to one button.
 */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { Evdev, type InputEvent, type InputSource } from '../devicemodel/core/host/evdev.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { FrontDoor } from './front-doors.ts';
import type { VmCommands } from './vm-commands.ts';

/** <linux/input-event-codes.h> */
const EV_KEY = 1;
const KEY_POWER = 116;
const PRESSED = 1;

/** The fixed button before the one of the control method. */
const BUTTONS = ['LNXPWRBN:00', 'PNP0C0C:00'] as const;

export interface HostButtonParts {
  readonly commands: Pick<VmCommands, 'run'>;
  readonly log: Log;
  /** Other folders and devices, for tests. */
  readonly drivers?: string;
  readonly open?: (event: string) => InputSource;
}

export class HostPowerButton implements FrontDoor {
  readonly #source: InputSource | undefined;
  readonly #stopWatching: (() => void) | undefined;

  /** Without a button, or where it cannot be opened, that is one line: the VM has its other ways to be told. */
  constructor({ commands, log, drivers = '/sys/bus/acpi/drivers/button', open = openEvent }: HostButtonParts) {
    const event = BUTTONS.map((button) => eventOf(join(drivers, button, 'input'))).find((name) => name !== undefined);
    if (event === undefined) {
      log.warn('power button: this machine has none to watch; the guest is told by API, acrnctl and signals alone');
      return;
    }
    try {
      this.#source = open(event);
      this.#stopWatching = this.#source.watch(() => this.#hear(commands, log));
    } catch (error) {
      this.close();
      log.warn(`power button: ${(error as Error).message}`);
      return;
    }
    log.info(`power button: watching ${event} of this machine`);
  }

  #hear(commands: Pick<VmCommands, 'run'>, log: Log): void {
    const event: InputEvent = { type: 0, code: 0, value: 0 };
    try {
      while (this.#source?.read(event)) {
        if (event.type === EV_KEY && event.code === KEY_POWER && event.value === PRESSED) {
          commands.run('press-power-button', {});
        }
      }
    } catch (error) {
      this.close();
      log.warn(`power button: ${(error as Error).message}`);
    }
  }

  close(): void {
    this.#stopWatching?.();
    this.#source?.close();
  }
}

const openEvent = (event: string): InputSource => new Evdev(`/dev/input/${event}`, 'shared');

/** `eventN` of the only input device there; undefined without one, or when there are several. */
function eventOf(folder: string): string | undefined {
  const only = (at: string, prefix: string) => {
    const names = readdirSync(at).filter((name) => name.startsWith(prefix));
    return names.length === 1 ? names[0] : undefined;
  };
  try {
    const input = only(folder, 'input');
    return input === undefined ? undefined : only(join(folder, input), 'event');
  } catch {
    return undefined;
  }
}
