/** The password of a VNC server, in a file that only its owner has to see. */
import { ConfigError, ExitCode } from '../../../core/errors.ts';
import { readRegularFile } from '../../../core/host/read-file.ts';

/** No more of it counts (RFC 6143 §7.2.2). */
export const PASSWORD_BYTES = 8;

/** The first line of a file. @throws ConfigError (65) for one that VNC cannot have, HostError */
export function readPassword(path: string): string {
  const [line = ''] = readRegularFile(path, `password file ${path}`).toString('utf8').split('\n');
  const password = line.replace(/\r$/, '');
  if (password === '')
    throw new ConfigError(`${path}: the password, its first line, is empty`, { exitCode: ExitCode.DataError });
  if (Buffer.byteLength(password) > PASSWORD_BYTES) {
    throw new ConfigError(`${path}: VNC looks at ${PASSWORD_BYTES} bytes of a password, this has more`, {
      exitCode: ExitCode.DataError,
    });
  }
  return password;
}
