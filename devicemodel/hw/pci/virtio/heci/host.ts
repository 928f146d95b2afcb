/** The management engine interfaces of the host, as sysfs shows them (Documentation/ABI/testing/sysfs-bus-mei). */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { HostError } from '../../../../core/errors.ts';
import { formatHostAddress, parseHostAddress } from '../../passthru/address.ts';

const FW_STATUS_WORDS = 6;
const DEFAULT_MAX_MESSAGE_BYTES = 512;
/** More than any engine takes: what a connection may keep of one message. */
const MAX_MESSAGE_BYTES = 64 * 1024;

/** A service of the engine that guests may use beside the host. */
export interface EngineClient {
  /** In the byte order of the engine. */
  readonly uuid: Uint8Array;
  readonly version: number;
  readonly maxConnections: number;
  /** It is always connected. */
  readonly isFixed: boolean;
  readonly maxMessageBytes: number;
}

/** One of them: `mei0`. */
export class EngineInterface {
  readonly path: string;
  readonly #folder: string;

  /** @param address of its PCI function; without one, or with one that has none, the first is taken. */
  constructor(root: string, address: string | undefined) {
    const name = (address === undefined ? undefined : nameAt(root, address)) ?? 'mei0';
    this.path = join('/', root, 'dev', name);
    this.#folder = join('/', root, 'sys/class/mei', name);
  }

  /** @throws HostError if there is no such interface. */
  clients(): EngineClient[] {
    const device = join(this.#folder, 'device');
    let names: string[];
    try {
      names = readdirSync(device);
    } catch (error) {
      const { errno = 0, code } = error as NodeJS.ErrnoException;
      throw new HostError(`${device}: ${code}: this host has no management engine interface there`, Math.abs(errno), {
        hint: 'its kernel driver is mei_me: "modprobe mei_me", and see dmesg',
      });
    }
    return names
      .filter((name) => name.startsWith('mei::'))
      .sort()
      .flatMap((name) => clientAt(join(device, name)) ?? []);
  }

  get isEnabled(): boolean {
    return textOf(join(this.#folder, 'dev_state'))?.startsWith('ENABLED') === true;
  }

  firmwareStatus(): readonly number[] {
    const words = textOf(join(this.#folder, 'fw_status'))?.split(/\s+/) ?? [];
    return Array.from({ length: FW_STATUS_WORDS }, (_, i) => Number.parseInt(words[i] ?? '', 16) >>> 0);
  }
}

/** @returns undefined for one that is the host's alone. */
function clientAt(folder: string): EngineClient | undefined {
  const number = (name: string, otherwise: number) => {
    const text = textOf(join(folder, name));
    return text !== undefined && /^\d{1,9}$/.test(text) ? Number(text) : otherwise;
  };
  const uuid = uuidBytes(textOf(join(folder, 'uuid')) ?? '');
  const version = number('version', Number.NaN);
  if (number('vtag', 0) === 0 || uuid === undefined || Number.isNaN(version)) return undefined;
  return {
    uuid,
    version: version & 0xff,
    isFixed: number('fixed', 0) !== 0,
    maxMessageBytes: Math.min(number('max_len', DEFAULT_MAX_MESSAGE_BYTES), MAX_MESSAGE_BYTES),
    maxConnections: number('max_conn', 1) & 0xff,
  };
}

/** The first three groups are little endian numbers. */
export function uuidBytes(text: string): Uint8Array | undefined {
  if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/i.test(text)) return undefined;
  const bytes = Buffer.from(text.replaceAll('-', ''), 'hex');
  bytes.subarray(0, 4).reverse();
  bytes.subarray(4, 6).reverse();
  bytes.subarray(6, 8).reverse();
  return bytes;
}

function nameAt(root: string, address: string): string | undefined {
  try {
    const at = formatHostAddress(parseHostAddress(address));
    const names = readdirSync(join('/', root, 'sys/bus/pci/drivers/mei_me', at, 'mei'));
    return names.length === 1 ? names[0] : undefined;
  } catch {
    return undefined;
  }
}

function textOf(path: string): string | undefined {
  try {
    return readFileSync(path, 'latin1').trim();
  } catch {
    return undefined;
  }
}
