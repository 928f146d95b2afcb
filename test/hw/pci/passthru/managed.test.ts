/** `managed`: who has a function of the host before, during and after the VM, on every way out of it. */
import { execFileSync } from 'node:child_process';
import { closeSync, constants, openSync, readlinkSync, rmSync } from 'node:fs';
import { constants as osConstants } from 'node:os';
import { basename, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { HsmError } from '../../../../devicemodel/core/hsm/errors.ts';
import { ManagedFunctions } from '../../../../devicemodel/hw/pci/passthru/managed.ts';
import { FakeHostPci } from '../../../support/fake-host-pci.ts';
import type { FakeHsm } from '../../../support/fake-hsm.ts';
import { type FakePc, makePc } from '../../../support/fake-pc.ts';
import { memoryLog } from '../../../support/memory-log.ts';

const AT = '0b:00.0';
const NAME = '0000:0b:00.0';

let host: FakeHostPci;
let pipes: string[];
beforeEach(() => {
  pipes = [];
  host = new FakeHostPci();
  host.add(AT, {
    bars: [{ kind: 'mem32', address: 0xa500_0000, sizeBytes: 4096 }],
    hasMsi: true,
    driver: 'nvme',
  });
});
afterEach(() => {
  // Lets the threads go that write.
  for (const path of pipes) closeSync(openSync(path, constants.O_RDONLY | constants.O_NONBLOCK));
  host.dispose();
});

/** Who writes to it waits for ever. */
function hang(path: string): void {
  rmSync(path, { force: true });
  execFileSync('mkfifo', [path]);
  pipes.push(path);
}
const driverFile = (driver: string, file: string) => join(host.root, 'sys/bus/pci/drivers', driver, file);
const isWithNvme = () => host.readDriver('nvme', 'bind') === NAME && host.read(AT, 'driver_override').startsWith('\n');

function pcWith(options: string, prepare: (hsm: FakeHsm, life: number) => void = () => {}): FakePc {
  return makePc(['-s', `7,passthru,0b/00/0${options}`], prepare, { hostTree: { root: host.root, isPlan: false } });
}

describe('a VM', () => {
  test('has it over a full reset; its driver has it back at the end', async () => {
    const seen: string[] = [];
    const pc = pcWith(',managed', (hsm, life) => {
      seen.push(`life ${life}: unbind ${host.readDriver('nvme', 'unbind')}, bind "${host.readDriver('nvme', 'bind')}"`);
      if (life === 1) void hsm.guest.pioWrite(0xcf9, 1, 0x0e);
      else void hsm.guest.pioWrite(0x404, 2, 0x3400);
    });
    await pc.vm.run();
    expect(pc.lives).toHaveLength(2);
    expect(seen[1]).toBe(`life 2: unbind ${NAME}, bind ""`);
    expect(host.readDriver('pci-stub', 'unbind')).toBe('');
    await pc.dispose();
    expect(host.readDriver('pci-stub', 'unbind')).toBe(NAME);
    expect(isWithNvme()).toBe(true);
  });

  test('that fails to start gives it back', async () => {
    const pc = pcWith(',managed', (hsm) => hsm.fail('assignPcidev', 1, osConstants.errno.EINVAL));
    await expect(pc.vm.run()).rejects.toThrow(HsmError);
    await pc.dispose();
    expect(isWithNvme()).toBe(true);
  });

  test.each([
    ['its reset', () => join(host.path(AT), 'reset')],
    ['its driver', () => driverFile('nvme', 'unbind')],
    ['the stub', () => driverFile('pci-stub', 'bind')],
  ])('that is ended while the function hangs in %s gives it back', async (_where, path) => {
    hang(path());
    const pc = pcWith(',managed');
    const running = pc.vm.run();
    // Once it is on its way, and then some time for it to hang.
    await vi.waitFor(() => expect(host.read(AT, 'driver_override')).toMatch(/^pci-stub/), 20_000);
    await delay(100);
    pc.vm.power.request({ kind: 'poweroff', reason: 'SIGTERM' });
    expect(await running).toMatchObject({ kind: 'poweroff' });
    await pc.dispose();
    expect(isWithNvme()).toBe(true);
  });
});

test('a reset at the end of a VM that hangs is not waited for once the VM is ended by force', async () => {
  hang(join(host.path(AT), 'reset'));
  const pc = pcWith(',no_reset', (hsm) => void hsm.guest.pioWrite(0x404, 2, 0x3400));
  let hasEnded = false;
  const running = pc.vm.run().finally(() => {
    hasEnded = true;
  });
  await delay(300);
  // The first is heard, and ends what is ending already.
  pc.vm.power.request({ kind: 'poweroff', reason: 'SIGTERM' });
  await delay(300);
  expect(hasEnded).toBe(false);
  pc.vm.power.request({ kind: 'poweroff', reason: 'SIGTERM', isForced: true });
  expect(await running).toMatchObject({ kind: 'poweroff' });
  expect(pc.log.filter((line) => line.includes('was ended while 0b:00.0 was being reset'))).toHaveLength(1);
  expect(pc.lives[0]?.calls.some(({ method }) => method === 'destroyVm')).toBe(true);
  await pc.dispose();
});

describe('on its own', () => {
  const fn = () => ({
    path: host.path(AT),
    name: AT,
    get driver() {
      return basename(readlinkSync(join(host.path(AT), 'driver')));
    },
  });

  test('a process that dies gives back at once, and nothing twice', async () => {
    const { log } = memoryLog();
    const managed = new ManagedFunctions(log);
    await managed.take(fn());
    managed.giveBackNow();
    expect(isWithNvme()).toBe(true);
    rmSync(driverFile('nvme', 'bind'));
    managed.giveBackNow();
    await managed.giveBack();
    expect(() => host.readDriver('nvme', 'bind')).toThrow('ENOENT');
  });

  test('one that hangs makes no process wait that dies', async () => {
    const { log, lines } = memoryLog();
    const managed = new ManagedFunctions(log);
    await managed.take(fn());
    hang(driverFile('pci-stub', 'unbind'));
    managed.markHung(fn());
    managed.giveBackNow();
    expect(lines.join('\n')).toContain('managed: 0b:00.0 is not bound to nvme again: it hangs');
  });

  test('a driver that does not let go keeps it: nothing else is asked of it', async () => {
    rmSync(driverFile('nvme', 'unbind'));
    const { log } = memoryLog();
    const managed = new ManagedFunctions(log);
    await expect(managed.take(fn())).rejects.toThrow('managed: 0b:00.0 is not bound to pci-stub: ENOENT');
    expect(host.readDriver('nvme', 'bind')).toBe('');
    expect(host.read(AT, 'driver_override')).toMatch(/^\n/);
  });

  test('a function that a stub has already stays there', async () => {
    host.bind(AT, 'pci-stub');
    const { log } = memoryLog();
    const managed = new ManagedFunctions(log);
    await managed.take(fn());
    await managed.giveBack();
    expect(host.readDriver('pci-stub', 'unbind')).toBe('');
  });
});
