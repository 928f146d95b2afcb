/** The VMs of each test file have their folders to themselves: tests of two files may give theirs the same name. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll } from 'vitest';

const folder = mkdtempSync(join(tmpdir(), 'acrn-run-'));
process.env['ACRN_RUN_DIR'] = folder;
afterAll(() => rmSync(folder, { recursive: true, force: true }));
