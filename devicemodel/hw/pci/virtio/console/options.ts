/** Options of virtio-console: the C device model's grammar. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { charBackendClaims } from '../../../uart/backends/claims.ts';
import { inspectCharBackend } from '../../../uart/backends/inspect.ts';
import type { CharBackendSpec } from '../../../uart/backends/spec.ts';
import { describePciDriver } from '../../driver.ts';
import { transportOption } from '../transport/options.ts';

/** As many as the C device model offers queues for. */
export const MAX_PORTS = 16;

const portSchema = v.strictObject({
  /** `@`: the guest makes it a console (hvc). */
  isConsole: v.boolean(),
  /** May be empty: the guest finds the port by its number then. */
  name: v.pipe(v.string(), v.maxLength(255)),
  backend: v.custom<CharBackendSpec>((value) => typeof value === 'object' && value !== null && 'kind' in value),
});

export const ConsoleOptions = v.strictObject({
  ports: v.pipe(
    v.array(portSchema),
    v.minLength(1, 'at least one port'),
    v.maxLength(MAX_PORTS, `at most ${MAX_PORTS} ports`),
    v.metadata({
      arg: '[@]{stdio|tty|pty|file|socket}:NAME[=PATH][:server|client],…',
      help: '@: the port is a console; PATH for tty, file and socket, and of a link for pty',
    }),
  ),
  transport: transportOption,
});

export type PortOptions = v.InferOutput<typeof portSchema>;

const BACKEND_KINDS = ['stdio', 'tty', 'pty', 'file', 'socket'] as const;
type BackendKind = (typeof BACKEND_KINDS)[number];

function parsePort(item: string): PortOptions {
  const fail = (why: string): never => {
    throw new ConfigError(`virtio-console: port "${item}": ${why}`);
  };
  const isConsole = item.startsWith('@');
  const text = isConsole ? item.slice(1) : item;
  const colon = text.indexOf(':');
  if (colon < 0) return fail('give it a name: BACKEND:NAME');
  const word = text.slice(0, colon).toLowerCase();
  const kind = BACKEND_KINDS.find((k) => k === word);
  if (kind === undefined) return fail(`"${word}" is not one of ${BACKEND_KINDS.join(', ')}`);
  const rest = text.slice(colon + 1);
  const equals = rest.indexOf('=');
  const name = equals < 0 ? rest : rest.slice(0, equals);
  const path = equals < 0 ? undefined : rest.slice(equals + 1);
  return { isConsole, name, backend: backendOf(kind, path, fail) };
}

function backendOf(kind: BackendKind, path: string | undefined, fail: (why: string) => never): CharBackendSpec {
  if (kind === 'stdio') return { kind, translateOutput: true };
  // Compat: C ignores a path here; with `-l com1,pty:PATH` it is a link to the terminal.
  if (kind === 'pty') return { kind, linkPath: path === '' ? undefined : path };
  if (path === undefined || path === '') return fail('the path is missing: NAME=PATH');
  if (kind === 'tty') return { kind, path, translateOutput: true };
  if (kind === 'file') return { kind, path };
  const colon = path.indexOf(':');
  const role = colon < 0 ? 'server' : path.slice(colon + 1);
  if (role !== 'server' && role !== 'client') return fail(`"${role}" is not server or client`);
  return { kind: 'unix', path: colon < 0 ? path : path.slice(0, colon), role };
}

/** @throws ConfigError */
export function parseConsoleText(text: string): Record<string, unknown> {
  if (text === '') throw new ConfigError('virtio-console: which back end?');
  const options: Record<string, unknown> = {};
  const ports: PortOptions[] = [];
  for (const item of text.split(',')) {
    if (item.startsWith('transport=')) options['transport'] = item.slice('transport='.length);
    else ports.push(parsePort(item));
  }
  return { ...options, ports };
}

export const consoleInfo = describePciDriver({
  name: 'virtio-console',
  summary: 'consoles and serial ports',
  options: ConsoleOptions,
  parseText: parseConsoleText,
  claims: ({ ports }) =>
    ports.flatMap(({ backend }) =>
      charBackendClaims(backend, 'give the port of virtio-console pty:NAME or socket:NAME=PATH'),
    ),
  passedOver: ({ ports }) => {
    const names = ports.map(({ name }) => name).filter((name) => name !== '');
    const twice = new Set(names.filter((name, i) => names.indexOf(name) !== i));
    return [...twice].map((name) => `two ports are named "${name}": the guest finds one of them by its name`);
  },
  inspectHost: ({ ports }) => {
    for (const { backend } of ports) inspectCharBackend(backend);
  },
});
