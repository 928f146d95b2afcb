/** `--display`: where the guest's screens are to be seen. */
import type { DisplayConfig } from '../devicemodel/core/config.ts';
import { ConfigError } from '../devicemodel/core/errors.ts';
import { parseSocketPath } from '../devicemodel/core/options.ts';

const FORMS = 'vnc=unix:PATH, vnc=127.0.0.1:PORT,password-file=FILE, sdl or none';
const MAX_PORT = 65535;

/** @throws ConfigError */
export function parseDisplay(text: string): DisplayConfig {
  if (text === 'none' || text === 'sdl') return { kind: text };
  const [place = '', ...words] = text.split(',');
  if (!place.startsWith('vnc=')) throw new ConfigError(`"${text}" is no display: ${FORMS}`);
  const passwordFile = passwordFileOf(words);
  const where = place.slice('vnc='.length);
  if (where.startsWith('unix:')) {
    const path = parseSocketPath(where.slice('unix:'.length));
    return { kind: 'vnc', path, ...(passwordFile === undefined ? {} : { passwordFile }) };
  }
  const [, host, digits] = /^(\[[0-9a-fA-F:.]+\]|[^\s:[\]]+):(\d{1,5})$/.exec(where) ?? [];
  const port = Number(digits);
  if (host === undefined || port < 1 || port > MAX_PORT) {
    throw new ConfigError(`"${where}" is no place for a VNC server: ${FORMS}`);
  }
  if (passwordFile === undefined) {
    throw new ConfigError(`${where} is for everybody on this host: it needs password-file=FILE`, {
      hint: 'or use vnc=unix:PATH, which only you can connect to',
    });
  }
  return { kind: 'vnc', host: host.replace(/^\[|\]$/g, ''), port, passwordFile };
}

function passwordFileOf(words: readonly string[]): string | undefined {
  let file: string | undefined;
  for (const word of words) {
    const [, value] = /^password-file=(.+)$/.exec(word) ?? [];
    if (value === undefined || file !== undefined) throw new ConfigError(`"${word}" is unexpected: ${FORMS}`);
    file = value;
  }
  return file;
}
