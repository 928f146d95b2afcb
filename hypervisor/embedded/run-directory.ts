/** Where the VMs of this host meet. */
import { accessSync, constants, statSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { ConfigError, DmError, ExitCode } from '../../devicemodel/core/errors.ts';
import { Errno } from '../../devicemodel/core/host/errno.ts';
import { errnoOf, pathFailure } from '../../devicemodel/core/host/path-failure.ts';
import { ROOT_RUN_FOLDER, runRoot } from '../../devicemodel/core/host/run-folder.ts';
import { checkSocketPath } from '../../devicemodel/core/host/socket-path.ts';

export const ROOT_DIRECTORY = join(ROOT_RUN_FOLDER, 'soft');
/** The longest name of a socket in it. */
const LONGEST_NAME = 'vm-255.bells';
const HINT = 'ACRN_RUN_DIR=FOLDER in the environment names another place than /run/acrn';

/** The directory VMs of this user meet in: /run for root, else the user's own. `ACRN_RUN_DIR` stands for /run/acrn. */
export function defaultRunDirectory(env: NodeJS.ProcessEnv = process.env, uid = process.getuid?.() ?? 0): string {
  return join(runRoot(env, uid), 'soft');
}

/** Whether it is there or can be made. Reads only. @param directory only tests name one. */
export function runDirectoryProblems(directory = defaultRunDirectory()): DmError[] {
  try {
    checkSocketPath(join(directory, LONGEST_NAME));
    inspect(directory);
    return [];
  } catch (error) {
    if (!(error instanceof DmError)) throw error;
    const { cause } = error;
    // The environment is wrong, not the command line.
    const exitCode = error.exitCode === ExitCode.Usage ? ExitCode.CannotCreate : error.exitCode;
    return [
      new ConfigError(`${directory}, where the VMs of this host meet: ${error.message}`, {
        exitCode,
        cause,
        hint: HINT,
      }),
    ];
  }
}

function inspect(directory: string): void {
  for (let folder = directory; ; folder = dirname(folder)) {
    try {
      if (!statSync(folder).isDirectory()) throw Object.assign(new Error(), { errno: Errno.ENOTDIR });
      accessSync(folder, constants.W_OK | constants.X_OK);
      return;
    } catch (error) {
      const isMissing = errnoOf(error) === Errno.ENOENT && folder !== dirname(folder);
      if (!isMissing) throw pathFailure(`folder ${folder}`, error, ExitCode.CannotCreate);
    }
  }
}
