/**
 * PCI serial port, ids of a MosChip MCS9900. `vuart_idx:N` is emulated by the hypervisor and connects two VMs; every
 * other option is a back end of this process behind a 16550 in an I/O BAR.
 */
import * as v from 'valibot';
import { Ns16550, UART_REGISTER_COUNT } from '../../chips/ns16550.ts';
import type { BarIndex, BarSpec } from '../../chips/pci-config-space.ts';
import type { AccessSize } from '../../core/address.ts';
import { ConfigError } from '../../core/errors.ts';
import type { HvVdev } from '../../core/hsm/vdev.ts';
import { optionsFromText } from '../../core/options.ts';
import { charBackendClaims } from '../uart/backends/claims.ts';
import { inspectCharBackend } from '../uart/backends/inspect.ts';
import { parseCharBackend } from '../uart/backends/spec.ts';
import { definePciDriver, type PciEnv } from './driver.ts';
import type { EmulatedPciFunction, HypervisorPciFunction, PciIdentity, PciPlacement } from './function.ts';

const Id = { vendorId: 0x9710, deviceId: 0x9900 };
/** Simple communications, serial. */
const CLASS_SERIAL = 0x070000;
const VUART_PREFIX = 'vuart_idx';
const MAX_VUART_INDEX = 0xffff;

export const PciUartOptions = v.strictObject({
  backend: v.optional(
    v.pipe(
      v.string(),
      v.rawCheck(({ dataset, addIssue }) => {
        const complaint = dataset.typed ? complaintAbout(dataset.value) : undefined;
        if (complaint !== undefined) addIssue({ message: complaint });
      }),
      v.metadata({
        arg: 'vuart_idx:N|stdio|pty|tcp:PORT|TTY',
        help: 'vuart_idx:N: vUART N of this VM in the hypervisor; else what the port is connected to',
      }),
    ),
  ),
});

function vuartIndexOf(text: string): number | undefined {
  const match = /^vuart_idx:(\d{1,5})$/.exec(text);
  const index = match === null ? Number.NaN : Number(match[1]);
  return index <= MAX_VUART_INDEX ? index : undefined;
}

/** A mistyped vUART must not end as the name of a terminal. */
function complaintAbout(text: string): string | undefined {
  if (text.startsWith(VUART_PREFIX)) {
    if (vuartIndexOf(text) !== undefined) return undefined;
    return `must be vuart_idx:N, N from 0 to ${MAX_VUART_INDEX}, got "${text}"`;
  }
  try {
    parseCharBackend(text);
    return undefined;
  } catch (error) {
    return (error as Error).message;
  }
}

class HypervisorUart implements HypervisorPciFunction {
  readonly backing = 'hypervisor';
  /** The hypervisor answers for the whole function. Compat: the copy here has no ids, as in the C device model. */
  readonly identity: PciIdentity = { vendorId: 0, deviceId: 0, classCode: 0 };
  readonly bars: readonly BarSpec[] = [
    { index: 0, kind: 'mem32', sizeBytes: 256 },
    { index: 1, kind: 'mem32', sizeBytes: 4096 },
  ];
  readonly #index: number;

  constructor(index: number) {
    this.#index = index;
  }

  /** Compat: what the hypervisor passes on is read as 0xff, not all ones. */
  readBar(): number {
    return 0xff;
  }

  describe(at: PciPlacement): HvVdev {
    return {
      type: 'vuart',
      bdf: at.bdf,
      registersBar: at.barAddress(0),
      msixBar: at.barAddress(1),
      vuartIndex: this.#index,
    };
  }
}

class PciUart implements EmulatedPciFunction {
  readonly backing = 'device-model';
  readonly identity: PciIdentity = { ...Id, classCode: CLASS_SERIAL };
  readonly bars: readonly BarSpec[] = [{ index: 0, kind: 'io', sizeBytes: UART_REGISTER_COUNT }];
  readonly #uart: Ns16550;

  constructor(backend: string | undefined, env: PciEnv) {
    this.#uart = new Ns16550({
      irq: env.intx(),
      backend: backend === undefined ? undefined : env.charBackend(backend),
    });
  }

  start(): void | Promise<void> {
    return this.#uart.start();
  }
  stop(): void | Promise<void> {
    return this.#uart.stop();
  }
  reset(): void {
    this.#uart.reset();
  }

  /** Compat: only byte accesses reach the registers; wider reads give 0xff, not all ones. */
  readBar(_index: BarIndex, offset: number, size: AccessSize): number {
    return size === 1 ? this.#uart.read(offset) : 0xff;
  }
  writeBar(_index: BarIndex, offset: number, size: AccessSize, value: number): void {
    if (size === 1) this.#uart.write(offset, 1, value);
  }
}

/** Compat: `uart` is connected to nothing, `uart,` to a terminal without a name, which C does not find. */
function parseText(text: string, isGiven?: boolean): Record<string, unknown> {
  if (text === '' && isGiven === true) {
    throw new ConfigError('the back end behind the comma is empty', {
      hint: 'leave the comma out, or name one: stdio',
    });
  }
  return optionsFromText(PciUartOptions, text);
}

export const pciUart = definePciDriver({
  name: 'uart',
  summary: 'PCI serial port, between VMs (vuart_idx) or to the host',
  options: PciUartOptions,
  parseText,
  claims: ({ backend }) => {
    if (backend === undefined) return [];
    const index = vuartIndexOf(backend);
    if (index === undefined) return charBackendClaims(parseCharBackend(backend));
    return [{ what: `vUART ${index} of this VM`, key: `vuart ${index}` }];
  },
  inspectHost: ({ backend }) => {
    if (backend !== undefined && vuartIndexOf(backend) === undefined) inspectCharBackend(parseCharBackend(backend));
  },
  create(options, env) {
    const text = options.backend === '' ? undefined : options.backend;
    const index = text === undefined ? undefined : vuartIndexOf(text);
    return index === undefined ? new PciUart(text, env) : new HypervisorUart(index);
  },
});
