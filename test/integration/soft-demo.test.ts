/** The built program boots the demo guest on the embedded hypervisor, as `npm start` does. */
import { afterEach, describe, expect, test } from 'vitest';
import { Program, softVm, whyNoSoftHypervisor } from '../support/program.ts';

const reason = whyNoSoftHypervisor();
if (reason !== undefined) console.log(`integration tests of the embedded hypervisor are skipped: ${reason}`);

const TIMEOUT_MS = 60_000;
const ivshmem = ['-s', '5,ivshmem,hv:/demo,2'];
const vuart = ['-s', '6,uart,vuart_idx:1'];

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
    const program = start('demo', 'demo=tour', ...ivshmem, ...vuart);
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
    const program = start('demo', 'demo=tour');
    const { code, stdout } = await program.exited;
    expect(stdout.match(/not found: give the VM one/g)).toHaveLength(2);
    expect(code).toBe(0);
  });

  test('what is typed on COM1 arrives by interrupt', async () => {
    const program = start('demo', 'demo=echo');
    await program.console('> ');
    program.type('hello\r');
    await program.console('echo: "hello"');
    program.type('exit\r');
    const { code, stdout } = await program.exited;
    expect(stdout).toContain('COM1 interrupts came');
    expect(code).toBe(0);
  });

  test.each(['cold', 'warm', 'kbd', 'triple'])('a %s reset brings the guest back', async (how) => {
    const program = start('demo', `demo=reboot,${how}`, ...ivshmem);
    const { code, stdout } = await program.exited;
    expect(stdout).toContain(`resetting (${how})`);
    expect(stdout).toContain('came back after a reset');
    expect(code).toBe(0);
  });

  test.each(['SIGINT', 'SIGHUP'] as const)('%s ends an idle VM in an orderly way', async (name) => {
    const program = start('demo', 'demo=idle');
    await program.console('idle: sleeping');
    program.signal(name);
    const { code, signal } = await program.exited;
    expect(signal).toBeNull();
    expect(code).toBe(0);
  });

  test('a kernel that is not there is one line and no VM', async () => {
    const program = new Program([...softVm('demo', '').slice(0, -5), '-k', '/no/such/kernel', 'demo']);
    running.push(program);
    const { code, stderr } = await program.exited;
    expect(code).not.toBe(0);
    expect(stderr).toContain('/no/such/kernel');
  });
});

describe.skipIf(reason !== undefined)('two User VMs', { timeout: TIMEOUT_MS }, () => {
  /** A region of our own, so that test runs side by side do not meet. */
  const region = ['-s', `5,ivshmem,hv:/test${process.pid},2`];

  test('exchange data and doorbells over one ivshmem region', async () => {
    const receiver = start('receiver', 'demo=ivshmem-recv', ...region);
    await receiver.console('ready to receive');
    const sender = start('sender', 'demo=ivshmem-send,ahoy', ...region);
    const [got, sent] = await Promise.all([receiver.exited, sender.exited]);
    expect(got.stdout).toMatch(/ivshmem-recv: peer \d+ wrote "ahoy" and rang vector 1/);
    expect(sent.stdout).toMatch(/ivshmem-send: peer \d+ rang back, vector 2: taken/);
    expect([got.code, sent.code]).toEqual([0, 0]);
  });
});
