/** What becomes of the process once its guest is gone, by `--on-poweroff`, `--on-reboot` and `--on-crash`; and what is told of a crash. */
import { existsSync, readFileSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { defaultApiSocket } from '../../control/vm-paths.ts';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { Program, repository, softVm, whyNoSoftHypervisor } from '../support/program.ts';
import { scratchDirectory, until } from '../support/pty.ts';

let scratch: ReturnType<typeof scratchDirectory>;
let program: Program | undefined;
beforeEach(() => {
  scratch = scratchDirectory();
});
afterEach(async () => {
  await program?.end();
  scratch.remove();
});

interface Told {
  readonly status: number;
  // biome-ignore lint/suspicious/noExplicitAny: whatever the path answers
  readonly json: any;
}

function ask(method: string, path: string, body?: object, socketPath = scratch.file('api')): Promise<Told> {
  return new Promise((resolve, reject) => {
    const headers = { 'content-type': 'application/json' };
    const asked = request({ socketPath, method, path, headers, agent: false }, (answer) => {
      let text = '';
      answer.setEncoding('utf8').on('data', (part: string) => {
        text += part;
      });
      answer.on('end', () =>
        resolve({ status: answer.statusCode ?? 0, json: text === '' ? undefined : JSON.parse(text) }),
      );
    });
    asked.on('error', reject);
    asked.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

function start(words: string, ...options: string[]): Program {
  const name = `ae${process.pid % 100_000}`;
  program = new Program(softVm(name, words, '--api-socket', scratch.file('api'), ...options));
  return program;
}

async function hasEnded(socketPath?: string): Promise<void> {
  const deadlineMs = Date.now() + 40_000;
  for (;;) {
    const told = await ask('GET', '/v1/vm', undefined, socketPath).catch(() => undefined);
    if (told?.json.state === 'ended') return;
    if (Date.now() > deadlineMs) throw new Error(`the guest is still ${told?.json.state}`);
    await sleep(100);
  }
}

describe.skipIf(whyNoSoftHypervisor() !== undefined)('once the guest is gone', { timeout: 60_000 }, () => {
  test('it stays where that is asked for, and can begin anew', async () => {
    const { exited } = start('demo=idle,0', '--on-poweroff', 'stay');
    await hasEnded();
    expect((await ask('GET', '/api/v1/vm.info')).json).toMatchObject({ state: 'Shutdown' });
    expect((await ask('PUT', '/api/v1/vm.boot')).status).toBe(204);
    await hasEnded();
    expect((await ask('PUT', '/api/v1/vmm.shutdown')).status).toBe(204);
    expect((await exited).code).toBe(ExitCode.Ok);
  });

  test('a crash is told as long as the process is there, and written down', async () => {
    const dump = scratch.file('crash.json');
    // The guest counts its lives there.
    const shared = ['-s', `5,ivshmem,hv:/ae${process.pid},2`];
    const { exited } = start('demo=reboot,triple', ...shared, '--on-crash', 'stay', '--crash-dump', dump);
    await hasEnded();
    const { json } = await ask('GET', '/v1/vm/crash');
    expect(json).toMatchObject({ cause: 'triple-fault', hypervisor: 'soft', memoryBytes: 128 * 1024 * 1024 });
    expect(json.vcpus[0]).toMatch(/eip/);
    expect(json.consoles.com1).toContain('reboot');
    await until(() => existsSync(dump) && readFileSync(dump, 'utf8').endsWith('}\n'), 'the file');
    expect(JSON.parse(readFileSync(dump, 'utf8'))).toEqual(json);
    expect((await ask('PUT', '/api/v1/vmm.shutdown')).status).toBe(204);
    expect((await exited).code).toBe(ExitCode.Ok);
  });

  test.each(['SIGTERM', 'SIGINT'] as const)('%s is for the process, which ends with its guest', async (signal) => {
    const vm = start('demo=button', '--on-poweroff', 'stay');
    await vm.console('button: waiting');
    vm.signal(signal);
    expect((await vm.exited).code).toBe(ExitCode.Ok);
  });

  test('an API in the folder of one name is not that of another', async () => {
    const name = `ae${process.pid % 100_000}`;
    program = new Program(softVm(name, 'demo=idle,0', '--on-poweroff', 'stay'));
    const at = defaultApiSocket(name);
    await until(() => existsSync(at), 'the API');
    await hasEnded(at);
    expect((await ask('PUT', '/api/v1/vm.delete', undefined, at)).status).toBe(204);
    const payload = { kernel: join(repository, 'examples/guest/demo.bzimage'), cmdline: 'demo=idle,0' };
    const create = (acrn: object) => ask('PUT', '/api/v1/vm.create', { payload, acrn }, at);
    expect(await create({ name: `${name}-other` })).toMatchObject({
      status: 501,
      json: { type: 'urn:acrn-dm:impossible' },
    });
    expect(await create({ name })).toMatchObject({ status: 204 });
  });

  test('without a crash there is nothing to tell', async () => {
    start('demo=idle,0', '--on-poweroff', 'stay');
    await hasEnded();
    expect(await ask('GET', '/v1/vm/crash')).toMatchObject({ status: 404 });
  });

  test.each([
    ['idle,0', ExitCode.Ok],
    ['reboot,triple', ExitCode.TripleFault],
  ])('demo=%s: it ends, as it did without an API', async (words, code) => {
    expect((await start(`demo=${words}`, '-s', `5,ivshmem,hv:/ae${process.pid},2`).exited).code).toBe(code);
    expect(existsSync(scratch.file('api'))).toBe(false);
  });
});
