/** The user's side of a pseudo terminal, and waiting for what other processes and sockets do. */
import { closeSync, mkdtempSync, readSync, rmSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as immediate, setTimeout as sleep } from 'node:timers/promises';
import { openPty, type PtyPair } from '../../devicemodel/core/host/tty.ts';

/** A machine may have the tests of two checkouts to run. */
const PATIENCE_MS = 40_000;
/** As long as what is waited for may be in this process: then another one, which needs the processor. */
const QUICK_TURNS = 200;

/** Turn the event loop until `condition` holds. @throws with `what` when it does not. */
export async function until(condition: () => boolean, what: string): Promise<void> {
  const deadline = Date.now() + PATIENCE_MS;
  for (let turn = 0; !condition(); turn++) {
    if (Date.now() > deadline) throw new Error(`never happened: ${what}`);
    await (turn < QUICK_TURNS ? immediate() : sleep(1));
  }
}

/** A terminal window: the test types into the master and sees what the program writes to the slave. */
export class TerminalWindow {
  readonly #pair: PtyPair = openPty();
  #seen = '';

  /** The program's terminal. */
  get path(): string {
    return this.#pair.slavePath;
  }

  get slaveFd(): number {
    return this.#pair.slaveFd;
  }

  type(text: string): void {
    writeSync(this.#pair.masterFd, text);
  }

  /** Everything shown so far. */
  get seen(): string {
    const chunk = Buffer.alloc(4096);
    try {
      for (;;) {
        const count = readSync(this.#pair.masterFd, chunk);
        if (count === 0) break;
        this.#seen += chunk.toString('latin1', 0, count);
      }
    } catch {
      // EAGAIN: nothing more for now.
    }
    return this.#seen;
  }

  close(): void {
    closeSync(this.#pair.masterFd);
    closeSync(this.#pair.slaveFd);
  }
}

/** A directory of the test's own. @param parent where, e.g. MEMORY_DIR */
export function scratchDirectory(parent = tmpdir()): {
  readonly path: string;
  file(name: string): string;
  remove(): void;
} {
  const path = mkdtempSync(join(parent, 'acrn-dm-test-'));
  return { path, file: (name) => join(path, name), remove: () => rmSync(path, { recursive: true, force: true }) };
}

/** Read everything a back end has. */
export function readAll(backend: { read(): number }): string {
  const bytes: number[] = [];
  for (let byte = backend.read(); byte >= 0; byte = backend.read()) bytes.push(byte);
  return Buffer.from(bytes).toString('latin1');
}

/** Write text and end the turn. */
export function writeText(backend: { write(byte: number): void; flush(): void }, text: string): void {
  for (const byte of Buffer.from(text, 'latin1')) backend.write(byte);
  backend.flush();
}
