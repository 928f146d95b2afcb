/**
 * The text after `-l comN,` and `-s SLOT,uart,`: what a serial device is connected to. Parsing touches nothing on the
 * host, so that --dry-run can check and describe it anywhere.
 */
import { isIP, isIPv6 } from 'node:net';
import { ConfigError } from '../../../core/errors.ts';
import { checkSocketPath } from '../../../core/host/socket-path.ts';

export type CharBackendSpec =
  | { readonly kind: 'null' }
  /** `translateOutput`: leave the terminal's newline translation on (virtio-console). */
  | { readonly kind: 'stdio'; readonly translateOutput?: boolean }
  /** A fresh pseudo terminal, optionally with a symbolic link to its slave. */
  | { readonly kind: 'pty'; readonly linkPath: string | undefined }
  /** An existing terminal device. */
  | { readonly kind: 'tty'; readonly path: string; readonly translateOutput?: boolean }
  /** Listens; port 0 lets the system choose. */
  | { readonly kind: 'tcp'; readonly address: string; readonly port: number }
  | { readonly kind: 'unix'; readonly path: string; readonly role: 'server' | 'client' }
  /** Output only, appended. */
  | { readonly kind: 'file'; readonly path: string };

/** Compat: the C device model listens on every interface; an unauthenticated console belongs on none but this one. */
const LOOPBACK = '127.0.0.1';

export const CHAR_BACKEND_USAGE = 'stdio, null, pty[:LINK], /dev/TTY, tcp:[ADDRESS:]PORT, unix:PATH or file:PATH';

function fail(text: string, why: string): never {
  throw new ConfigError(`back end "${text}": ${why}`, { hint: `use one of ${CHAR_BACKEND_USAGE}` });
}

function parseTcp(text: string, rest: string): CharBackendSpec {
  const colon = rest.lastIndexOf(':');
  const portText = rest.slice(colon + 1);
  const addressText = colon < 0 ? LOOPBACK : rest.slice(0, colon);
  const address = addressText.startsWith('[') && addressText.endsWith(']') ? addressText.slice(1, -1) : addressText;
  const port = /^\d{1,5}$/.test(portText) ? Number(portText) : Number.NaN;
  if (!(port <= 65535)) fail(text, `port must be 0 to 65535 in decimal, got "${portText}"`);
  if (address !== 'localhost' && isIP(address) === 0) fail(text, `"${address}" is not an IP address`);
  if (isIPv6(address) && address === addressText) fail(text, `write an IPv6 address as [${address}]`);
  return { kind: 'tcp', address, port };
}

/**
 * Grammar of the C device model (`stdio`, `tcp:PORT`, a TTY path) and ours. No text (undefined or empty) connects
 * nothing: the device is there, output is dropped.
 * @throws ConfigError
 */
export function parseCharBackend(text: string | undefined): CharBackendSpec {
  if (text === undefined || text === '' || text === 'null') return { kind: 'null' };
  if (text === 'stdio') return { kind: 'stdio' };
  if (text === 'pty') return { kind: 'pty', linkPath: undefined };
  if (text.startsWith('/') || text.startsWith('./') || text.startsWith('../')) return { kind: 'tty', path: text };
  const colon = text.indexOf(':');
  const kind = colon < 0 ? text : text.slice(0, colon);
  const rest = colon < 0 ? '' : text.slice(colon + 1);
  const path = () => (rest === '' ? fail(text, 'the path is missing') : rest);
  switch (kind) {
    case 'tcp':
      return parseTcp(text, rest);
    case 'pty':
      return { kind: 'pty', linkPath: path() };
    case 'tty':
      return { kind: 'tty', path: path() };
    case 'unix':
      checkSocketPath(path());
      return { kind: 'unix', path: rest, role: 'server' };
    case 'file':
      return { kind: 'file', path: path() };
    default:
      return fail(text, 'unknown');
  }
}

/** One short line for messages and --dry-run, with the defaults filled in. */
export function describeCharBackend(spec: CharBackendSpec): string {
  switch (spec.kind) {
    case 'null':
    case 'stdio':
      return spec.kind;
    case 'pty':
      return spec.linkPath === undefined ? 'pty' : `pty linked as ${spec.linkPath}`;
    case 'tty':
    case 'file':
      return `${spec.kind} ${spec.path}`;
    case 'tcp':
      return `tcp ${isIPv6(spec.address) ? `[${spec.address}]` : spec.address}:${spec.port}`;
    case 'unix':
      return `unix ${spec.path}${spec.role === 'client' ? ' (client)' : ''}`;
  }
}
