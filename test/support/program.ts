/** Runs the built program as a user does, with the demo guest. */
import { type ChildProcess, spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const repository = fileURLToPath(new URL('../..', import.meta.url));
const programPath = join(repository, 'dist/acrn-dm.js');
export const demoGuest = join(repository, 'examples/guest/demo.bzimage');

/** Why guests cannot be booted on the embedded hypervisor here, or undefined. */
export function whyNoSoftHypervisor(): string | undefined {
  if (!existsSync(programPath)) return 'dist/acrn-dm.js is not built (npm run build)';
  if (!existsSync(join(repository, 'node_modules/v86'))) return 'the optional package v86 is not installed';
  return undefined;
}

export interface Exit {
  readonly code: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}

/** A program that does not end by itself in this time is killed. */
const END_PATIENCE_MS = 5000;

/** A running acrn-dm. */
export class Program {
  readonly #child: ChildProcess;
  #stdout = '';
  #stderr = '';
  #exit: Exit | undefined;
  readonly exited: Promise<Exit>;
  readonly #waiters = new Set<() => void>();

  constructor(args: readonly string[], cwd = repository) {
    this.#child = spawn(process.execPath, [programPath, ...args], { cwd, stdio: 'pipe' });
    this.#child.stdout?.setEncoding('utf8').on('data', (text: string) => {
      this.#stdout += text;
      for (const look of this.#waiters) look();
    });
    this.#child.stderr?.setEncoding('utf8').on('data', (text: string) => {
      this.#stderr += text;
    });
    this.exited = new Promise((resolve) => {
      this.#child.on('close', (code, signal) => {
        this.#exit = { code, signal, stdout: this.#stdout, stderr: this.#stderr };
        resolve(this.#exit);
        for (const look of this.#waiters) look();
      });
    });
  }

  get pid(): number {
    return this.#child.pid ?? -1;
  }

  get stdout(): string {
    return this.#stdout;
  }

  /** Resolves when the console has shown `text`. @throws Error with all output if the program ends before. */
  async console(text: string): Promise<void> {
    await new Promise<void>((resolve, reject) => {
      const look = () => {
        if (this.#stdout.includes(text)) resolve();
        else if (this.#exit !== undefined) {
          reject(new Error(`ended with ${this.#exit.code} before "${text}":\n${this.#stdout}\n${this.#stderr}`));
        } else return;
        this.#waiters.delete(look);
      };
      this.#waiters.add(look);
      look();
    });
  }

  /** Typed on the console. */
  type(text: string): void {
    this.#child.stdin?.write(text);
  }

  /** End of the console's input. */
  closeInput(): void {
    this.#child.stdin?.end();
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  /** For afterEach: whatever state it is in, it is gone afterwards, and its sockets and memory with it if it can. */
  async end(): Promise<void> {
    if (this.#exit === undefined) this.#child.kill('SIGINT');
    const killed = setTimeout(() => this.#child.kill('SIGKILL'), END_PATIENCE_MS);
    await this.exited;
    clearTimeout(killed);
  }
}

/** The demo guest on the embedded hypervisor, COM1 on stdio. */
export function softVm(name: string, bootargs: string, ...options: string[]): string[] {
  const machine = ['--hypervisor', 'soft', '-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,stdio'];
  return [...machine, ...options, '-k', demoGuest, '-B', bootargs, name];
}
