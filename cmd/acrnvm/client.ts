/** The running VMs of this user, and requests to their APIs. */
import { existsSync, lstatSync, readdirSync, readFileSync, statSync } from 'node:fs';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { dirname, join } from 'node:path';
import { deadManagerSockets, type ManagerSocketFile, managerFolder } from '../../control/manager-folder.ts';
import { type LockText, readLockText } from '../../control/vm-lock-file.ts';
import { defaultApiSocket, vmFoldersRoot } from '../../control/vm-paths.ts';
import { DmError, type DmErrorOptions, ExitCode } from '../../devicemodel/core/errors.ts';
import { groupFolders, ownRegionFiles, ownSockets } from '../../devicemodel/core/host/group-folders.ts';
import { isOfThisUserAlone, regionFiles } from '../../devicemodel/core/host/region-files.ts';
import { isListenedAt } from '../../devicemodel/core/host/socket-path.ts';

/** What went wrong, and the status acrnvm ends with: that of acrn-dm for the same. */
export class ClientError extends DmError {
  override readonly name: string = 'ClientError';
  constructor(message: string, options: DmErrorOptions = {}) {
    super(message, { exitCode: ExitCode.Unavailable, ...options });
  }
}

/** How long a VM may take to answer. It may be busy: it shares its thread with its guest. */
const ANSWER_TIMEOUT_MS = 30_000;
/** The same where many VMs are asked, and one of them must not keep the others from being shown. */
const GLANCE_TIMEOUT_MS = 2000;

/** What is asked beside method, path and body. */
export interface AskOptions {
  readonly headers?: Readonly<Record<string, string>>;
  /** Until the answer begins. */
  readonly timeoutMs?: number;
}

/** Why nobody answered, by the error number's name: `ETIMEDOUT` for somebody who is there and says nothing. */
export function causeCode(error: unknown): string | undefined {
  return error instanceof ClientError ? (error.cause as NodeJS.ErrnoException | undefined)?.code : undefined;
}

export interface Reply {
  readonly status: number;
  readonly text: string;
}

/** @returns the answer, whatever its status. @throws ClientError when nobody answers. */
export async function ask(
  socketPath: string,
  method: string,
  path: string,
  body?: object,
  options: AskOptions = {},
): Promise<Reply> {
  const response = await open(socketPath, method, path, body, options);
  let text = '';
  for await (const part of response.setEncoding('utf8') as AsyncIterable<string>) text += part;
  return { status: response.statusCode ?? 0, text };
}

/** The same for an answer that is read as it comes. */
export function open(
  socketPath: string,
  method: string,
  path: string,
  body?: object,
  { headers = {}, timeoutMs = ANSWER_TIMEOUT_MS }: AskOptions = {},
): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ socketPath, method, path, headers, agent: false }, resolve);
    const noAnswer = Object.assign(new Error(`no answer within ${timeoutMs / 1000} s`), { code: 'ETIMEDOUT' });
    const timer = setTimeout(() => request.destroy(noAnswer), timeoutMs);
    request.once('response', () => clearTimeout(timer));
    request.once('error', (cause: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      reject(noConnection(socketPath, cause));
    });
    if (body === undefined) request.end();
    else request.setHeader('content-type', 'application/json').end(JSON.stringify(body));
  });
}

/** @returns the number if that process stands still, by SIGSTOP or Ctrl-Z. */
function stoppedProcess(pid = ''): string | undefined {
  if (!/^\d+$/.test(pid)) return undefined;
  try {
    // proc(5): the name, in parentheses, may have any character.
    return /\) [Tt] [^)]*$/.test(readFileSync(`/proc/${pid}/stat`, 'utf8')) ? pid : undefined;
  } catch {
    return undefined;
  }
}

function noConnection(socketPath: string, cause: NodeJS.ErrnoException): ClientError {
  if (cause.code === 'EACCES') {
    return new ClientError(`${socketPath} is not open to this user`, {
      cause,
      exitCode: ExitCode.NoPermission,
      hint: 'ask as the user who started the VM, or start it with --socket-group',
    });
  }
  const stopped =
    cause.code === 'ETIMEDOUT' ? stoppedProcess(readLockText(join(dirname(socketPath), 'lock'))?.pid) : undefined;
  if (stopped !== undefined) {
    return new ClientError(`${socketPath}: ${cause.message}: process ${stopped} is stopped`, {
      cause,
      hint: `kill -CONT ${stopped} lets it go on`,
    });
  }
  const isGone = cause.code === 'ENOENT' || cause.code === 'ECONNREFUSED';
  return new ClientError(isGone ? `nobody is there (${socketPath})` : `${socketPath}: ${cause.message}`, {
    cause,
    ...(isGone ? { hint: 'acrnvm ls lists the VMs that run' } : {}),
  });
}

/** @returns the answer's JSON, or text. @throws ClientError with what the VM said for an answer that is no success. */
export async function call(
  socketPath: string,
  method: string,
  path: string,
  body?: object,
  options: AskOptions = {},
): Promise<unknown> {
  const { status, text } = await ask(socketPath, method, path, body, options);
  if (status >= 400) throw problemError(status, text);
  return jsonOrText(text);
}

