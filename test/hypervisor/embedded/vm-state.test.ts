/** A handle that is closed while CREATE_VM waits: for an id, or for vCPUs. */
import { expect, test } from 'vitest';
import { EmbeddedHsm } from '../../../hypervisor/embedded/embedded-hsm.ts';
import { hostEventfds } from '../../../hypervisor/embedded/host-eventfds.ts';

const spec = { name: 'vm', flags: 0n, cpuAffinity: 1n };

/** A wait that the test ends. */
function gate() {
  let open = () => {};
  const passed = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { passed, open };
}

function machine({ claimed = Promise.resolve(), made = Promise.resolve() }) {
  const told: string[] = [];
  const engine = {
    backend: 'soft',
    gsiCount: 24,
    create: async () => {
      told.push('create');
      await made;
      told.push('made');
      return 1;
    },
    stop: () => {},
    wake: () => {},
    destroy: () => told.push('destroy'),
  };
  const hsm = new EmbeddedHsm({
    engine: engine as unknown as ConstructorParameters<typeof EmbeddedHsm>[0]['engine'],
    vdevs: () => undefined,
    eventfds: hostEventfds,
    claimVmid: async () => {
      await claimed;
      told.push('claim');
      return { vmid: 1, release: () => told.push('release') };
    },
  });
  return { hsm, told };
}

// Mutation: without the looks at #isClosed the id is this process's to its end, and the VM is made for nobody.
test('closed while it waits for an id: the id is given back, and no vCPU is made', async () => {
  const { passed, open } = gate();
  const { hsm, told } = machine({ claimed: passed });
  const created = hsm.createVm(spec);
  hsm.close();
  open();
  await expect(created).rejects.toThrow('CREATE_VM');
  expect([told, hsm.vmState]).toEqual([['destroy', 'claim', 'release'], 'none']);
});

test('closed while its vCPUs come up: they end, and the id is given back', async () => {
  const { passed, open } = gate();
  const { hsm, told } = machine({ made: passed });
  const created = hsm.createVm(spec);
  await new Promise((resolve) => setImmediate(resolve));
  hsm.close();
  open();
  await expect(created).rejects.toThrow('CREATE_VM');
  expect([told, hsm.vmState]).toEqual([['claim', 'create', 'destroy', 'made', 'destroy', 'release'], 'none']);
});
