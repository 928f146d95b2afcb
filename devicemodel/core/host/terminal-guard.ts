/**
 * Restores a terminal when this process can no longer do it: killed with SIGKILL, or by a fault in native code. A shell
 * waits at the other end of a pipe; the pipe closing without a word means that we are gone.
 */
import { type ChildProcess, spawn } from 'node:child_process';

/**
 * Standard input is the terminal, descriptor 3 our pipe, $1 the settings to restore, $2 those we left. If the user's
 * shell was quicker and set its own, they stay.
 */
const SCRIPT = 'read -r _ <&3 && exit; [ "$(stty -g)" = "$2" ] && stty "$1"';

const NCCS = 32;
const C_CC = 17;

/** As `stty -g` prints settings: flags and control characters in hexadecimal. */
export function sttyText(termios: Uint8Array): string {
  const view = new DataView(termios.buffer, termios.byteOffset, termios.length);
  const flags = [0, 4, 8, 12].map((offset) => view.getUint32(offset, true));
  return [...flags, ...termios.subarray(C_CC, C_CC + NCCS)].map((value) => value.toString(16)).join(':');
}

/**
 * Watch over a terminal until `dismiss`.
 * @param saved what to restore, @param raw what it is set to now.
 * @returns dismiss: nothing is restored any more. Safe twice. Where no shell can be started, nobody watches.
 */
export function guardTerminal(fd: number, saved: Uint8Array, raw: Uint8Array): () => void {
  let guard: ChildProcess;
  try {
    // A session of its own: what is sent to our process group must not reach it, and job control does not apply to it.
    guard = spawn('/bin/sh', ['-c', SCRIPT, 'sh', sttyText(saved), sttyText(raw)], {
      stdio: [fd, 'ignore', 'ignore', 'pipe'],
      detached: true,
    });
  } catch {
    // Node throws some errors of fork(2), such as ENOMEM, and tells of the others.
    return () => {};
  }
  guard.on('error', () => {});
  guard.unref();
  // Without a descriptor left there is no list of pipes either.
  const pipes = guard.stdio as ChildProcess['stdio'] | undefined;
  const pipe = pipes?.[3] as import('node:net').Socket | null | undefined;
  pipe?.on('error', () => {});
  pipe?.unref();
  return () => {
    if (pipe !== null && pipe !== undefined && !pipe.destroyed) pipe.end('\n');
  };
}
