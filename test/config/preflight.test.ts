import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import { parseCommandLine, type VmOrder } from '../../cmd/cli.ts';
import { checkHostPaths, checkHypervisor, problemsOf } from '../../config/preflight.ts';
import { ConfigError, type DmError, ExitCode } from '../../devicemodel/core/errors.ts';
import { pciDrivers } from '../../devicemodel/hw/registry.ts';
import { anyTextDriver } from '../cmd/drivers.ts';

describe('an order that cannot be run', () => {
  const problems = (...argv: string[]) => {
    const { config } = parseCommandLine(argv, [anyTextDriver('lpc')]) as VmOrder;
    return problemsOf(config);
  };

  test('a VM without boot image', () => {
    expect(problems('vm1').map((p) => p.message)).toEqual(['VM "vm1" has no boot image']);
  });
  test('--ssram without regions does not stop a VM', () => {
    expect(problems('--ssram', '-k', 'k', 'vm1')).toEqual([]);
  });
  test('a whole VM has no problem', () => {
    expect(problems('-k', 'k', '-s', '1,lpc', 'vm1')).toEqual([]);
  });
});

describe('what devices need of the host', () => {
  const check = (slot: string) =>
    checkHostPaths((parseCommandLine(['-k', 'k', '-s', slot, 'vm1'], pciDrivers) as VmOrder).config);

  test.each([
    ['3,virtio-blk,/nonexistent/disk,writeback', '/nonexistent/disk'],
    ['3,virtio-input,/nonexistent/event99', '/nonexistent/event99'],
    ['3,virtio-i2c,987654:1c', '/dev/i2c-987654'],
  ])('%s is parsed anywhere and refused where it is to run', (slot, path) => {
    expect(() => check(slot)).toThrow(ConfigError);
    expect(() => check(slot)).toThrow(`-s ${slot}: ${path}: no such file or device`);
  });
  test.each(['3,virtio-blk,nodisk', '3,virtio-rnd', '3,virtio-net,tap=none0'])(
    '%s needs nothing that is missing',
    (slot) => expect(() => check(slot)).not.toThrow(),
  );
});

