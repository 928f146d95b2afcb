/** `acrnvm console`: this terminal as the console of a VM. Ctrl-] leaves. */
import { request as httpRequest } from 'node:http';
import type { Socket } from 'node:net';
import { ClientError, call, refusalOf } from './client.ts';

const CTRL_RIGHT_BRACKET = 0x1d;

/** A script that is read to its end has nothing more to say, but wants to see what comes of it: until this long nothing does. */
const QUIET_MS = 1000;

/** @param id of the console; undefined: the first there is. @returns once somebody ended it. */
export async function attachConsole(socketPath: string, id: string | undefined): Promise<void> {
  const lines = (await call(socketPath, 'GET', '/v1/consoles')) as { readonly id: string }[];
  const wanted = id ?? lines[0]?.id;
  if (wanted === undefined) throw new ClientError('this VM has no console');
  const socket = await upgrade(socketPath, `/v1/consoles/${encodeURIComponent(wanted)}/stream?history=1`);
  process.stderr.write(`connected to ${wanted}, Ctrl-] leaves\r\n`);
  const { stdin, stdout } = process;
  const isTerminal = stdin.isTTY === true;
  if (isTerminal) stdin.setRawMode(true);
  await new Promise<void>((resolve) => {
    let quiet: NodeJS.Timeout | undefined;
    const leave = () => {
      clearTimeout(quiet);
      resolve();
    };
    socket.on('data', (data) => {
      stdout.write(data);
      quiet?.refresh();
    });
    socket.on('close', leave).on('error', leave).on('end', leave);
    stdin.on('data', (data: Buffer) => {
      const end = isTerminal ? data.indexOf(CTRL_RIGHT_BRACKET) : -1;
      if (end !== 0) socket.write(end < 0 ? data : data.subarray(0, end));
      if (end >= 0) leave();
    });
    stdin.on('end', () => {
      if (isTerminal) leave();
      // The VM takes what it was sent as its guest reads it.
      else socket.write('', () => (quiet = setTimeout(leave, QUIET_MS)));
    });
  });
  if (isTerminal) stdin.setRawMode(false);
  stdin.pause();
  socket.destroy();
  process.stderr.write('\r\n');
}

function upgrade(socketPath: string, path: string): Promise<Socket> {
  return new Promise((resolve, reject) => {
    const headers = { Connection: 'Upgrade', Upgrade: 'acrn-console' };
    const request = httpRequest({ socketPath, path, headers, agent: false });
    request.on('upgrade', (_response, socket: Socket, head: Buffer) => {
      if (head.length > 0) socket.unshift(head);
      resolve(socket);
    });
    request.on('response', (response) => void refusalOf(response).then(reject));
    request.on('error', (cause) => reject(new ClientError(`${socketPath}: ${cause.message}`, { cause })));
    request.end();
  });
}
