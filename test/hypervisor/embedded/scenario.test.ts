import * as fc from 'fast-check';
import { expect, test } from 'vitest';
import { ConfigError } from '../../../devicemodel/core/errors.ts';
import { derivedScenario, parseScenario, readScenario } from '../../../hypervisor/embedded/scenario.ts';

const MiB = 1024 * 1024;
const file = {
  ivshmem: [
    { name: 'hv:/shm0', sizeMib: 2, regionId: 1, vms: ['vm1', 'vm2'] },
    { name: 'hv:/all', sizeMib: 4 },
  ],
  vuarts: [
    { vm: 'vm1', index: 1, peer: { vm: 'vm2', index: 3 } },
    { vm: 'vm2', index: 3 },
  ],
  rootPorts: [{ vm: 'vm1', secondaryBus: 1 }],
};

test('a region exists for the VMs it names, or for all', () => {
  const scenario = parseScenario(file, 'file');
  expect(scenario.region('vm1', 'hv:/shm0')).toMatchObject({ sizeBytes: 2 * MiB, regionId: 1 });
  expect(scenario.region('vm3', 'hv:/shm0')).toBeUndefined();
  expect(scenario.region('vm3', 'hv:/all')).toMatchObject({ sizeBytes: 4 * MiB, regionId: 0 });
});

test('vUARTs and root ports are per VM', () => {
  const scenario = parseScenario(file, 'file');
  expect(scenario.vuart('vm1', 1)?.peer).toEqual({ vm: 'vm2', index: 3 });
  expect(scenario.vuart('vm2', 3)?.peer).toBeUndefined();
  expect(scenario.vuart('vm1', 2)).toBeUndefined();
  expect([scenario.hasRootPort('vm1', 1), scenario.hasRootPort('vm1', 2)]).toEqual([true, false]);
});

test('an empty file is a scenario without devices', () => {
  expect(parseScenario({}, 'file').region('vm1', 'hv:/shm0')).toBeUndefined();
});

test('without a file everything exists but vUART 0, the console', () => {
  expect(derivedScenario.region('any', 'hv:/any')).toEqual({ sizeBytes: undefined, regionId: 0 });
  expect(derivedScenario.vuart('any', 0)).toBeUndefined();
  expect(derivedScenario.vuart('any', 1)).toEqual({ peer: undefined });
});

test.each([
  [{ ivshmem: {} }, 'ivshmem: must be a list'],
  [{ ivhsmem: [] }, 'ivhsmem: unknown, expected one of ivshmem, vuarts, rootPorts'],
  [{ ivshmem: [{ name: 'shm0', sizeMib: 2 }] }, 'ivshmem[0]: name: must begin with hv:/'],
  [{ ivshmem: [{ name: 'hv:/a', sizeMib: 0 }] }, 'ivshmem[0]: sizeMib: must be a number from 1'],
  [{ vuarts: [{ vm: 'a', index: 0 }] }, 'vuarts[0]: index: must be a number from 1'],
  [{ vuarts: [{ vm: 'a', index: 1, peer: 7 }] }, 'vuarts[0]: peer: must be an object'],
  [{ rootPorts: [{ secondaryBus: 1 }] }, 'rootPorts[0]: vm: must be a text'],
  [[], 'must be an object'],
])('%j is refused with its place', (json, message) => {
  expect(() => parseScenario(json, 'my.json')).toThrow(message);
  expect(() => parseScenario(json, 'my.json')).toThrow(/^scenario my\.json/);
});

test('a file that is not there, or not JSON, is a ConfigError with its name', () => {
  expect(() => readScenario('/nonexistent/s.json')).toThrow(ConfigError);
  expect(() => readScenario(import.meta.filename)).toThrow(/not JSON/);
});

test('any JSON gives a scenario or a ConfigError', () => {
  fc.assert(
    fc.property(fc.jsonValue(), (json) => {
      try {
        parseScenario(json, 'file');
      } catch (error) {
        expect(error).toBeInstanceOf(ConfigError);
      }
    }),
  );
});
