/**
 * `managed`: from its driver to pci-stub, and back to where it was. Linux Documentation/ABI/testing/sysfs-bus-pci:
 * driver_override says which driver may have a function, unbind and drivers_probe change it.
 */
import { constants, existsSync, readFileSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { HostError } from '../../../core/errors.ts';
import { formatHostAddress } from './address.ts';
import type { HostFunction } from './host-function.ts';

/** Drivers that hold a function without using it. */
export const STUB_DRIVERS: readonly string[] = ['pci-stub', 'vfio-pci'];
const STUB = 'pci-stub';

export class Managed {
  readonly #fn: HostFunction;
  /** What to put back, once taken. */
  #before: { readonly driver: string | undefined; readonly override: string } | undefined;

  constructor(fn: HostFunction) {
    this.#fn = fn;
  }

  /** @throws HostError; what was done is undone. */
  async take(): Promise<void> {
    const { driver } = this.#fn;
    if (driver !== undefined && STUB_DRIVERS.includes(driver)) return;
    if (!existsSync(join(this.#bus, 'drivers', STUB))) {
      throw new HostError(`managed: the kernel has no driver ${STUB}`, 0, {
        hint: `load it with: modprobe ${STUB}`,
      });
    }
    this.#before = { driver, override: this.#readOverride() };
    try {
      await this.#write(join(this.#fn.path, 'driver_override'), STUB);
      await this.#move(driver, STUB);
    } catch (error) {
      await this.giveBack().catch(() => {});
      throw new HostError(`managed: ${this.#fn.name} is not bound to ${STUB}: ${(error as Error).message}`, 0);
    }
  }

  /** Back to its driver. Safe twice, and without `take`. @throws HostError */
  async giveBack(): Promise<void> {
    const before = this.#before;
    this.#before = undefined;
    if (before === undefined) return;
    try {
      // An empty line takes an override away.
      await this.#write(join(this.#fn.path, 'driver_override'), before.override === '' ? '\n' : before.override);
      await this.#move(this.#fn.driver, before.driver);
    } catch (error) {
      const where = before.driver === undefined ? 'freed' : `bound to ${before.driver} again`;
      throw new HostError(`managed: ${this.#fn.name} is not ${where}: ${(error as Error).message}`, 0);
    }
  }

  /** The directory of the bus: `…/bus/pci`. */
  get #bus(): string {
    return dirname(dirname(this.#fn.path));
  }

  async #move(from: string | undefined, to: string | undefined): Promise<void> {
    const name = formatHostAddress(this.#fn.address);
    if (from !== undefined) await this.#write(join(this.#bus, 'drivers', from, 'unbind'), name);
    if (to !== undefined) await this.#write(join(this.#bus, 'drivers', to, 'bind'), name);
  }

  #readOverride(): string {
    try {
      const text = readFileSync(join(this.#fn.path, 'driver_override'), 'latin1').trim();
      return text === '(null)' ? '' : text;
    } catch {
      return '';
    }
  }

  /** Files of sysfs exist or do not, and many may only be written. */
  async #write(path: string, text: string): Promise<void> {
    const file = await open(path, constants.O_WRONLY);
    try {
      await file.write(text);
    } finally {
      await file.close();
    }
  }
}
