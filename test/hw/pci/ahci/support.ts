/** Disks for the tests of ahci. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { onTestFinished } from 'vitest';
import type { ImageQueue, ImageRequest } from '../../../../devicemodel/hw/storage/image-queue.ts';
import { type AhciChoices, ahciMachine } from '../../../support/ahci-driver.ts';

export const SECTORS = 256;

export function sector(index: number): Uint8Array {
  return Uint8Array.from({ length: 512 }, (_, i) => (index * 7 + (i >> 8) + (i & 3)) & 0xff);
}

export function imageBytes(sectors = SECTORS): Uint8Array {
  return Uint8Array.from(Array.from({ length: sectors }, (_, i) => [...sector(i)]).flat());
}

export function image(bytes: Uint8Array = imageBytes()): string {
  const dir = mkdtempSync(join(tmpdir(), 'ahci-'));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  const path = join(dir, 'image');
  writeFileSync(path, bytes);
  return path;
}

export interface DiskChoices extends AhciChoices {
  readonly bytes?: Uint8Array;
  /** Option text. */
  readonly text?: (path: string) => string;
}

export async function diskMachine(choices: DiskChoices = {}) {
  const { bytes, text = (path: string) => `hd:${path}`, ...rest } = choices;
  const path = image(bytes);
  return { path, ...(await ahciMachine(text(path), rest)) };
}

/** Storage that answers when the test says so. */
export class StallingQueue implements ImageQueue {
  readonly requests: ImageRequest[] = [];
  get inFlight(): number {
    return this.requests.length;
  }
  submit(request: ImageRequest): void {
    this.requests.push(request);
  }
  kick(): void {}
  drained(): Promise<void> | undefined {
    return undefined;
  }
  describeWork(): undefined {
    return undefined;
  }
  dispose(): Promise<void> | undefined {
    return undefined;
  }
  /** The first request is over. */
  finish(errno: number): void {
    this.requests.shift()?.done(errno);
  }
}

/** A started port 0 whose disk stalls. */
export async function stalled(choices: DiskChoices = {}) {
  const queue = new StallingQueue();
  const made = await diskMachine({ ...choices, openQueue: () => queue });
  made.driver.start(0);
  return { ...made, queue };
}