// Mutation: leave one of them out of checkFrontDoors: a dry run says nothing, and the start fails.
describe('sockets and files of the program', () => {
  const folder = mkdtempSync(join(tmpdir(), 'preflight-'));
  const at = (name: string) => join(folder, name);
  mkdirSync(at('folder'));
  writeFileSync(at('file'), 'x');
  writeFileSync(at('empty'), '');
  writeFileSync(at('long'), 'nine bytes\n');
  writeFileSync(at('password'), 'secret\n');
  afterAll(() => rmSync(folder, { recursive: true }));
  const refused = (...argv: string[]) => {
    const { config } = parseCommandLine(['-k', 'k', ...argv, 'vm1'], pciDrivers) as VmOrder;
    try {
      checkHostPaths(config);
      return undefined;
    } catch (error) {
      return error as DmError;
    }
  };
  const { CannotCreate, DataError, NoInput, Usage } = ExitCode;
  const vnc = (file: string) => ['--display', `vnc=127.0.0.1:5901,password-file=${file}`];

  test.each([
    ['--cmd_monitor', ['--cmd_monitor', at('folder')], 'is no socket', CannotCreate],
    ['--cmd_monitor below a file', ['--cmd_monitor', at('file/x')], 'ENOTDIR', CannotCreate],
    ['--api-socket', ['--api-socket', at('file')], 'is no socket', CannotCreate],
    ['--api-socket below a file', ['--api-socket', `path=${at('file/x/y')}`], 'ENOTDIR', CannotCreate],
    ['--api-socket fd=', ['--api-socket', 'fd=987'], 'no such descriptor', Usage],
    ['--event-monitor', ['--event-monitor', `path=${at('folder')}`], 'EISDIR', CannotCreate],
    ['--event-monitor in no folder', ['--event-monitor', `path=${at('none/x')}`], 'ENOENT', CannotCreate],
    ['--crash-dump', ['--crash-dump', at('folder')], 'EISDIR', CannotCreate],
    ['--crash-dump in no folder', ['--crash-dump', at('none/x')], 'ENOENT', CannotCreate],
    ['--event-monitor fd=', ['--event-monitor', 'fd=987'], 'no such descriptor', Usage],
    ['--display', ['--display', `vnc=unix:${at('file')}`], 'is no socket', CannotCreate],
    ['--display, missing password', vnc(at('none')), 'ENOENT', NoInput],
    ['--display, no password file', vnc(at('folder')), 'EISDIR', NoInput],
    ['--display, empty password', vnc(at('empty')), 'its first line, is empty', DataError],
    ['--display, long password', vnc(at('long')), 'VNC looks at 8 bytes', DataError],
    ['virtio-rpmb', ['-s', `3,virtio-rpmb,path=${at('none/x')}`], 'ENOENT', CannotCreate],
    ['--vtpm2', ['--vtpm2', `sock_path=${at('file')}`], 'is no socket', NoInput],
    ['--vtpm2, missing', ['--vtpm2', `sock_path=${at('none')}`], 'ENOENT', NoInput],
    ['virtio-console', ['-s', `3,virtio-console,socket:a=${at('file')}:client`], 'is no socket', NoInput],
  ])('%s is refused before a VM is asked for', (name, argv, why, exitCode) => {
    const error = refused(...argv);
    expect(error?.message).toContain((name.split(/[ ,]/)[0] as string).replace(/^(?=virtio)/, '-s 3,'));
    expect([error?.message, error?.exitCode]).toEqual([expect.stringContaining(why), exitCode]);
  });

  test.each([
    ['--cmd_monitor', at('new/socket')],
    ['--api-socket', at('socket')],
    ['--api-socket', 'off'],
    ['--event-monitor', `path=${at('file')}`],
    ['--crash-dump', at('file')],
    ['--event-monitor', 'fd=2'],
    ['--display', `vnc=unix:${at('vnc')},password-file=${at('password')}`],
  ])('%s %s is fine', (...argv) => {
    expect(refused(...argv)).toBeUndefined();
  });

  const life = (backend: string, link: string) =>
    refused('-l', backend, '--pm_notify_channel', 'uart', '--pm_by_vuart', link);
  test.each([
    [`com2,${at('line')}`, `pty,${at('line')}`],
    [`com1,${at('line')}`, `pty,${at('folder/../line')}`],
    [`com2,tty:${at('line')}`, `PTY,${at('line')}`],
  ])('a port at the link that is made for the life manager, -l %s --pm_by_vuart %s, is fine', (...argv) => {
    expect(life(...argv)).toBeUndefined();
  });
  test.each([
    [`com2,${at('line')}`, `pty,${at('other')}`],
    [`com2,${at('line')}`, `tty,${at('line')}`],
  ])('a port at what nobody makes, -l %s --pm_by_vuart %s, is not', (...argv) => {
    expect(life(...argv)?.exitCode).toBe(NoInput);
  });

  test.each(['file=', 'path=', 'disk=', 'drive:'])('%sPATH for a disk: the path stands alone', (word) => {
    const error = refused('-s', `3,virtio-blk,${word}${at('file')}`);
    expect([error?.hint, error?.exitCode]).toEqual([expect.stringContaining(`: ${at('file')}`), NoInput]);
  });

  test.each(['fd=x', 'fd=', 'fd=-1', 'fd=1x', 'fd=0x3'])('--api-socket %s is no path either', (text) => {
    expect(() => refused('--api-socket', text)).toThrow(`"${text}" is not fd=N`);
  });
});

describe('a device the hypervisor does not offer', () => {
  const { config } = parseCommandLine(
    ['-k', 'k', '-s', '0,hostbridge', '-s', '6,root-port,ptm', '-s', '1:0:0,virtio-rnd', 'vm1'],
    pciDrivers,
  ) as VmOrder;

  test('is refused by its slot, with what else to do', () => {
    expect(() => checkHypervisor(config, {})).toThrow(
      expect.objectContaining({
        message: expect.stringMatching(/^-s 6,root-port,ptm: a root port of ACRN stands for a physical one/),
        hint: expect.stringContaining('enable_ptm'),
        exitCode: ExitCode.Usage,
      }),
    );
  });
  test('is taken where the hypervisor has it', () => {
    checkHypervisor(config, { ownRootPorts: true });
  });
});

describe('a function of the host', () => {
  const { config } = parseCommandLine(['-k', 'k', '-s', '6,passthru,02/00/0', 'vm1'], pciDrivers) as VmOrder;

  test('needs a hypervisor that gives it', () => {
    checkHypervisor(config, { givesHostFunctions: true });
    expect(() => checkHypervisor(config, { ownRootPorts: true })).toThrow(
      expect.objectContaining({
        message: expect.stringMatching(/^-s 6,passthru,02\/00\/0: this hypervisor cannot/),
        exitCode: ExitCode.Unavailable,
      }),
    );
  });
});
