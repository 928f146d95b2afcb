/** What is said when the engine's module does not come up. */
import { expect, test } from 'vitest';
import { instantiationFailure } from '../../../hypervisor/soft/v86-module.ts';

const memory = /^the memory of the software CPU cannot be had/;
const version = /version of the npm package v86/;

// Mutation: every failure is a wrong version, and a person under `ulimit -v` installs what is installed.
test.each([
  [
    new RangeError('WebAssembly.instantiate(): Out of memory: Cannot allocate Wasm memory for new instance'),
    memory,
    71,
  ],
  [new RangeError('could not allocate memory'), memory, 71],
  [new Error('Import #0 "env" "x": function import requires a callable'), version, 69],
  [new TypeError('Import #0 "env": module is not an object or function'), version, 69],
  [new SyntaxError('expected magic word'), version, 69],
])('%s', (cause, message, exitCode) => {
  const failure = instantiationFailure(cause);
  expect(failure.message).toMatch(message);
  expect(failure).toMatchObject({ cause, exitCode });
  expect(failure.hint).toMatch(exitCode === 71 ? /ulimit -v/ : /npm install/);
});
