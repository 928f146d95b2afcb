/** A host tree that is none: there is no function in it, whatever the file system says of the path. */
import { expect, test } from 'vitest';
import { hostFunction, hostFunctions } from '../../../../devicemodel/hw/pci/passthru/host-function.ts';
import { file, temporaryDirectory } from '../../../support/images.ts';

const address = { domain: 0, bus: 0, device: 2, function: 0 };

test.each([
  ['a file', () => file(temporaryDirectory(), 'f', new Uint8Array(1))],
  ['a name that is too long', () => `/${'n'.repeat(300)}`],
  ['nothing', () => '/nonexistent'],
  ['a device', () => '/dev/null'],
  ['below a file', () => '/etc/passwd/x'],
])('%s has no functions', (_, root) => {
  const path = root();
  expect(hostFunction(path, address)).toBeUndefined();
  expect(hostFunctions(path)).toEqual([]);
});
