/** The folder where acrnctl and acrnd look for VMs, and what killed ones left there. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { isServed } from '../devicemodel/core/host/is-served.ts';

/** `<vm>.monitor.<pid>.socket` */
const SOCKET_NAME = /^(.+)\.monitor\.(\d+)\.socket$/;

/** What acrnctl was compiled with. `ACRN_RUN_DIR` stands for `/run/acrn`, for those who look in there as well. */
export function managerFolder(env: NodeJS.ProcessEnv = process.env): string {
  const asked = env['ACRN_RUN_DIR'];
  return join(asked === undefined || asked === '' ? '/run/acrn' : asked, 'mngr');
}

export interface ManagerSocketFile {
  readonly vmName: string;
  readonly pid: number;
  readonly path: string;
}

/** @throws ENOENT and the like. */
export function managerSockets(directory: string): ManagerSocketFile[] {
  return readdirSync(directory).flatMap((name) => {
    const [, vmName, pid] = SOCKET_NAME.exec(name) ?? [];
    return vmName === undefined ? [] : [{ vmName, pid: Number(pid), path: join(directory, name) }];
  });
}

/**
 * Those whose process is gone and that nobody serves: a process that is not seen here may be one of another namespace.
 * @param vmName what is of this name is nobody else's.
 */
export async function deadManagerSockets(directory: string, vmName?: string): Promise<ManagerSocketFile[]> {
  const dead: ManagerSocketFile[] = [];
  for (const socket of managerSockets(directory)) {
    if (isRunning(socket.pid)) continue;
    if (socket.vmName === vmName || !(await isServed(socket.path))) dead.push(socket);
  }
  return dead;
}

function isRunning(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code !== 'ESRCH';
  }
}
