/**
 * The scenario of the embedded hypervisor: which of its devices exist, and for whom. On ACRN this is compiled into the
 * hypervisor; here it is a small file, or nothing at all: then whatever a VM's command line asks for exists.
 *
 *   {
 *     "ivshmem":   [{ "name": "hv:/shm0", "sizeMib": 2, "regionId": 1, "vms": ["vm1", "vm2"] }],
 *     "vuarts":    [{ "vm": "vm1", "index": 1, "peer": { "vm": "vm2", "index": 1 } },
 *                   { "vm": "vm2", "index": 1, "peer": { "vm": "vm1", "index": 1 } }],
 *     "rootPorts": [{ "vm": "vm1", "secondaryBus": 1 }]
 *   }
 *
 * `vms` left out: every VM has the region. `regionId` left out: 0.
 */
import { ConfigError, DmError, ExitCode } from '../../devicemodel/core/errors.ts';
import { readRegularFile } from '../../devicemodel/core/host/read-file.ts';
import { MiB } from '../../devicemodel/core/units.ts';

export interface RegionConfig {
  /** undefined: the size the first VM asks for. */
  readonly sizeBytes: number | undefined;
  /** Subsystem id of the function. */
  readonly regionId: number;
}

export interface VuartAddress {
  readonly vm: string;
  readonly index: number;
}

export interface VuartConfig {
  /** undefined: the first other VM that has a vUART of the same index and no peer yet. */
  readonly peer: VuartAddress | undefined;
}

export interface Scenario {
  region(vm: string, name: string): RegionConfig | undefined;
  vuart(vm: string, index: number): VuartConfig | undefined;
  hasRootPort(vm: string, secondaryBus: number): boolean;
}

/** Everything exists. Index 0 is the console in ACRN's scenarios, never a PCI vUART. */
export const derivedScenario: Scenario = {
  region: () => ({ sizeBytes: undefined, regionId: 0 }),
  vuart: (_vm, index) => (index === 0 ? undefined : { peer: undefined }),
  hasRootPort: () => true,
};

const MAX_VUART_INDEX = 0xffff;

/** @throws ConfigError with the file and the place in it. */
export function readScenario(path: string): Scenario {
  let text: string;
  try {
    text = readRegularFile(path, `--scenario: ${path}`).toString('utf8');
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    throw new ConfigError(error.message, { exitCode: error.exitCode });
  }
  let json: unknown;
  try {
    json = JSON.parse(text);
  } catch (cause) {
    throw new ConfigError(`scenario ${path}: not JSON`, { exitCode: ExitCode.DataError, cause });
  }
  return parseScenario(json, path);
}

/** @param where for messages. @throws ConfigError */
export function parseScenario(json: unknown, where: string): Scenario {
  const root = new Reader(json, where);
  root.only('ivshmem', 'vuarts', 'rootPorts');
  const regions = root.list('ivshmem').map((entry) => {
    entry.only('name', 'sizeMib', 'regionId', 'vms');
    const name = entry.text('name');
    if (!/^hv:\/./.test(name)) entry.fail('name', `must begin with hv:/, got "${name}"`);
    return {
      name,
      sizeBytes: entry.integer('sizeMib', 1, 4095) * MiB,
      regionId: entry.has('regionId') ? entry.integer('regionId', 0, 0xffff) : 0,
      vms: entry.has('vms') ? entry.list('vms').map((vm) => vm.asText()) : undefined,
    };
  });
  const address = (entry: Reader): VuartAddress => ({
    vm: entry.text('vm'),
    index: entry.integer('index', 1, MAX_VUART_INDEX),
  });
  const vuarts = root.list('vuarts').map((entry) => {
    entry.only('vm', 'index', 'peer');
    if (!entry.has('peer')) return { ...address(entry), peer: undefined };
    const peer = entry.at('peer');
    peer.only('vm', 'index');
    return { ...address(entry), peer: address(peer) };
  });
  const rootPorts = root.list('rootPorts').map((entry) => {
    entry.only('vm', 'secondaryBus');
    return { vm: entry.text('vm'), secondaryBus: entry.integer('secondaryBus', 1, 255) };
  });
  return {
    region: (vm, name) => regions.find((r) => r.name === name && (r.vms === undefined || r.vms.includes(vm))),
    vuart: (vm, index) => vuarts.find((u) => u.vm === vm && u.index === index),
    hasRootPort: (vm, secondaryBus) => rootPorts.some((p) => p.vm === vm && p.secondaryBus === secondaryBus),
  };
}

/** A value of the file and its place, for messages. */
class Reader {
  readonly #value: unknown;
  readonly #where: string;

  constructor(value: unknown, where: string) {
    this.#value = value;
    this.#where = where;
  }

  fail(key: string, what: string): never {
    throw new ConfigError(`scenario ${this.#where}: ${key}: ${what}`, { exitCode: ExitCode.DataError });
  }

  get #object(): Record<string, unknown> {
    const value = this.#value;
    if (typeof value !== 'object' || value === null || Array.isArray(value)) {
      throw new ConfigError(`scenario ${this.#where}: must be an object`, { exitCode: ExitCode.DataError });
    }
    return value as Record<string, unknown>;
  }

  has(key: string): boolean {
    return Object.hasOwn(this.#object, key);
  }

  only(...keys: readonly string[]): void {
    for (const key of Object.keys(this.#object)) {
      if (!keys.includes(key)) this.fail(key, `unknown, expected one of ${keys.join(', ')}`);
    }
  }

  at(key: string): Reader {
    return new Reader(this.has(key) ? this.#object[key] : undefined, `${this.#where}: ${key}`);
  }

  /** Missing: empty. */
  list(key: string): Reader[] {
    if (!this.has(key)) return [];
    const value = this.#object[key];
    if (!Array.isArray(value)) return this.fail(key, 'must be a list');
    return value.map((item, i) => new Reader(item, `${this.#where}: ${key}[${i}]`));
  }

  text(key: string): string {
    return this.at(key).asText();
  }

  asText(): string {
    if (typeof this.#value === 'string' && this.#value !== '') return this.#value;
    throw new ConfigError(`scenario ${this.#where}: must be a text`, { exitCode: ExitCode.DataError });
  }

  integer(key: string, min: number, max: number): number {
    const value = this.has(key) ? this.#object[key] : undefined;
    if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
      return this.fail(key, `must be a number from ${min} to ${max}`);
    }
    return value;
  }
}
