/** What is packed is the same wherever it was built: no path of the machine that built it. */
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { repository, whyNoSoftHypervisor } from '../support/program.ts';

const dist = join(repository, 'dist');

describe.skipIf(whyNoSoftHypervisor() !== undefined)('dist', () => {
  test('has no path of this machine, the compiled code included', () => {
    const files = readdirSync(dist, { withFileTypes: true, recursive: true }).filter((entry) => entry.isFile());
    expect(files.some(({ name }) => name.endsWith('.cache'))).toBe(true);
    const found = files.filter(({ parentPath, name }) => readFileSync(join(parentPath, name)).includes(repository));
    expect(found.map(({ name }) => name)).toEqual([]);
  });
});
