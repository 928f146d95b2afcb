/**
 * What test/hypervisor/kvm/real-kvm.test.ts uses of vitest, for places where starting vitest takes minutes: a machine in
 * emulation. tools: esbuild puts this in its place (test/rig/kvm-engine.sh). The status is 1 if a test failed.
 */
import assert from 'node:assert/strict';

const suites = [];
let current = { name: '', tests: [], beforeAll: [], before: [], after: [], parent: undefined };
const root = current;

const format = (name, values) => {
  let at = 0;
  return name.replace(/%[sij]/g, () => String(values[at++]));
};

export function describe(name, body) {
  const suite = { name, tests: [], beforeAll: [], before: [], after: [], parent: current };
  suites.push(suite);
  current = suite;
  body();
  current = suite.parent;
}
describe.each = (rows) => (name, body) => {
  for (const row of rows) describe(format(name, row), () => body(...row));
};
const none = Object.assign(() => {}, { each: () => () => {} });
describe.skipIf = (isSkipped) => (isSkipped ? none : describe);

export function test(name, body) {
  current.tests.push({ name, body });
}
test.each = (rows) => (name, body) => {
  for (const row of rows) {
    const values = Array.isArray(row) ? row : [row];
    test(format(name, values), () => body(...values));
  }
};

export const beforeAll = (step) => current.beforeAll.push(step);
export const beforeEach = (step) => current.before.push(step);
export const afterEach = (step) => current.after.push(step);

export function expect(got) {
  return {
    toBe: (wanted) => assert.equal(got, wanted),
    toEqual: (wanted) => assert.deepEqual(structuredClone(got), wanted),
    toHaveLength: (wanted) => assert.equal(got.length, wanted),
    toBeGreaterThan: (limit) => assert.ok(got > limit, `${got} is not more than ${limit}`),
  };
}

const Skipped = class extends Error {};

async function run() {
  let failed = 0;
  let passed = 0;
  for (const suite of suites) {
    const chain = [];
    for (let at = suite; at !== undefined && at !== root; at = at.parent) chain.unshift(at);
    chain.unshift(root);
    for (const step of suite.beforeAll) await step();
    for (const { name, body } of suite.tests) {
      const started = performance.now();
      let error;
      try {
        for (const { before } of chain) for (const step of before) await step();
        await body({
          skip: () => {
            throw new Skipped();
          },
        });
      } catch (thrown) {
        error = thrown;
      }
      for (const { after } of [...chain].reverse()) {
        for (const step of after)
          await Promise.resolve()
            .then(step)
            .catch((thrown) => (error ??= thrown));
      }
      const isBad = error !== undefined && !(error instanceof Skipped);
      if (isBad) failed++;
      else passed++;
      console.log(
        `${isBad ? 'FAILED ' : 'ok     '} ${suite.name}: ${name} (${Math.round(performance.now() - started)} ms)`,
      );
      if (isBad) console.log(error);
    }
  }
  console.log(`${passed} passed, ${failed} failed`);
  process.exit(failed === 0 && passed > 0 ? 0 : 1);
}
setImmediate(run);
