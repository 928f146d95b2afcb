/** How much of the product a run has reached, as V8 counts it: characters of functions and blocks that ran. */
import { Session } from 'node:inspector/promises';

export interface FileCoverage {
  readonly file: string;
  /** 0 to 1. */
  readonly share: number;
  /** Functions that never ran. */
  readonly missed: readonly string[];
}

/** Counts what runs between `start` and `stop`. Slows everything down by about a half. */
export class Coverage {
  readonly #session = new Session();

  async start(): Promise<void> {
    this.#session.connect();
    await this.#session.post('Profiler.enable');
    await this.#session.post('Profiler.startPreciseCoverage', { callCount: true, detailed: true });
  }

  /** @param folder part of the paths that count: `devicemodel/hw/pci/virtio` */
  async stop(folder: string): Promise<FileCoverage[]> {
    const { result } = await this.#session.post('Profiler.takePreciseCoverage');
    this.#session.disconnect();
    const files: FileCoverage[] = [];
    for (const { url, functions } of result) {
      const at = url.indexOf(folder);
      if (at < 0) continue;
      // The first range is the whole file, and ran when it was loaded; inner ranges follow outer ones.
      const end = Math.max(...functions.flatMap((f) => f.ranges.map((range) => range.endOffset)));
      const didRun = new Uint8Array(end);
      for (const { ranges } of functions) {
        for (const { startOffset, endOffset, count } of ranges) didRun.fill(count > 0 ? 1 : 0, startOffset, endOffset);
      }
      const missed = functions.filter((f) => f.ranges[0]?.count === 0).map((f) => f.functionName);
      const share = didRun.reduce((sum, ran) => sum + ran, 0) / end;
      files.push({ file: url.slice(at), share, missed: missed.filter((name) => name !== '') });
    }
    return files.sort((a, b) => a.file.localeCompare(b.file));
  }
}
