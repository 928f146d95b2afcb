// What ch-client.sh runs beside the client it had made: each of its functions, once at least, against the program.
import { spawn } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { request } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { client } from './client/client.gen';
import * as sdk from './client/sdk.gen';

const operations = { ...sdk };
const repo = process.argv[2];
const scratch = mkdtempSync(join(tmpdir(), 'ch-client-'));
const socketPath = join(scratch, 'api.sock');
let failures = 0;
let passes = 0;
const called = new Set();

function check(what, isSo, seen = '') {
  if (isSo) passes++;
  else failures++;
  console.log(isSo ? `ok      ${what}` : `FAILED  ${what}: ${JSON.stringify(seen)}`);
}

/** `fetch` over the socket. */
async function overSocket(sent) {
  const body = sent.body === null ? undefined : Buffer.from(await sent.arrayBuffer());
  const { pathname, search } = new URL(sent.url);
  return new Promise((resolve, reject) => {
    const headers = Object.fromEntries(sent.headers);
    const going = request(
      { socketPath, method: sent.method, path: pathname + search, headers, agent: false },
      (answer) => {
        const parts = [];
        answer.on('data', (part) => parts.push(part));
        answer.on('end', () => {
          const given = Object.entries(answer.headers).map(([name, value]) => [name, String(value)]);
          const hasBody = answer.statusCode !== 204 && parts.length > 0;
          resolve(new Response(hasBody ? Buffer.concat(parts) : null, { status: answer.statusCode, headers: given }));
        });
      },
    );
    going.on('error', reject);
    going.end(body);
  });
}
client.setConfig({ baseUrl: 'http://localhost/api/v1', fetch: overSocket });

/** @returns status and answer. What does not fit the document is a failure of its own. */
async function call(operation, body) {
  called.add(operation);
  try {
    const { data, error, response } = await operations[operation](body === undefined ? {} : { body });
    return { status: response?.status, data: data ?? error };
  } catch (error) {
    check(`${operation} fits the document`, false, String(error.message ?? error));
    return { status: 0, data: undefined };
  }
}
async function gives(status, operation, body) {
  const got = await call(operation, body);
  check(`${operation}: ${status}`, got.status === status, got);
  return got.data;
}
async function until(what, isSo) {
  for (let tries = 0; tries < 300; tries++) {
    if (await isSo()) return check(what, true);
    await sleep(100);
  }
  return check(what, false);
}
async function state() {
  return (await call('getVmInfo')).data?.state;
}

const program = spawn(
  process.execPath,
  [join(repo, 'dist/acrn-dm.js'), '--api-socket', socketPath, '--hypervisor', 'soft'],
  {
    stdio: ['ignore', 'pipe', 'pipe'],
  },
);
let output = '';
program.stdout.on('data', (text) => (output += text));
program.stderr.on('data', (text) => (output += text));
const exited = new Promise((resolve) => program.once('exit', resolve));

const disk = join(scratch, 'disk.img');
const second = join(scratch, 'second.img');
writeFileSync(disk, Buffer.alloc(1 << 20));
writeFileSync(second, Buffer.alloc(1 << 20));
const serial = join(scratch, 'serial.log');
/** How often the guest was ready to be asked, in the lives of one VM. */
const lives = () => readFileSync(serial, 'latin1').split('button: waiting').length - 1;
const vmConfig = {
  cpus: { boot_vcpus: 1, max_vcpus: 1 },
  memory: { size: 134217728 },
  payload: { kernel: join(repo, 'examples/guest/demo.bzimage'), cmdline: 'demo=button' },
  disks: [{ path: disk, id: 'root' }, { id: 'later' }],
  rng: { src: '/dev/urandom' },
  serial: { mode: 'File', file: serial },
  console: { mode: 'Pty' },
};

