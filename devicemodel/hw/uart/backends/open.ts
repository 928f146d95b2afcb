/** From the option text to a back end. Nothing on the host is touched before `start`. */
import type { CharBackend } from '../../../core/char-backend.ts';
import { FileBackend } from './file.ts';
import { NullBackend } from './null.ts';
import { TcpBackend, UnixClientBackend, UnixServerBackend } from './socket.ts';
import { type CharBackendSpec, parseCharBackend } from './spec.ts';
import { StdioBackend } from './stdio.ts';
import type { CharBackendEnv } from './stream-backend.ts';
import { PtyBackend, TtyBackend } from './tty.ts';

/** @param spec option text, or what {@link parseCharBackend} made of it. @throws ConfigError for text that is no back end. */
export function openCharBackend(spec: string | undefined | CharBackendSpec, env: CharBackendEnv): CharBackend {
  const parsed = typeof spec === 'object' ? spec : parseCharBackend(spec);
  switch (parsed.kind) {
    case 'null':
      return new NullBackend();
    case 'stdio':
      return new StdioBackend(env, parsed);
    case 'pty':
      return new PtyBackend(parsed.linkPath, env);
    case 'tty':
      return new TtyBackend(parsed.path, env, parsed);
    case 'tcp':
      return new TcpBackend(parsed.address, parsed.port, env);
    case 'unix':
      return parsed.role === 'server'
        ? new UnixServerBackend(parsed.path, env)
        : new UnixClientBackend(parsed.path, env);
    case 'file':
      return new FileBackend(parsed.path, env);
  }
}
