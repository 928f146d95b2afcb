/** Files the command line names for output, in a folder where everybody may make files: whose are they? */
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  chownSync,
  closeSync,
  constants,
  linkSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { ExitCode, HostError } from '../../../devicemodel/core/errors.ts';
import { openOutput, writeOutput } from '../../../devicemodel/core/host/output-file.ts';

const NOBODY = 65534;
let root: string;
let path: string;
const undo: Array<() => void> = [];
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'output-'));
  chmodSync(root, 0o1777);
  path = join(root, 'out');
});
afterEach(() => {
  for (const step of undo.splice(0)) step();
  rmSync(root, { recursive: true, force: true });
});

const isRoot = process.getuid?.() === 0;
/** A pipe somebody reads. */
function makePipe(): void {
  spawnSync('mkfifo', [path]);
  const reader = openSync(path, constants.O_RDWR | constants.O_NONBLOCK);
  undo.push(() => closeSync(reader));
}
const give = (owner: number) => chownSync(path, owner, owner);

const ways = {
  append: async () => closeSync(openOutput(path, 0o600)),
  write: () => writeOutput(path, 'secret', 0o600),
};

// Mutation: leave `checkOwner` out.
describe.skipIf(!isRoot).each(Object.keys(ways) as (keyof typeof ways)[])('%s', (way) => {
  test.each<[string, () => void]>([
    ['a file of another user', () => [writeFileSync(path, 'theirs'), give(NOBODY)]],
    ['one that everybody may write', () => [writeFileSync(path, 'theirs'), give(NOBODY), chmodSync(path, 0o666)]],
    ['an empty one', () => [writeFileSync(path, ''), give(1)]],
    ['a second name of a file of ours', () => [writeFileSync(`${path}2`, 'ours'), linkSync(`${path}2`, path)]],
    ['a link', () => symlinkSync('/dev/null', path)],
    ['a pipe of another user', () => [makePipe(), give(NOBODY)]],
  ])('%s is refused, with status 73, and stays as it is', async (what, make) => {
    make();
    const before = what.includes('file') || what.includes('one') ? readFileSync(path, 'utf8') : undefined;
    const failure = await Promise.resolve()
      .then(ways[way])
      .then(
        () => undefined,
        (error: unknown) => error,
      );
    expect(failure).toBeInstanceOf(HostError);
    expect(failure).toMatchObject({ exitCode: ExitCode.CannotCreate, hint: expect.stringContaining('everybody') });
    if (before !== undefined) expect(readFileSync(path, 'utf8')).toBe(before);
  });

  test.each<[string, () => void]>([
    ['nothing', () => {}],
    ['a file of ours', () => writeFileSync(path, 'x')],
    ['a file of the folder’s owner', () => [chownSync(root, NOBODY, NOBODY), writeFileSync(path, 'x'), give(NOBODY)]],
    ['another user’s in a folder of ours', () => [chmodSync(root, 0o755), writeFileSync(path, 'x'), give(NOBODY)]],
    ['a link in a folder of ours', () => [chmodSync(root, 0o755), symlinkSync(`${path}2`, path)]],
  ])('%s is written to', async (_what, make) => {
    make();
    await ways[way]();
    expect(statSync(path).isFile()).toBe(true);
    if (way === 'write') expect(readFileSync(path, 'utf8')).toBe('secret');
  });
});
