/**
 * A start with three passed-through functions in which every single call to the hypervisor fails once: whatever was
 * taken is given back, last first, the error names the call, and the host has its functions again, reset.
 */
import { constants } from 'node:os';
import { afterAll, describe, expect, test } from 'vitest';
import { type Bdf, bdfToNumber } from '../../devicemodel/core/address.ts';
import { DmError, ExitCode } from '../../devicemodel/core/errors.ts';
import type { MmioMapping, PcidevAssignment, PtdevIntx, RamMapping } from '../../devicemodel/core/hsm/hsm.ts';
import type { HvVdev } from '../../devicemodel/core/hsm/vdev.ts';
import { FakeHostPci } from '../support/fake-host-pci.ts';
import type { FakeHsm, HsmCall, HsmMethod } from '../support/fake-hsm.ts';
import { type FakePc, makePc } from '../support/fake-pc.ts';

const { EPERM, ENODEV, EINVAL } = constants.errno;

/** A network card with PTM, a card with INTx only and I/O ports, an NVMe disk. */
function makeHost(): FakeHostPci {
  return new FakeHostPci()
    .add('00:1c.0', {
      classCode: 0x060400,
      headerType: 1,
      secondaryBus: 2,
      express: { type: 4, maxPayload: 1 },
      ptm: [0x6, 0x3],
    })
    .add('02:00.0', {
      bars: [{ kind: 'mem32', address: 0xa120_0000, sizeBytes: 0x10_0000 }],
      hasMsi: true,
      express: { type: 0 },
      ptm: [0x1, 0],
    })
    .add('0a:00.0', {
      bars: [
        { kind: 'mem32', address: 0xa400_0000, sizeBytes: 128 },
        { kind: 'io', address: 0x4000, sizeBytes: 256 },
      ],
      interrupt: [20, 1],
    })
    .add('0b:00.0', {
      classCode: 0x010802,
      bars: [{ kind: 'mem64', address: 0xa500_0000, sizeBytes: 0x4000 }],
      hasMsi: true,
      interrupt: [255, 1],
    });
}

const host = makeHost();
afterAll(() => host.dispose());
const argv = [
  ...['-s', '6,passthru,02/00/0,enable_ptm', '-s', '7,passthru,0a/00/0', '-s', '8,passthru,0b/00/0,keep_gsi'],
  ...['-s', '5,ivshmem,hv:/shm,2'],
];

async function start(prepare: (hsm: FakeHsm) => void): Promise<{ pc: FakePc; hsm: FakeHsm; error: unknown }> {
  const pc = makePc(
    argv,
    (hsm) => {
      void hsm.guest.pioWrite(0x404, 2, 0x3400);
      prepare(hsm);
    },
    { hostTree: { root: host.root, isPlan: false } },
  );
  let error: unknown;
  try {
    await pc.vm.run();
  } catch (thrown) {
    error = thrown;
  }
  await pc.dispose();
  return { pc, hsm: pc.lives[0] as FakeHsm, error };
}

const name = (bdf: Bdf) => bdfToNumber(bdf).toString(16);

/** What a call takes from the hypervisor, or gives back. */
function effectOf({ method, args }: HsmCall): { readonly take: boolean; readonly what: string } | undefined {
  const [argument] = args;
  switch (method) {
    case 'assignPcidev':
    case 'deassignPcidev': {
      const { virtualBdf, physicalBdf } = argument as PcidevAssignment;
      return { take: method === 'assignPcidev', what: `pci ${name(physicalBdf)} at ${name(virtualBdf)}` };
    }
    case 'setPtdevIntx':
    case 'resetPtdevIntx':
      return { take: method === 'setPtdevIntx', what: `intx ${name((argument as PtdevIntx).physicalBdf)}` };
    case 'createVdev':
    case 'destroyVdev':
      return { take: method === 'createVdev', what: `vdev ${name((argument as HvVdev).bdf)}` };
    case 'mapMmio':
    case 'unmapMmio':
      return { take: method === 'mapMmio', what: `mmio ${(argument as MmioMapping | RamMapping).gpa}` };
    default:
      return undefined;
  }
}

/** @returns what is wrong with how things were given back: nothing kept, the last one first. */
function disorder(hsm: FakeHsm, failedAt: number): string[] {
  const problems: string[] = [];
  const held: string[] = [];
  for (const [i, call] of hsm.calls.entries()) {
    const effect = effectOf(call);
    if (effect === undefined) continue;
    if (effect.take) {
      if (i !== failedAt) held.push(effect.what);
    } else {
      const last = held.pop();
      if (last !== effect.what) problems.push(`${effect.what} is given back before ${last}`);
    }
  }
  if (held.length > 0) problems.push(`kept: ${held}`);
  if (hsm.callNames.at(-1) !== 'close') problems.push('not closed');
  return problems;
}

const whole = await start(() => {});
const startCalls = whole.hsm.calls.slice(0, whole.hsm.callNames.indexOf('startVm') + 1);

describe('a start with three functions', () => {
  test('works when nothing fails, and ends with nothing held', () => {
    expect(whole.error).toBeUndefined();
    expect(whole.hsm.assigned.size).toBe(0);
    expect(whole.hsm.vdevs).toEqual([]);
    const taken = startCalls.flatMap((call) => effectOf(call)?.what ?? []);
    expect(taken).toEqual([
      ...['vdev 30', 'pci 200 at 100', 'pci a00 at 38', 'pci b00 at 40', 'vdev 28'],
      ...['intx a00', 'intx b00'],
    ]);
  });

  /** An interrupt that cannot be delivered is the guest's loss; a root port that cannot be had, too, as with C. */
  const bearable: ReadonlySet<HsmMethod> = new Set(['setIrqLine']);

  test.each(startCalls.map((call, at) => ({ at, method: call.method })))(
    'call $at, $method, fails: all is given back, last first',
    async ({ at, method }) => {
      const nth = startCalls.slice(0, at + 1).filter((call) => call.method === method).length;
      for (const errno of [EPERM, ENODEV, EINVAL]) {
        const { hsm, error, pc } = await start((fake) => fake.fail(method, nth, errno));
        expect(pc.ramOut).toBe(0);
        expect(hsm.assigned.size).toBe(0);
        const isPort = method === 'createVdev' && nth === 1;
        if (bearable.has(method) || isPort) {
          expect(error).toBeUndefined();
          if (isPort) expect(pc.log.some((line) => line.includes('no PTM for 02:00.0'))).toBe(true);
          continue;
        }
        expect(error).toBeInstanceOf(DmError);
        expect((error as DmError).exitCode).toBe(ExitCode.VmFailed);
        expect((error as DmError).message).toMatch(/made to fail by the test/);
        expect(disorder(hsm, at)).toEqual([]);
      }
    },
  );
});
