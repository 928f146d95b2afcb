/** Files that the program writes because the command line named them. */
import { constants, openSync, statSync } from 'node:fs';
import { open } from 'node:fs/promises';
import { ExitCode, type HostError } from '../errors.ts';
import { Errno } from './errno.ts';
import { isInStickyFolder } from './folders.ts';
import { errnoOf, pathFailure } from './path-failure.ts';

const { O_WRONLY, O_CREAT, O_APPEND, O_TRUNC, O_NONBLOCK, O_NOCTTY, O_NOFOLLOW } = constants;

/** Where anybody may make files, a link of somebody else would choose what is written to. Nobody is waited for. */
function flagsFor(path: string): number {
  const follow = isInStickyFolder(path) ? O_NOFOLLOW : 0;
  return O_WRONLY | O_CREAT | O_NONBLOCK | O_NOCTTY | follow;
}

function isPipe(path: string): boolean {
  try {
    return statSync(path).isFIFO();
  } catch {
    return false;
  }
}

function openFailure(path: string, error: unknown): HostError {
  const errno = errnoOf(error);
  const hint =
    errno === Errno.ENXIO && isPipe(path)
      ? 'a named pipe needs its reader first'
      : errno === Errno.ELOOP && isInStickyFolder(path)
        ? 'links are not followed in a folder where everybody may make them'
        : undefined;
  return pathFailure(`${path}: cannot be opened for output`, error, ExitCode.CannotCreate, hint);
}

/**
 * A file, named pipe or device to append to; a file is made if it is not there. A pipe without a reader is an error.
 * @param mode of a file that is made. @throws HostError (73)
 */
export function openOutput(path: string, mode: number): number {
  try {
    return openSync(path, flagsFor(path) | O_APPEND, mode);
  } catch (error) {
    throw openFailure(path, error);
  }
}

/** Write all of a file anew. @param mode of a file that is made. @throws HostError (73, or 74 while it is written) */
export async function writeOutput(path: string, text: string, mode: number): Promise<void> {
  const file = await open(path, flagsFor(path) | O_TRUNC, mode).catch((error: Error) => {
    throw openFailure(path, error);
  });
  try {
    await file.writeFile(text);
  } catch (error) {
    throw pathFailure(`${path}: cannot be written`, error, ExitCode.IoError);
  } finally {
    await file.close();
  }
}
