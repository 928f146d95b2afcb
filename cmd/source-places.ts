/** Where in the sources the frames of a stack are: the built program is minified, and has a source map beside it. */
import { readFileSync } from 'node:fs';
import { SourceMap, type SourceMapPayload } from 'node:module';
import { fileURLToPath } from 'node:url';

/** `at name (/dist/acrn-dm.bundle.cjs:LINE:COLUMN)`, or without a name and parentheses; both counted from 1. */
const FRAME = /at (?:.* \()?((?:\/[^:()]+\/)?[^:()/\s]+\.c?js):(\d+):(\d+)\)?/g;

/** @returns the text with `at cmd/run.ts:12:3` for each frame in a file that has a map; everything else as it was. */
export function withSourcePlaces(stack: string): string {
  const maps = new Map<string, SourceMap | undefined>();
  return stack.replace(FRAME, (frame, file: string, line: string, column: string) => {
    if (!maps.has(file)) maps.set(file, readMap(`${fileURLToPath(new URL(file, import.meta.url))}.map`));
    const entry = maps.get(file)?.findEntry(Number(line) - 1, Number(column) - 1);
    if (entry === undefined || !('originalSource' in entry)) return frame;
    // Sources are named from dist/.
    return `at ${entry.originalSource.replace(/^(\.\.\/)+/, '')}:${entry.originalLine + 1}:${entry.originalColumn + 1}`;
  });
}

function readMap(path: string): SourceMap | undefined {
  try {
    return new SourceMap(JSON.parse(readFileSync(path, 'utf8')) as SourceMapPayload);
  } catch {
    // Sources that run as they are (a test, tsx) have none.
    return undefined;
  }
}
