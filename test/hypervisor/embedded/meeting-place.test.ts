/** In which place a VM meets others, what is said of it, and what is in the way. */
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import {
  groupMeetingPlace,
  meetingPlace,
  meetingPlaceProblems,
  placeHint,
} from '../../../hypervisor/embedded/meeting-place.ts';
import { openSoftHsm } from '../../../hypervisor/soft/open.ts';
import { memoryLog } from '../../support/memory-log.ts';

const GROUP = 4777;
const isRoot = process.getuid?.() === 0;
const withRegion = {
  pci: [{ bdf: { bus: 0, device: 5, function: 0 }, driver: 'ivshmem', options: { name: 'hv:/joint', size: 2 } }],
} as object;
const ofGroup = { socketGroup: String(GROUP), ...withRegion };

const environment = { ...process.env };
let top: string;
let folder: string;
let own: string;
beforeEach(() => {
  top = mkdtempSync('/tmp/place-');
  chmodSync(top, 0o755);
  process.env['ACRN_RUN_DIR'] = top;
  folder = join(top, `group-${GROUP}`);
  own = join(top, 'soft');
});
afterEach(() => {
  process.env = { ...environment };
  rmSync(top, { recursive: true, force: true });
});

/** As an administrator does. */
function install(): void {
  mkdirSync(folder);
  chownSync(folder, 0, GROUP);
  chmodSync(folder, 0o3770);
}

const warnings = (lines: readonly string[]) => lines.filter((line) => line.startsWith('warn'));

test('it is the user’s for a VM that has nothing to share, and for one without a group', async () => {
  expect(await meetingPlace({ socketGroup: String(GROUP), pci: [] })).toEqual({ folder: own });
  expect(await meetingPlace(withRegion)).toEqual({ folder: own });
  await expect(meetingPlace({ socketGroup: 'no-such-group', ...withRegion })).rejects.toThrow('no group');
  expect(groupMeetingPlace(GROUP, {})).toEqual({ folder: `/run/acrn/group-${GROUP}`, groupId: GROUP });
});

test.skipIf(!isRoot)('it is the group’s where root made it', async () => {
  install();
  const { log, lines } = memoryLog();
  expect(await meetingPlace(ofGroup, log)).toEqual({ folder, groupId: GROUP });
  expect(groupMeetingPlace(GROUP)).toEqual({ folder, groupId: GROUP });
  expect(warnings(lines)).toEqual([]);
  expect(await meetingPlaceProblems(ofGroup)).toEqual([]);
});

// Mutation: end the start for want of the folder: command lines that ran for their managers' sockets run no more.
describe.skipIf(!isRoot)('a VM starts in its user’s place where that of the group', () => {
  const command = 'as root, "install -d ';
  test.each<[string, () => void, string]>([
    ['is not there', () => {}, 'is not there'],
    ['is not there, nor a folder above it', () => rmSync(top, { recursive: true }), 'is not there'],
    ['is not the group’s', () => mkdirSync(folder, { mode: 0o700 }), 'is that of group root'],
    [
      'is open to others',
      () => {
        install();
        chmodSync(folder, 0o3775);
      },
      'has mode 3775',
    ],
  ])('%s, which is said', async (_what, spoil, said) => {
    spoil();
    const { log, lines } = memoryLog();
    expect(await meetingPlace(ofGroup, log)).toEqual({ folder: own });
    expect(warnings(lines)).toEqual([expect.stringContaining(said)]);
    expect(lines[0]).toContain(`this VM meets only others of its user, in ${own} (${command}`);
    expect(await meetingPlaceProblems(ofGroup)).toEqual([]);
    expect(existsSync(own)).toBe(false);
  });

  test('a VM says it once, however often it is reset', async () => {
    const { log, lines } = memoryLog();
    const config = { name: 'vm', scenarioPath: undefined, ...ofGroup };
    for (const _life of [1, 2]) {
      const hsm = await openSoftHsm({ config, log });
      await hsm.createVm({ name: 'vm', flags: 0n, cpuAffinity: 1n });
      expect(existsSync(join(own, 'vm-1.sock'))).toBe(true);
      hsm.close();
    }
    expect(warnings(lines)).toEqual([expect.stringContaining(command)]);
    expect(existsSync(folder)).toBe(false);
  });
});

// Mutation: say nothing: two VMs of one user with one region each have a region of their own, since one has the option.
describe.skipIf(!isRoot)('a VM that does not meet others of its user', () => {
  const servers: Server[] = [];
  afterEach(() => {
    for (const server of servers.splice(0)) server.close();
  });
  async function listenIn(at: string, name = 'vm-3.sock'): Promise<string> {
    mkdirSync(at, { recursive: true });
    const server = createServer();
    servers.push(server);
    const path = join(at, name);
    await new Promise<void>((resolve) => server.listen(path, resolve));
    return path;
  }
  async function said(config: object): Promise<readonly string[]> {
    const { log, lines } = memoryLog();
    for (const _life of [1, 2]) await meetingPlace(config, log);
    return warnings(lines);
  }
  const parted = (here: string, there: string) => [
    `warn: this VM meets others in ${here}: no vUART, doorbell or region of it leads to the VMs of this user in ${there} (--socket-group is for all of them, or for none)`,
  ];

  test('is told so, with the option and without', async () => {
    install();
    await listenIn(own);
    expect(await said(ofGroup)).toEqual(parted(folder, own));
    expect(await said(withRegion)).toEqual([]);
    await listenIn(folder);
    expect(await said(withRegion)).toEqual(parted(own, folder));
    expect(await said({ pci: [] })).toEqual([]);
    expect(await said({ pci: [{ driver: 'root-port', options: {} }] })).toEqual([]);
  });

  test('is told nothing of what is another user’s, has ended, or is no VM’s', async () => {
    install();
    chownSync(await listenIn(folder), 4242, GROUP);
    writeFileSync(join(folder, 'vm-4.sock'), '');
    await listenIn(folder, 'other.sock');
    await listenIn(join(top, 'elsewhere'));
    expect(await said(withRegion)).toEqual([]);
  });
});

// Mutation: name /run/acrn to a user whose XDG_RUNTIME_DIR leads to another's.
test('a place that XDG_RUNTIME_DIR leads to is told so', () => {
  expect(placeHint('/run/user/7/acrn/soft', { XDG_RUNTIME_DIR: '/run/user/7' })).toContain('unset it');
  expect(placeHint('/run/user/77/acrn/soft', { XDG_RUNTIME_DIR: '/run/user/7' })).not.toContain('XDG');
  expect(placeHint('/run/acrn/soft', {})).toMatch(/^ACRN_RUN_DIR=FOLDER/);
});

test('a place of the user’s that cannot be had is found before there is a VM', async () => {
  process.env['ACRN_RUN_DIR'] = '/dev/null';
  expect((await meetingPlaceProblems(withRegion)).map(({ message }) => message)).toEqual([
    expect.stringContaining('/dev/null/soft, where the VMs of this host meet'),
  ]);
});
