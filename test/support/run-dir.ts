/** The VMs of each test file have their folders to themselves: tests of two files may give theirs the same name. */
import { randomUUID } from 'node:crypto';
import { mkdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll } from 'vitest';

const folder = join(tmpdir(), `acrn-run-${randomUUID()}`);
process.env['ACRN_RUN_DIR'] = folder;
// Not before: where every test of a file is skipped, nothing runs after them either.
beforeAll(() => {
  mkdirSync(folder, { mode: 0o700 });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));
