/** The connection to swtpm: against one that misbehaves on demand, and against Debian's where it is installed. */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { afterEach, describe, expect, test } from 'vitest';
import { HostError } from '../../../../devicemodel/core/errors.ts';
import { Log } from '../../../../devicemodel/core/log.ts';
import { Swtpm } from '../../../../devicemodel/hw/platform/tpm/swtpm.ts';

const RETRY_MS = 50;
const cleanups: Array<() => void | Promise<void>> = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

function scratch(): string {
  const dir = mkdtempSync(join(tmpdir(), 'swtpm-'));
  cleanups.push(() => rmSync(dir, { recursive: true, force: true }));
  return dir;
}

async function until(isSo: () => boolean): Promise<void> {
  const end = Date.now() + 10_000;
  while (!isSo()) {
    if (Date.now() > end) throw new Error('waited for 10 s');
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

interface Fake {
  readonly said: string[];
  readonly process: ChildProcess;
}

async function fakeSwtpm(path: string, refused?: number): Promise<Fake> {
  const script = join(import.meta.dirname, '../../../support/fake-swtpm.py');
  const child = spawn('python3', [script, path, ...(refused === undefined ? [] : [String(refused)])]);
  const said: string[] = [];
  createInterface(child.stdout).on('line', (line) => said.push(line.trim()));
  cleanups.push(() => void child.kill('SIGKILL'));
  await until(() => said.includes('listening'));
  return { said, process: child };
}

function client(path: string, answerMs = 10_000) {
  const lines: string[] = [];
  const log = new Log([{ maxLevel: 4, write: (_level, line) => void lines.push(line) }]);
  const swtpm = new Swtpm(path, log, { retryMs: RETRY_MS, answerMs });
  cleanups.push(() => swtpm.close());
  return { swtpm, lines };
}

function command(code: number): Uint8Array {
  const bytes = Buffer.from('80010000000c000000000020', 'hex');
  bytes.writeUInt32BE(code, 6);
  return bytes;
}

const codeOf = (response: Uint8Array) => Buffer.from(response).readUInt32BE(6);

describe('an swtpm', () => {
  test('is set up in the order it wants, and ends with the VM', async () => {
    const path = join(scratch(), 's');
    const { said } = await fakeSwtpm(path);
    const { swtpm } = client(path);
    await swtpm.powerOn();
    expect(swtpm.isEstablished).toBe(true);
    const response = await swtpm.execute(command(1));
    expect(Buffer.from(response.subarray(10)).toString('hex')).toBe(Buffer.from([...Array(32).keys()]).toString('hex'));
    await swtpm.close();
    await until(() => said.length >= 9);
    expect(said.slice(1)).toEqual([
      ...['order 0x10', 'order 0xe', 'order 0x11 00004f80', 'order 0x2 00000000'],
      ...['order 0x5 00000000', 'order 0x4', 'command 1 12', 'order 0x3'],
    ]);
  });

  test('that is not there is an error that says how to start it', async () => {
    const { swtpm } = client(join(scratch(), 's'));
    const error = await swtpm.powerOn().catch((e: unknown) => e);
    expect(error).toBeInstanceOf(HostError);
    expect((error as HostError).message).toMatch(/^swtpm at .*\/s: ENOENT: no such file or directory$/);
    expect((error as HostError).hint).toMatch('swtpm socket --tpm2 ');
  });

  test('that refuses an order is an error with the order', async () => {
    const path = join(scratch(), 's');
    await fakeSwtpm(path, 2);
    const { swtpm } = client(path);
    await expect(swtpm.powerOn()).rejects.toThrow('it answers Init with error 0x9');
  });

  test('that another VM has is an error, not a wait', async () => {
    const path = join(scratch(), 's');
    await fakeSwtpm(path);
    await client(path).swtpm.powerOn();
    await expect(client(path, 200).swtpm.powerOn()).rejects.toThrow('does another VM use it?');
  });

  test('power cycles between two commands, never within one', async () => {
    const path = join(scratch(), 's');
    const { said } = await fakeSwtpm(path);
    const { swtpm } = client(path);
    await swtpm.powerOn();
    // Its answers may be here before what it printed of them is.
    await until(() => said.includes('order 0x4'));
    const from = said.length;
    const waiting = swtpm.execute(command(5));
    await until(() => said.includes('command 5 12'));
    swtpm.powerCycle();
    const later = swtpm.execute(command(1));
    // The command under way was cancelled for it.
    expect(codeOf(await waiting)).toBe(0x909);
    expect(codeOf(await later)).toBe(0);
    await until(() => said.includes('command 1 12'));
    expect(said.slice(from)).toEqual([
      ...['command 5 12', 'order 0x9', 'order 0xe', 'order 0x2 00000000'],
      ...['order 0x5 00000000', 'order 0x4', 'command 1 12'],
    ]);
  });

  test('a guest that cancels without end costs one order a command', async () => {
    const path = join(scratch(), 's');
    const { said } = await fakeSwtpm(path);
    const { swtpm } = client(path);
    await swtpm.powerOn();
    for (let i = 0; i < 2; i++) {
      const waiting = swtpm.execute(command(5));
      await until(() => said.filter((line) => line === 'command 5 12').length === i + 1);
      for (let n = 0; n < 100; n++) swtpm.cancel();
      expect(codeOf(await waiting)).toBe(0x909);
    }
    expect(codeOf(await swtpm.execute(command(1)))).toBe(0);
    await until(() => said.includes('command 1 12'));
    expect(said.filter((line) => line === 'order 0x9')).toHaveLength(2);
  });

  // Mutation: the power cycle waits in line for the response, and with it every command of the guest from then on.
  test('one that stops in the middle of a response is given up when the machine resets', async () => {
    const path = join(scratch(), 's');
    const { said } = await fakeSwtpm(path);
    const { swtpm, lines } = client(path, 1500);
    await swtpm.powerOn();
    const waiting = swtpm.execute(command(6));
    await until(() => said.includes('command 6 12'));
    swtpm.powerCycle();
    expect(codeOf(await waiting)).toBe(0x101);
    expect(lines[0]).toMatch(/is gone: it does not end a command; /);
    await until(() => lines.length === 2);
    expect(codeOf(await swtpm.execute(command(1)))).toBe(0);
  });
});

describe('an swtpm that goes away', () => {
  test.each([
    ['dies', 2],
    ['gives a size that cannot be', 3],
    ['gives a byte too many', 4],
  ])('because it %s answers with failure, and the next one is found', async (_, code) => {
    const path = join(scratch(), 's');
    const { process: first } = await fakeSwtpm(path);
    const { swtpm, lines } = client(path);
    await swtpm.powerOn();
    expect(codeOf(await swtpm.execute(command(code)))).toBe(0x101);
    if (code === 2) {
      for (let i = 0; i < 20; i++) expect(codeOf(await swtpm.execute(command(1)))).toBe(0x101);
      await new Promise((resolve) => setTimeout(resolve, 4 * RETRY_MS));
      // One line, however often it was asked.
      expect(lines).toEqual([expect.stringMatching(/is gone: .*; TPM commands fail until it is back$/)]);
      first.kill('SIGKILL');
      await fakeSwtpm(path);
    }
    await until(() => lines.length === 2);
    expect(lines[1]).toMatch(/is back; its TPM was powered on$/);
    expect(codeOf(await swtpm.execute(command(1)))).toBe(0);
  });

  test('is not looked for once the VM is over', async () => {
    const path = join(scratch(), 's');
    await fakeSwtpm(path);
    const { swtpm, lines } = client(path);
    await swtpm.powerOn();
    await swtpm.execute(command(2));
    await swtpm.close();
    const { said } = await fakeSwtpm(path);
    await new Promise((resolve) => setTimeout(resolve, 4 * RETRY_MS));
    expect(said).toEqual(['listening']);
    expect(lines).toHaveLength(1);
  });
});

const hasSwtpm = spawnSync('swtpm', ['--version']).status === 0;
const STARTUP_CLEAR = Buffer.from('80010000000c000001440000', 'hex');
const SHUTDOWN_CLEAR = Buffer.from('80010000000c000001450000', 'hex');
/** PCR 11, an empty password, one SHA-256 digest. */
const EXTEND_PCR_11 = Buffer.from(
  `80020000004100000182${'0000000b'}${'00000009'}400000090000000000${'00000001'}${'000b'}${'11'.repeat(32)}`,
  'hex',
);
const READ_PCR_11 = Buffer.from('8001000000140000017e00000001000b03000800', 'hex');

describe.skipIf(!hasSwtpm)("Debian's swtpm", () => {
  function start(dir: string): Promise<ChildProcess> {
    const path = join(dir, 's');
    rmSync(path, { force: true });
    const words = ['socket', '--tpm2', '--tpmstate', `dir=${dir}`, '--ctrl', `type=unixio,path=${path}`];
    const child = spawn('swtpm', words, { stdio: 'ignore' });
    cleanups.push(() => void child.kill('SIGKILL'));
    return until(() => existsSync(path)).then(() => child);
  }

  const pcr = async (swtpm: Swtpm) =>
    Buffer.from(await swtpm.execute(READ_PCR_11))
      .subarray(-32)
      .toString('hex');

  test('extends a PCR, which a power cycle clears; started anew it is used again', async () => {
    const dir = scratch();
    const first = await start(dir);
    const { swtpm, lines } = client(join(dir, 's'));
    await swtpm.powerOn();
    expect(codeOf(await swtpm.execute(STARTUP_CLEAR))).toBe(0);
    expect(await pcr(swtpm)).toBe('00'.repeat(32));
    expect(codeOf(await swtpm.execute(EXTEND_PCR_11))).toBe(0);
    expect(await pcr(swtpm)).not.toBe('00'.repeat(32));
    swtpm.powerCycle();
    // TPM_RC_INITIALIZE: it was switched on, and wants its startup.
    expect(codeOf(await swtpm.execute(READ_PCR_11))).toBe(0x100);
    expect(codeOf(await swtpm.execute(STARTUP_CLEAR))).toBe(0);
    expect(await pcr(swtpm)).toBe('00'.repeat(32));
    first.kill('SIGKILL');
    await until(() => lines.length === 1);
    expect(codeOf(await swtpm.execute(READ_PCR_11))).toBe(0x101);
    const second = await start(dir);
    await until(() => lines.length === 2);
    expect(codeOf(await swtpm.execute(STARTUP_CLEAR))).toBe(0);
    expect(codeOf(await swtpm.execute(SHUTDOWN_CLEAR))).toBe(0);
    const ended = new Promise((resolve) => second.once('exit', resolve));
    await swtpm.close();
    expect(await ended).toBe(0);
  });
});