try {
  await until('the program answers', async () => {
    try {
      return (await sdk.getVmmPing({})).response?.status === 200;
    } catch {
      return false;
    }
  });
  check('vmm.ping tells its process', Number((await gives(200, 'getVmmPing'))?.pid) === program.pid);
  await gives(404, 'getVmInfo');
  await gives(204, 'createVm', vmConfig);
  check('Created', (await state()) === 'Created');
  await gives(204, 'bootVm');
  check('Running', (await state()) === 'Running');
  await until('it is ready', () => lives() === 1);
  const info = await gives(200, 'getVmInfo');
  check('it is the VM that was created', info?.config?.payload?.cmdline === 'demo=button', info);
  check('the console is a pseudo terminal', /^\/dev\/pts\//.test(info?.config?.console?.file ?? ''), info?.config);
  const counters = await gives(200, 'getVmCounters');
  check('the disk counts', typeof counters?.root?.read_ops !== 'undefined', counters && Object.keys(counters));
  await gives(204, 'pauseVm');
  check('Paused', (await state()) === 'Paused');
  await gives(204, 'resumeVm');
  await gives(204, 'putVmResizeDisk', { id: 'root', desired_size: 2 << 20 });
  check('the image has grown', statSync(disk).size === 2 << 20);
  const added = await call('putVmAddDisk', { path: second, id: 'later' });
  check('vm.add-disk fills the empty slot', [200, 204].includes(added.status), added);
  await gives(501, 'putVmRemoveDevice', { id: 'root' });
  for (const [operation, body] of [
    ['putVmResize', { desired_vcpus: 2 }],
    ['putVmResizeZone', { id: 'mem0', desired_ram: 1 << 28 }],
    ['putVmAddDevice', { path: '/sys/bus/pci/devices/0000:00:02.0' }],
    ['putVmAddFs', { tag: 'share', socket: '/tmp/fs', num_queues: 1, queue_size: 1024 }],
    ['putVmAddGenericVhostUser', { socket: '/tmp/vu', queue_sizes: [64], virtio_id: 1, device_type: 1 }],
    ['putVmAddPmem', { file: disk }],
    ['putVmAddNet', { tap: 'tap0' }],
    ['putVmAddVsock', { cid: 3, socket: '/tmp/vsock' }],
    ['putVmAddVdpa', { path: '/dev/vhost-vdpa-0', num_queues: 1 }],
    ['putVmAddUserDevice', { socket: '/tmp/user' }],
    ['putVmSnapshot', { destination_url: 'file:///tmp/snap' }],
    ['putVmCoredump', { destination_url: 'file:///tmp/core' }],
    ['putVmRestore', { source_url: 'file:///tmp/snap' }],
    ['putVmReceiveMigration', { receiver_url: 'unix:/tmp/mig' }],
    ['putVmSendMigration', { destination_url: 'unix:/tmp/mig' }],
    ['putVmNmi', undefined],
  ]) {
    const refused = await gives(501, operation, body);
    check(`${operation} says why`, typeof refused?.detail === 'string', refused);
  }
  check('all that changed nothing', (await state()) === 'Running');
  await gives(204, 'rebootVm');
  await until('it runs again', async () => lives() === 2 && (await state()) === 'Running');
  await gives(204, 'powerButtonVm');
  await until('the button ends the guest, the process stays', async () => (await state()) === 'Shutdown');
  await gives(204, 'bootVm');
  await until('booted a second time', async () => lives() === 3 && (await state()) === 'Running');
  await gives(204, 'shutdownVm');
  await until('vm.shutdown ends it', async () => (await state()) === 'Shutdown');
  await gives(204, 'bootVm');
  await gives(204, 'deleteVm');
  await gives(404, 'getVmInfo');
  await gives(204, 'createVm', vmConfig);
  await gives(204, 'shutdownVmm');
  check('the process ends with 0', (await exited) === 0);
  const all = Object.keys(operations).filter((name) => typeof operations[name] === 'function');
  check(
    `all ${all.length} operations were called`,
    all.every((name) => called.has(name)),
    all.filter((name) => !called.has(name)),
  );
} finally {
  program.kill('SIGKILL');
  rmSync(scratch, { recursive: true, force: true });
}
if (failures > 0) console.log(output.slice(-2000));
console.log(`ch-client: ${passes} passed, ${failures} failed`);
process.exitCode = failures === 0 ? 0 : 1;