function jsonOrText(text: string): unknown {
  return /^\s*[{[]/.test(text) ? JSON.parse(text) : text;
}

/** The refusal that a stream's beginning may be, once it is read. */
export async function refusalOf(response: IncomingMessage): Promise<ClientError> {
  let text = '';
  try {
    for await (const part of response.setEncoding('utf8') as AsyncIterable<string>) text += part;
  } catch {
    // Its status says enough.
  }
  return problemError(response.statusCode ?? 0, text);
}

/** @param text the answer's body. */
function problemError(status: number, text: string): ClientError {
  const value = jsonOrText(text);
  const { detail, hint, exitStatus } = (typeof value === 'object' && value !== null ? value : {}) as {
    detail?: string;
    hint?: string;
    exitStatus?: ExitCode;
  };
  return new ClientError(detail ?? `the VM answers ${status}`, {
    exitCode: exitStatus ?? ExitCode.Unavailable,
    ...(hint === undefined ? {} : { hint }),
  });
}

/** Where a VM of that name says that its API is; or the path of a socket, as it was written. */
export function socketOf(name: string): string {
  if (name.includes('/')) return name;
  return heldLock(name)?.apiSocket ?? defaultApiSocket(name);
}

export interface VmRow {
  readonly name: string;
  readonly state: string;
  readonly pid?: number;
  readonly hypervisor?: string;
  readonly memoryBytes?: number;
  readonly uptimeS?: number;
}

/** What a VM says of itself, soon. @throws ClientError */
export async function glanceAt(socketPath: string): Promise<VmRow> {
  return (await call(socketPath, 'GET', '/v1/vm', undefined, { timeoutMs: GLANCE_TIMEOUT_MS })) as VmRow;
}

/** Every VM that has a folder; `dead` for what a killed one left. @throws ClientError when they cannot be looked for. */
export async function listVms(): Promise<VmRow[]> {
  const names = foldersIn(vmFoldersRoot());
  return Promise.all(
    names.map(async (name): Promise<VmRow> => {
      try {
        return { ...(await glanceAt(socketOf(name))), name };
      } catch (error) {
        const code = causeCode(error);
        if (code === 'EACCES') return { name, state: 'not ours' };
        const lock = heldLock(name);
        const pid = Number(lock?.pid) > 0 ? { pid: Number(lock?.pid) } : {};
        if (code === 'ETIMEDOUT') return { name, state: 'unresponsive', ...pid };
        return lock === undefined ? { name, state: 'dead' } : { name, state: 'without an API', ...pid };
      }
    }),
  );
}

/** What killed VMs left for acrnctl, which takes them for running ones. */
export async function deadSocketsOfAcrnctl(): Promise<ManagerSocketFile[]> {
  try {
    return await deadManagerSockets(managerFolder());
  } catch {
    return [];
  }
}

/** What killed VMs left of the memory that they shared with others, on the embedded hypervisor: to be told of, not to act on. */
export function deadRegions(): string[] {
  const own = regionFiles().filter((path) => {
    const stat = lstatSync(path, { throwIfNoEntry: false });
    return stat !== undefined && isOfThisUserAlone(stat);
  });
  const ofGroups = groupFolders().flatMap(({ folder }) => ownRegionFiles(folder));
  return [...own, ...ofGroups].filter((path) => !isLocked(path));
}

/** As {@link deadRegions}: sockets of this user's VMs where those of a group meet. */
export function deadMemberSockets(): string[] {
  return groupFolders()
    .flatMap(({ folder }) => ownSockets(folder))
    .filter((path) => !isListenedAt(path));
}

/** @throws ClientError: that nothing can be seen there does not mean that nothing runs. */
export function foldersIn(path: string): string[] {
  try {
    return readdirSync(path).sort();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return [];
    if (code === 'EACCES') {
      throw new ClientError(`${path} may not be read by this user`, { exitCode: ExitCode.NoPermission });
    }
    throw new ClientError(`${path} cannot be read: ${code}`);
  }
}

/** What the process wrote that took the name; undefined when it is gone: what it wrote may be another's by now. */
function heldLock(name: string): LockText | undefined {
  const lock = join(vmFoldersRoot(), name, 'lock');
  const text = readLockText(lock) ?? { pid: '' };
  try {
    // None yet, or of a process that was killed before it wrote its number: number 0 would be ourselves.
    if (Number(text.pid) > 0) process.kill(Number(text.pid), 0);
  } catch (error) {
    // The process of another user's VM is not for us to ask.
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') return undefined;
  }
  // The number may be another process's by now; the lock is not.
  return existsSync(lock) && isLocked(lock) ? text : undefined;
}

/** Whether anybody has a lock on the file: where that cannot be told, yes. */
function isLocked(path: string): boolean {
  try {
    const inode = `:${statSync(path).ino} `;
    return readFileSync('/proc/locks', 'utf8').includes(inode);
  } catch {
    return true;
  }
}
