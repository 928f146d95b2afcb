/** The built program boots the demo guest on the embedded hypervisor, as `npm start` does. */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { Program, softVm, whyNoSoftHypervisor } from '../support/program.ts';

const reason = whyNoSoftHypervisor();
if (reason !== undefined) console.log(`integration tests of the embedded hypervisor are skipped: ${reason}`);

const TIMEOUT_MS = 60_000;
/** VMs of one host see each other: names, regions and vUARTs of our own, so that test runs side by side do not meet. */
const tag = process.pid % 100_000;
const demo = `demo${tag}`;
const region = ['-s', `5,ivshmem,hv:/test${tag},2`];
const line = ['-s', `6,uart,vuart_idx:${1000 + (process.pid % 60_000)}`];

const running: Program[] = [];
function start(...args: Parameters<typeof softVm>): Program {
  const program = new Program(softVm(...args));
  running.push(program);
  return program;
}
afterEach(async () => {
  await Promise.all(running.splice(0).map((program) => program.end()));
});

describe.skipIf(reason !== undefined)('the demo guest on the embedded hypervisor', { timeout: TIMEOUT_MS }, () => {
  test('tours the machine, finds nothing wrong, powers off, status 0', async () => {
    const program = start(demo, 'demo=tour', ...region, ...line);
    const { code, stdout, stderr } = await program.exited;
    expect(stdout).toContain('1af4:1110'); // ivshmem
    expect(stdout).toContain('9710:9900'); // the vUART
    expect(stdout).toContain('MSI-X 8 vectors');
    expect(stdout).toContain('8 MSI-X interrupts came: good');
    expect(stdout).toContain('Goodbye');
    expect(stdout).not.toContain('WRONG');
    expect(stderr).not.toMatch(/error/i);
    expect(code).toBe(0);
  });

  test('without ivshmem and vUART it says how to get them', async () => {
    const program = start(demo, 'demo=tour');
    const { code, stdout } = await program.exited;
    expect(stdout.match(/not found: give the VM one/g)).toHaveLength(2);
    expect(code).toBe(0);
  });

  test('what is typed on COM1 arrives by interrupt', async () => {
    const program = start(demo, 'demo=echo');
    await program.console('> ');
    program.type('hello\r');
    await program.console('echo: "hello"');
    program.type('exit\r');
    const { code, stdout } = await program.exited;
    expect(stdout).toContain('COM1 interrupts came');
    expect(code).toBe(0);
  });

  test.each(['cold', 'warm', 'kbd'])('a %s reset brings the guest back', async (how) => {
    // The guest counts in shared memory; the second VM keeps the region while the first one is reset.
    const keeper = start(`keep${tag}`, 'demo=idle', ...region);
    await keeper.console('idle: sleeping');
    const program = start(`reset${tag}`, `demo=reboot,${how}`, ...region);
    const { code, stdout } = await program.exited;
    expect(stdout).toContain(`resetting (${how})`);
    expect(stdout).toContain('came back after a reset');
    expect(code).toBe(0);
  });

  test.each(['SIGINT', 'SIGHUP'] as const)('%s ends an idle VM in an orderly way', async (name) => {
    const program = start(demo, 'demo=idle');
    await program.console('idle: sleeping');
    program.signal(name);
    const { code, signal } = await program.exited;
    expect(signal).toBeNull();
    expect(code).toBe(0);
  });

  test('SIGTERM is a press of the power button, and a guest that listens has its time', async () => {
    const program = start(demo, 'demo=button,2');
    await program.console('button: waiting');
    program.signal('SIGTERM');
    await program.console('button: pressed');
    const { code, stdout } = await program.exited;
    expect(stdout).toContain('Goodbye');
    expect(code).toBe(0);
  });

  test('a kernel that is not there is one line and no VM', async () => {
    const program = new Program([...softVm(demo, '').slice(0, -5), '-k', '/no/such/kernel', demo]);
    running.push(program);
    const { code, stderr } = await program.exited;
    expect(code).not.toBe(0);
    expect(stderr).toContain('/no/such/kernel');
  });
});

describe.skipIf(reason !== undefined)('two User VMs', { timeout: TIMEOUT_MS }, () => {
  test('of one name: the second is refused in a line with status 69; a killed one is in nobody’s way', async () => {
    const first = start(demo, 'demo=idle');
    await first.console('idle: sleeping');
    const { code, stderr } = await start(demo, 'demo=idle').exited;
    const why = stderr.split('\n').find((text) => text.includes('runs already'));
    expect([code, why]).toEqual([69, `acrn-dm: a VM with the name "${demo}" runs already, as process ${first.pid}`]);
    first.signal('SIGKILL');
    await first.exited;
    const next = start(demo, 'demo=tour', ...region, ...line);
    expect((await next.exited).code).toBe(0);
  });

  test('exchange data and doorbells over one ivshmem region', async () => {
    const receiver = start(`to${tag}`, 'demo=ivshmem-recv', ...region);
    await receiver.console('ready to receive');
    const sender = start(`from${tag}`, 'demo=ivshmem-send,ahoy', ...region);
    const [got, sent] = await Promise.all([receiver.exited, sender.exited]);
    expect(got.stdout).toMatch(/ivshmem-recv: peer \d+ wrote "ahoy" and rang vector 1/);
    expect(sent.stdout).toMatch(/ivshmem-send: peer \d+ rang back, vector 2: taken/);
    expect([got.code, sent.code]).toEqual([0, 0]);
  });

  test('exchange lines over connected vUARTs', async () => {
    const answering = start(`echo${tag}`, 'demo=vuart-echo', ...line);
    await answering.console('waiting for a line');
    const asking = start(`ask${tag}`, 'demo=vuart-send,ahoy', ...line);
    const [echo, ask] = await Promise.all([answering.exited, asking.exited]);
    expect(echo.stdout).toContain('vuart-echo: got "ahoy", answering');
    expect(ask.stdout).toContain('vuart-send: answer "echo ahoy"');
    expect([echo.code, ask.code]).toEqual([0, 0]);
  });

  test('are wired by a scenario file', async () => {
    const directory = mkdtempSync(join(tmpdir(), 'acrn-dm-'));
    try {
      const [a, b] = [`a${tag}`, `b${tag}`];
      const scenario = join(directory, 'scenario.json');
      const vuarts = [
        { vm: a, index: 3, peer: { vm: b, index: 4 } },
        { vm: b, index: 4, peer: { vm: a, index: 3 } },
      ];
      writeFileSync(scenario, JSON.stringify({ vuarts }));
      const answering = start(a, 'demo=vuart-echo', '--scenario', scenario, '-s', '6,uart,vuart_idx:3');
      await answering.console('waiting for a line');
      const asking = start(b, 'demo=vuart-send,ahoy', '--scenario', scenario, '-s', '6,uart,vuart_idx:4');
      const [echo, ask] = await Promise.all([answering.exited, asking.exited]);
      expect(echo.stdout).toContain('got "ahoy"');
      expect(ask.stdout).toContain('answer "echo ahoy"');

      const stranger = start(b, 'demo=tour', '--scenario', scenario, '-s', '6,uart,vuart_idx:9');
      const refused = await stranger.exited;
      expect(refused.code).not.toBe(0);
      expect(refused.stderr).toContain('CREATE_VDEV');
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  });
});
