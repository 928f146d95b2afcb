/**
 * Where the API of a VM listens. The socket is there as soon as it is asked for; what serves it is loaded at the first
 * connection, since most VMs have none.
 */
import { createServer, type Server, type Socket } from 'node:net';
import type { ApiSocket } from '../devicemodel/core/config.ts';
import { attributed, ConfigError } from '../devicemodel/core/errors.ts';
import { listenUnix } from '../devicemodel/core/host/unix-listener.ts';
import type { Log } from '../devicemodel/core/log.ts';
import type { HttpApi } from './api/http-api.ts';
import type { Vmm } from './api/vmm.ts';
import type { FrontDoor } from './front-doors.ts';

export interface ApiDoorOptions {
  readonly at: Exclude<ApiSocket, { readonly kind: 'off' }>;
  readonly socketGroup?: string | undefined;
  readonly vmm: Vmm;
  readonly log: Log;
}

/** @throws ConfigError for a descriptor that is no listening socket, HostError when a path cannot be had. */
export async function openApiDoor({ at, socketGroup, vmm, log }: ApiDoorOptions): Promise<FrontDoor> {
  let api: Promise<HttpApi> | undefined;
  let isClosed = false;
  // Paused, with nothing read: what comes before the server is there waits in the socket.
  const accept = (socket: Socket): void => {
    socket.on('error', () => {});
    api ??= import('./api/http-api.ts').then(({ createApi }) => createApi({ vmm, log }));
    api.then(
      (loaded) => {
        if (isClosed) socket.destroy();
        else loaded.accept(socket);
      },
      (error: Error) => {
        log.error(`api: ${error.message}`);
        socket.destroy();
      },
    );
  };
  const listener = at.kind === 'fd' ? await listenOn(at.fd, accept) : await listenAt(at.path, accept, socketGroup);
  return {
    close: async () => {
      if (isClosed) return;
      isClosed = true;
      listener.close();
      await (await api)?.close();
    },
  };
}

async function listenAt(path: string, accept: (socket: Socket) => void, group: string | undefined) {
  try {
    return await listenUnix(path, accept, { group, isPaused: true });
  } catch (error) {
    throw attributed('--api-socket', error);
  }
}

function listenOn(fd: number, accept: (socket: Socket) => void): Promise<Server> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true }, accept);
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      reject(
        new ConfigError(`--api-socket fd=${fd}: is no listening socket (${cause.code})`, {
          cause,
          hint: 'the parent process makes the socket and leaves its descriptor open',
        }),
      );
    });
    server.listen({ fd }, () => {
      server.removeAllListeners('error').on('error', () => {});
      resolve(server);
    });
  });
}
