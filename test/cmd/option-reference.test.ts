import fs from 'node:fs';
import { expect, test } from 'vitest';
import { optionReference } from '../../cmd/option-reference.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';

test('docs/option-reference.md is up to date (else: node tools/make-option-reference.mjs)', () => {
  const written = fs.readFileSync(new URL('../../docs/option-reference.md', import.meta.url), 'utf8');
  expect(written).toBe(optionReference(pciDrivers));
});
