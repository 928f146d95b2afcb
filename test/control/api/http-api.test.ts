/** The API over a real socket: what clients of both dialects get, and what hostile ones do not. */
import { createServer, request as httpRequest } from 'node:http';
import { connect, type Socket } from 'node:net';
import * as v from 'valibot';
import { afterEach, describe, expect, test } from 'vitest';
import { cloudHypervisorRoutes } from '../../../control/api/cloud-hypervisor.ts';
import { type ApiOptions, createApi } from '../../../control/api/http-api.ts';
import { ownRoutes } from '../../../control/api/resources.ts';
import { STREAM_TYPE } from '../../../control/api/routes.ts';
import { ThreadLag } from '../../../control/api/thread-lag.ts';
import { openApiDoor } from '../../../control/api-door.ts';
import { crashReport } from '../../../control/crash-report.ts';
import {
  AccessCount,
  ConsoleCount,
  NetCount,
  tally,
  tallyRead,
  tallyWrite,
} from '../../../devicemodel/core/counters.ts';
import { ConfigError, RefusedError } from '../../../devicemodel/core/errors.ts';
import { FakeVmm } from '../../support/fake-vmm.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { scratchDirectory, until } from '../../support/pty.ts';

const cleanUp: Array<() => unknown> = [];
afterEach(async () => {
  for (const step of cleanUp.splice(0).reverse()) await step();
});

async function serve(limits?: ApiOptions['limits']) {
  const scratch = scratchDirectory();
  cleanUp.push(() => scratch.remove());
  const path = scratch.file('api.sock');
  const vmm = new FakeVmm();
  const { log, lines } = memoryLog();
  if (limits === undefined) {
    const door = await openApiDoor({ at: { kind: 'path', path }, vmm, log });
    cleanUp.push(() => door.close());
    return { vmm, path, lines, close: () => door.close() };
  }
  const api = createApi({ vmm, log, limits });
  const server = (await import('node:net')).createServer({ allowHalfOpen: true, pauseOnConnect: true }, (socket) =>
    api.accept(socket),
  );
  await new Promise<void>((resolve) => server.listen(path, resolve));
  cleanUp.push(async () => {
    server.close();
    await api.close();
  });
  return { vmm, path, lines, close: () => api.close() };
}

interface Reply {
  readonly status: number;
  readonly type: string;
  readonly text: string;
  // biome-ignore lint/suspicious/noExplicitAny: whatever the path answers
  readonly json: any;
  readonly headers: NodeJS.Dict<string | string[]>;
}

function ask(socketPath: string, method: string, path: string, body?: unknown, headers = {}): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ socketPath, method, path, headers, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => {
        text += part;
      });
      response.on('end', () => {
        const type = response.headers['content-type'] ?? '';
        const json = text !== '' && type.includes('json') ? JSON.parse(text) : undefined;
        resolve({ status: response.statusCode ?? 0, type, text, json, headers: response.headers });
      });
    });
    request.on('error', reject);
    request.end(body === undefined ? undefined : typeof body === 'string' ? body : JSON.stringify(body));
  });
}

/** A connection by hand. */
function raw(path: string): { readonly socket: Socket; readonly seen: () => string; readonly isClosed: () => boolean } {
  const socket = connect(path);
  let seen = '';
  let isClosed = false;
  socket.on('data', (data) => {
    seen += data.toString('latin1');
  });
  socket.on('error', () => {});
  socket.on('close', () => {
    isClosed = true;
  });
  cleanUp.push(() => socket.destroy());
  return { socket, seen: () => seen, isClosed: () => isClosed };
}

describe("Cloud Hypervisor's dialect", () => {
  test('says who is there, and what the VM is, with the pseudo terminal of its console', async () => {
    const { path } = await serve();
    expect((await ask(path, 'GET', '/api/v1/vmm.ping')).json).toMatchObject({ version: '38.0.0', pid: process.pid });
    const info = await ask(path, 'GET', '/api/v1/vm.info');
    expect(info).toMatchObject({ status: 200, type: 'application/json' });
    expect(info.json).toMatchObject({
      state: 'Running',
      memory_actual_size: 1 << 28,
      config: { payload: { kernel: 'k' }, serial: { mode: 'Pty', file: '/dev/pts/7' } },
    });
  });

  test.each([
    ['vm.pause', 'pause'],
    ['vm.resume', 'resume'],
    ['vm.shutdown', 'patient shutdown: asked by the API'],
    ['vm.reboot', 'reset: asked by the API'],
    ['vm.power-button', 'power button'],
  ])('%s is a command of the VM', async (name, call) => {
    const { path, vmm } = await serve();
    expect(await ask(path, 'PUT', `/api/v1/${name}`)).toMatchObject({ status: 204, text: '' });
    expect(vmm.asked).toEqual([call]);
    vmm.isBooted = false;
    expect(await ask(path, 'PUT', `/api/v1/${name}`)).toMatchObject({
      status: 405,
      json: { type: 'urn:acrn-dm:not-booted' },
    });
    vmm.config = undefined;
    expect(await ask(path, 'PUT', `/api/v1/${name}`)).toMatchObject({ status: 404 });
  });

  test('a guest in S3 is paused, and resumed by being woken', async () => {
    const { path, vmm } = await serve();
    vmm.state = 'suspended';
    expect((await ask(path, 'GET', '/api/v1/vm.info')).json.state).toBe('Paused');
    await ask(path, 'PUT', '/api/v1/vm.resume');
    expect(vmm.asked).toEqual(['wake']);
  });

  test.each([
    ['/api/v1/vmm.ping', 200],
    ['/v1/vm', 200],
    ['/v1/metrics', 200],
    ['/v1/openapi.json', 200],
    ['/v1/nothing', 404],
    ['/api/v1/vm.boot', 405],
    ['/v1/log/stream', 405],
  ])('HEAD %s is %i, as GET without a body', async (of, status) => {
    const { path } = await serve();
    const head = await ask(path, 'HEAD', of);
    expect(head).toMatchObject({ status, text: '' });
    if (status === 200) expect(head.type).toBe((await ask(path, 'GET', of)).type);
  });

  test('a VM is created, booted, deleted, and the process ended', async () => {
    const { path, vmm } = await serve();
    vmm.isBooted = false;
    vmm.config = undefined;
    expect((await ask(path, 'GET', '/api/v1/vm.info')).status).toBe(404);
    expect((await ask(path, 'PUT', '/api/v1/vm.boot')).status).toBe(404);
    expect((await ask(path, 'PUT', '/api/v1/vm.create', { kernel: { path: 'k' } })).status).toBe(204);
    expect((await ask(path, 'GET', '/api/v1/vm.info')).json).toEqual({
      state: 'Created',
      config: { kernel: { path: 'k' } },
    });
    expect((await ask(path, 'PUT', '/api/v1/vm.boot')).status).toBe(204);
    expect((await ask(path, 'PUT', '/api/v1/vm.delete')).status).toBe(204);
    expect((await ask(path, 'PUT', '/api/v1/vmm.shutdown')).status).toBe(204);
    await until(() => vmm.calls.includes('quit'), 'quit, once the answer was given');
    expect(vmm.calls).toEqual(['create', 'boot', 'remove', 'quit']);
  });

  test('a disk goes into the slot that waits for one, which is then taken', async () => {
    const { path, vmm } = await serve();
    const added = await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', readonly: true });
    expect(added).toMatchObject({ status: 200, json: { id: '_disk4', bdf: '0000:00:04.0' } });
    expect(vmm.asked).toEqual(['blkrescan 0:4:0,/dev/null,ro']);
    expect(await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null' })).toMatchObject({ status: 409 });
    expect((await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/nonexistent' })).status).toBe(400);
    expect((await ask(path, 'PUT', '/api/v1/vm.add-disk', {})).status).toBe(400);
  });

  // Mutation: without addedIds the name is answered once, and known to nobody afterwards.
  test('a disk keeps the name it was added by', async () => {
    const { path, vmm } = await serve();
    const add = (id: string) => ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', id });
    expect(await add('_disk3')).toMatchObject({
      status: 400,
      json: { detail: 'id: another device is called "_disk3"' },
    });
    expect(await add('data0')).toMatchObject({ status: 200, json: { id: 'data0' } });
    const resize = (id: string) => ask(path, 'PUT', '/api/v1/vm.resize-disk', { id, desired_size: 4096 });
    expect((await resize('data0')).status).toBe(204);
    expect((await resize('_disk4')).status).toBe(404);
    expect(vmm.asked).toEqual(['blkrescan 0:4:0,/dev/null', 'size of 0:4:0: 4096']);
  });

  test('of a disk that is added, too, what there is not is refused, and how the host shall go about it is not', async () => {
    const { path, vmm } = await serve();
    expect(await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', vhost_user: true })).toMatchObject({
      status: 501,
      json: { detail: 'vhost_user: there is nothing of that kind here' },
    });
    expect(vmm.asked).toEqual([]);
    const plain = { path: '/dev/null', num_queues: 4, vhost_user: false, rate_limiter_config: null };
    expect((await ask(path, 'PUT', '/api/v1/vm.add-disk', plain)).status).toBe(200);
  });

  // vm.create takes them, and one vocabulary is both's.
  test.each([
    [{ id: 'later' }, 'the one of that name'],
    [{}, 'whichever is empty'],
  ])('a disk that was left empty by a name has it: %j, %s', async (id, _which) => {
    const { path, vmm } = await serve();
    vmm.config = { disks: [{ id: 'root', path: '/a' }, { id: 'later' }] };
    const added = await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', ...id });
    expect(added).toMatchObject({ status: 200, json: { id: 'later', bdf: '0000:00:04.0' } });
    const taken = await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', id: 'root' });
    expect(taken).toMatchObject({ status: 400 });
  });

  test.each([
    { backing_files: [] },
    { backing_files: 'off' },
    { vhost_user: 0 },
    { rate_limiter_config: { bandwidth: { size: 0, refill_time: 0 } } },
    { vhost_socket: null, iommu: false },
  ])('what a disk that is added says of what there is not, to switch it off, is nothing: %j', async (more) => {
    const { path } = await serve();
    expect((await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', ...more })).status).toBe(200);
  });

  test('a disk that is added bypasses the page cache if it shall, and is a raw image', async () => {
    const { path, vmm } = await serve();
    for (const more of [{ image_type: 'Qcow2' }, { image_type: 'Vhdx' }, { image_type: 7 }, { backing_files: true }]) {
      const [name] = Object.keys(more);
      expect(await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', ...more })).toMatchObject({
        status: 501,
        json: { detail: expect.stringContaining(`${name}: `) },
      });
    }
    expect(await ask(path, 'PUT', '/api/v1/vm.add-disk', { path: '/dev/null', direct: 'on' })).toMatchObject({
      status: 400,
    });
    expect(vmm.asked).toEqual([]);
    const raw = { path: '/dev/null', readonly: true, direct: true, image_type: 'Raw', backing_files: false };
    expect((await ask(path, 'PUT', '/api/v1/vm.add-disk', raw)).status).toBe(200);
    expect(vmm.asked).toEqual(['blkrescan 0:4:0,/dev/null,ro,nocache']);
  });

  test.each(['vm.add-net', 'vm.snapshot', 'vm.resize', 'vm.coredump', 'vm.send-migration'])(
    '%s is said not to be possible',
    async (name) => {
      const { path } = await serve();
      const reply = await ask(path, 'PUT', `/api/v1/${name}`, {});
      expect(reply).toMatchObject({
        status: 501,
        type: 'application/problem+json',
        json: { status: 501, title: 'Not possible here' },
      });
    },
  );
});

describe('what goes wrong is told as RFC 9457 has it', () => {
  test('a path, a method, a body', async () => {
    const { path } = await serve();
    expect(await ask(path, 'GET', '/nothing')).toMatchObject({
      status: 404,
      json: { type: 'urn:acrn-dm:no-such-path' },
    });
    expect(await ask(path, 'GET', '/api/v1/vm.boot')).toMatchObject({ status: 405, headers: { allow: 'PUT' } });
    expect(await ask(path, 'PUT', '/api/v1/vm.create', '{"a"')).toMatchObject({
      status: 400,
      json: { type: 'urn:acrn-dm:not-json' },
    });
    for (const [open, close] of [
      ['[', ']'],
      ['{"a":', '}'],
    ] as const) {
      const nested = (levels: number) => `${open.repeat(levels)}1${close.repeat(levels)}`;
      expect(await ask(path, 'PUT', '/v1/vm/power', nested(65))).toMatchObject({
        status: 400,
        json: { detail: 'the body has more than 64 levels' },
      });
      expect(await ask(path, 'PUT', '/v1/vm/power', nested(64))).toMatchObject({ status: 422 });
    }
    // Brackets in a text are none, behind an escaped quote either.
    const text = JSON.stringify({ action: `"${'['.repeat(100)}\\` });
    expect(await ask(path, 'PUT', '/v1/vm/power', text)).toMatchObject({ status: 422 });
    expect(await ask(path, 'PUT', '/api/v1/vm.create', [1])).toMatchObject({ status: 422 });
    expect(await ask(path, 'PUT', '/v1/vm/power', { action: 'fly' })).toMatchObject({ status: 422 });
    expect(await ask(path, 'PUT', '/v1/vm/power', {})).toMatchObject({
      status: 422,
      json: { detail: 'action: is missing' },
    });
  });

  test('with the text, hint and exit status that the command line has', async () => {
    const { path, vmm } = await serve();
    vmm.create = async () => {
      throw new ConfigError('memory: "1" has no unit', { hint: 'write 128m' });
    };
    expect((await ask(path, 'PUT', '/api/v1/vm.create', {})).json).toEqual({
      type: 'urn:acrn-dm:config',
      title: 'Cannot be',
      status: 422,
      detail: 'memory: "1" has no unit',
      hint: 'write 128m',
      exitStatus: 64,
    });
    vmm.boot = async () => {
      throw new RefusedError('wrong-state', 'the VM runs already');
    };
    expect((await ask(path, 'PUT', '/api/v1/vm.boot')).status).toBe(405);
    vmm.boot = async () => {
      throw new TypeError('a mistake of ours');
    };
    expect(await ask(path, 'PUT', '/api/v1/vm.boot')).toMatchObject({
      status: 500,
      json: { type: 'urn:acrn-dm:internal' },
    });
  });
});

describe('resources of our own', () => {
  test('the VM, its devices, its consoles', async () => {
    const { path } = await serve();
    expect((await ask(path, 'GET', '/v1/vm')).json).toMatchObject({
      name: 'vm1',
      state: 'running',
      hypervisor: 'soft',
    });
    expect((await ask(path, 'GET', '/v1/devices')).json).toContainEqual({
      slot: '0:3:0',
      driver: 'virtio-blk',
      options: 'disk.img',
    });
    expect((await ask(path, 'GET', '/v1/consoles')).json).toEqual([{ id: 'com1', backend: 'pty /dev/pts/7' }]);
    expect((await ask(path, 'GET', '/v1/consoles/com1')).text).toBe('login: ');
    expect((await ask(path, 'GET', '/v1/consoles/com9')).json).toMatchObject({ status: 404, hint: 'there are com1' });
  });

  test.each([
    ['shutdown', 'patient shutdown: asked by the API'],
    ['off', 'poweroff: asked by the API'],
    ['reset', 'reset: asked by the API'],
    ['wake', 'wake'],
    ['button', 'power button'],
  ])('power %s', async (action, call) => {
    const { path, vmm } = await serve();
    if (action === 'wake') vmm.state = 'suspended';
    expect((await ask(path, 'PUT', '/v1/vm/power', { action })).status).toBe(204);
    expect(vmm.asked).toEqual([call]);
  });

  // Mutation: 204 for an order that nobody hears.
  test.each([
    ['/v1/vm/power', { action: 'wake' }, 'running', 409, undefined],
    ['/v1/vm/power', { action: 'wake' }, 'paused', 409, undefined],
    ['/v1/vm/power', { action: 'button' }, 'paused', 409, 'resume it first'],
    ['/v1/vm/power', { action: 'button' }, 'suspended', 409, 'wake it first'],
    ['/v1/vm/power', { action: 'button' }, 'created', 409, undefined],
    ['/api/v1/vm.power-button', undefined, 'paused', 405, 'resume it first'],
    ['/api/v1/vm.power-button', undefined, 'suspended', 405, 'wake it first'],
    ['/v1/vm/power', { action: 'shutdown', force: true }, 'running', 422, undefined],
    ['/v1/vm/power', { action: 'reset', force: false }, 'running', 422, undefined],
  ] as const)('%s %j of a guest that is %s: %i', async (where, body, state, status, hint) => {
    const { path, vmm } = await serve();
    vmm.state = state;
    const reply = await ask(path, 'PUT', where, body);
    expect([reply.status, reply.json.hint]).toEqual([status, hint]);
    expect(vmm.asked).toEqual([]);
  });

  test('metrics are in the format that Prometheus reads', async () => {
    const { path } = await serve();
    const { text, type } = await ask(path, 'GET', '/v1/metrics');
    expect(type).toContain('version=0.0.4');
    for (const line of text.trimEnd().split('\n')) {
      expect(line).toMatch(/^(# (HELP|TYPE) \w+ .+|[a-z_]+(\{(\w+="[^"]*",?)+\})? \d+(\.\d+)?(e[+-]\d+)?)$/);
    }
    expect(text).toContain('acrn_vm_state{state="running"} 1');
    for (const line of ['_bucket{le="0.25"} 0', '_bucket{le="+Inf"} 0', '_sum 0', '_count 0']) {
      expect(text).toContain(`\nacrn_device_thread_lag_seconds${line}\n`);
    }
  });

  test.each([
    [false, 'created'],
    [true, 'ended'],
  ])('a guest that has run (%j) and is not there is %s, in the metrics too', async (hasRun, state) => {
    const { path, vmm } = await serve();
    Object.assign(vmm, { isBooted: false, hasRun });
    expect((await ask(path, 'GET', '/v1/vm')).json).toMatchObject({ state });
    const { text } = await ask(path, 'GET', '/v1/metrics');
    expect(text.match(/^acrn_vm_state\{.* 1$/gm)).toEqual([`acrn_vm_state{state="${state}"} 1`]);
    vmm.config = undefined;
    expect((await ask(path, 'GET', '/v1/metrics')).text).not.toMatch(/^acrn_vm_state\{.* 1$/m);
  });

  test("what devices counted is in the metrics, in both forms, and in Cloud Hypervisor's words", async () => {
    const { path, vmm } = await serve();
    tallyRead(vmm.counters.of('disk', '00:03.0').own, 4096);
    tallyWrite(vmm.counters.of('disk', '00:05.0@1').ofThread(0), 512);
    tally(vmm.counters.of('net', '00:07.0').own, NetCount.rxFrames, 3);
    tally(vmm.counters.of('console', 'com1').own, ConsoleCount.outBytes, 7);
    tally(vmm.counters.of('accesses', 'vm').own, AccessCount.pciReads, 2);
    const { text } = await ask(path, 'GET', '/v1/metrics');
    expect(text.split('\n')).toEqual(
      expect.arrayContaining([
        '# TYPE acrn_disk_ops_total counter',
        'acrn_disk_ops_total{device="00:03.0",op="read"} 1',
        'acrn_disk_bytes_total{device="00:03.0",op="read"} 4096',
        'acrn_disk_bytes_total{device="00:05.0@1",op="write"} 512',
        'acrn_net_frames_total{device="00:07.0",direction="rx"} 3',
        'acrn_console_bytes_total{console="com1",direction="out"} 7',
        'acrn_io_requests_total{type="pci",op="read"} 2',
      ]),
    );
    const asJson = await ask(path, 'GET', '/v1/metrics', undefined, { accept: 'application/json' });
    expect(asJson.json).toContainEqual(
      expect.objectContaining({
        name: 'acrn_disk_errors_total',
        type: 'counter',
        samples: [
          { labels: { device: '00:03.0' }, value: 0 },
          { labels: { device: '00:05.0@1' }, value: 0 },
        ],
      }),
    );
    expect((await ask(path, 'GET', '/v1/counters')).json).toContainEqual(
      expect.objectContaining({ kind: 'net', id: '00:07.0', rxFrames: 3 }),
    );
    vmm.config = { disks: [{ path: 'disk.img', id: 'root' }, { id: 'empty' }] };
    expect((await ask(path, 'GET', '/api/v1/vm.counters')).json).toEqual({
      root: { read_ops: 1, read_bytes: 4096, write_ops: 0, write_bytes: 0 },
      _ahci_cd5_1: { read_ops: 0, read_bytes: 0, write_ops: 1, write_bytes: 512 },
      '00:07.0': { rx_frames: 3, rx_bytes: 0, tx_frames: 0, tx_bytes: 0 },
    });
  });

  test('a disk is made larger, by its name or by its slot', async () => {
    const { path, vmm } = await serve();
    expect((await ask(path, 'PUT', '/api/v1/vm.resize-disk', { id: '_disk3', desired_size: 8192 })).status).toBe(204);
    expect((await ask(path, 'PUT', '/v1/devices/3/size', {})).json).toEqual({ sizeBytes: 4096 });
    expect(vmm.asked).toEqual(['size of 0:3:0: 8192', 'size of 3: as it is']);
    const missing = await ask(path, 'PUT', '/api/v1/vm.resize-disk', { id: '_disk9', desired_size: 8192 });
    expect(missing.json).toMatchObject({ status: 404, hint: expect.stringContaining('_disk3'), exitStatus: 69 });
    const noSize = await ask(path, 'PUT', '/api/v1/vm.resize-disk', { id: '_disk3' });
    expect(noSize.json).toMatchObject({ status: 404, detail: 'desired_size: is missing', exitStatus: 69 });
  });

  test('remove-device takes media out, and says why nothing else goes', async () => {
    const { path, vmm } = await serve();
    expect((await ask(path, 'PUT', '/api/v1/vm.remove-device', { id: '_ahci_cd5' })).status).toBe(204);
    expect(vmm.asked).toEqual(['medium of 0:5:0 port 0: out']);
    const refused = await ask(path, 'PUT', '/api/v1/vm.remove-device', { id: '_disk3' });
    expect(refused.json).toMatchObject({ status: 501, detail: expect.stringContaining('virtio-blk') });
  });

  test.each([
    ['vm/power', { action: 'off', Force: true }, 'Force'],
    ['devices/3/size', { sizebytes: 1 << 30 }, 'sizebytes'],
    ['devices/5/disk', { path: '/cd.iso', readonly: true }, 'readonly'],
    ['devices/4/link', { up: false, forS: 3 }, 'forS'],
    ['log', { level: 'debug', sinks: 'console' }, 'sinks'],
  ])('PUT %s with %j: a member that is not there is no word to pass over', async (what, body, member) => {
    const { path, vmm } = await serve();
    expect(await ask(path, 'PUT', `/v1/${what}`, body)).toMatchObject({
      status: 422,
      json: { type: 'urn:acrn-dm:member', detail: `${member}: there is no such member` },
    });
    expect(vmm.asked).toEqual([]);
  });

  test('a cable comes out and goes in', async () => {
    const { path, vmm } = await serve();
    expect((await ask(path, 'PUT', '/v1/devices/4/link', { up: false })).status).toBe(204);
    expect((await ask(path, 'PUT', '/v1/devices/4/link', { up: 'no' })).status).toBe(422);
    expect(vmm.asked).toEqual(['link of 4: down']);
    expect(vmm.events.since(0)).toMatchObject([{ source: 'net', event: 'link-down' }]);
  });

  test('what is known of a guest that was given up', async () => {
    const { path, vmm } = await serve();
    expect((await ask(path, 'GET', '/v1/vm/crash')).status).toBe(404);
    const guest = vmm.guest as NonNullable<typeof vmm.guest>;
    vmm.crash = crashReport({ cause: 'watchdog', vcpus: ['eip 0'] }, guest, []);
    expect((await ask(path, 'GET', '/v1/vm/crash')).json).toMatchObject({
      cause: 'watchdog',
      name: 'vm1',
      vcpus: ['eip 0'],
      consoles: { com1: 'login: ' },
    });
  });

  test('the log: its newest lines, its level, and a sink there is not', async () => {
    const { path, vmm } = await serve();
    vmm.logTail.write('notice', 'paused');
    expect((await ask(path, 'GET', '/v1/log')).json).toMatchObject({
      levels: [{ sink: 'console', level: 4 }],
      lines: [{ seq: 1, level: 'notice', message: 'paused' }],
    });
    expect((await ask(path, 'PUT', '/v1/log', { level: 'debug', sink: 'console' })).status).toBe(200);
    expect((await ask(path, 'PUT', '/v1/log', { level: 'debug', sink: 'kmsg' })).status).toBe(409);
    expect((await ask(path, 'PUT', '/v1/log', { level: 7 })).status).toBe(422);
  });

  test('the OpenAPI document has every path', async () => {
    const { path } = await serve();
    const { json } = await ask(path, 'GET', '/v1/openapi.json');
    expect(json.openapi).toBe('3.1.0');
    expect(Object.keys(json.paths)).toContain('/api/v1/vm.create');
    expect(json.paths['/v1/consoles/{id}'].get.parameters).toHaveLength(1);
    const ids = Object.values(json.paths as Record<string, Record<string, { operationId: string }>>).flatMap((path) =>
      Object.values(path).map(({ operationId }) => operationId),
    );
    expect(new Set(ids).size).toBe(ids.length);
  });

  test('the document says what may stand behind a path, and what is taken for it', async () => {
    const { path } = await serve();
    const { json } = await ask(path, 'GET', '/v1/openapi.json');
    const of = (where: string) =>
      (json.paths[where].get.parameters as { in: string; name: string }[]).map((each) => `${each.in} ${each.name}`);
    expect(of('/v1/events')).toEqual(['query since', 'query wait', 'header Last-Event-ID']);
    expect(of('/v1/log/stream')).toEqual(['query since', 'header Last-Event-ID']);
    expect(of('/v1/consoles/{id}/stream')).toEqual(['path id', 'query history']);
    const kindsOf = (where: string) => Object.keys(json.paths[where].get.responses[200].content);
    expect(kindsOf('/v1/events')).toEqual(['text/event-stream', 'application/json']);
    expect(kindsOf('/v1/metrics')).toEqual(['text/plain', 'application/json']);
  });

  test('the document says of bodies what they are checked by', async () => {
    const { path } = await serve();
    const { json } = await ask(path, 'GET', '/v1/openapi.json');
    const bodyOf = (where: string) => json.paths[where].put.requestBody.content['application/json'].schema;
    expect(bodyOf('/v1/vm/power')).toEqual({
      type: 'object',
      additionalProperties: false,
      required: ['action'],
      properties: {
        action: { enum: ['shutdown', 'off', 'reset', 'wake', 'button'] },
        force: { type: 'boolean' },
      },
    });
    expect(bodyOf('/api/v1/vm.create').properties).toMatchObject({
      memory: { type: 'object', required: ['size'], properties: { size: { type: 'number' } } },
      disks: { anyOf: [{ type: 'array' }, { type: 'null' }] },
    });
  });

  test('each answer is what the document says of it', async () => {
    const { path, vmm } = await serve();
    const guest = vmm.guest as NonNullable<typeof vmm.guest>;
    tallyRead(vmm.counters.of('disk', '00:03.0').own, 512);
    vmm.events.emit('vm', 'paused', { why: 'a test' });
    vmm.logTail.write('info', 'a line');
    vmm.crash = crashReport({ cause: 'triple-fault', vcpus: ['eip 0'] }, guest, vmm.logTail.lines);
    let looked = 0;
    for (const route of [...cloudHypervisorRoutes(vmm), ...ownRoutes(vmm, new ThreadLag(), async () => ({}))]) {
      if (route.method !== 'GET' || route.answer === undefined) continue;
      const at = route.type === STREAM_TYPE ? `${route.path}?wait=0` : route.path;
      const { json, status } = await ask(path, 'GET', at, undefined, { accept: 'application/json' });
      expect([route.path, status, v.safeParse(route.answer, json).issues]).toEqual([route.path, 200, undefined]);
      looked++;
    }
    expect(looked).toBeGreaterThan(10);
  });

  test('every problem has what its description in the document asks for', async () => {
    const { path } = await serve();
    for (const [method, where, body] of [
      ['GET', '/nowhere', undefined],
      ['PUT', '/v1/vm/power', { action: 'jump' }],
      ['PUT', '/v1/vm/power', '{'],
      ['PUT', '/v1/devices/9/link', { up: true }],
      ['PUT', '/api/v1/vm.snapshot', {}],
    ] as const) {
      const { json, type } = await ask(path, method, where, body);
      expect(type).toContain('application/problem+json');
      expect(json).toMatchObject({
        type: expect.stringMatching(/^urn:acrn-dm:/),
        title: expect.any(String),
        detail: expect.any(String),
        status: expect.any(Number),
        exitStatus: expect.any(Number),
      });
    }
  });
});

describe('requests in one packet', () => {
  const put = (where: string, body = '') =>
    `PUT ${where} HTTP/1.1\r\nHost: vm\r\nContent-Length: ${body.length}\r\n\r\n${body}`;

  test('are served in their order, however long the first one takes', async () => {
    const { path, vmm } = await serve();
    vmm.isBooted = false;
    vmm.config = undefined;
    const { create } = vmm;
    let go = () => {};
    vmm.create = async (config) => {
      await new Promise<void>((resolve) => {
        go = resolve;
      });
      await create.call(vmm, config);
    };
    const client = raw(path);
    client.socket.write(put('/api/v1/vm.create', '{"payload":{"kernel":"k"}}') + put('/api/v1/vm.boot'));
    // Somebody else is not behind them.
    expect((await ask(path, 'PUT', '/api/v1/vm.boot')).status).toBe(404);
    expect((await ask(path, 'GET', '/api/v1/vmm.ping')).status).toBe(200);
    go();
    await until(() => client.seen().split(' 204 ').length === 3, 'both answers');
    expect(vmm.calls).toEqual(['create', 'boot']);
  });

  // Mutation: without a hold all of them are read, and kept until the first is answered.
  test('that wait behind a slow one are few; what follows stays with the client, and is served', async () => {
    const { path, vmm } = await serve();
    vmm.isBooted = false;
    vmm.config = undefined;
    let go = () => {};
    const { create } = vmm;
    vmm.create = async (config) => {
      await new Promise<void>((resolve) => {
        go = resolve;
      });
      await create.call(vmm, config);
    };
    const client = raw(path);
    client.socket.write(put('/api/v1/vm.create', '{"payload":{"kernel":"k"}}'));
    const COUNT = 400;
    const big = `PUT /v1/vm/power HTTP/1.1\r\nHost: vm\r\nX: ${'x'.repeat(8000)}\r\nContent-Length: 1\r\n\r\n{`;
    for (let i = 0; i < COUNT; i++) client.socket.write(big);
    // The two ends of the connection hold something, and so do a few requests. More is not taken.
    for (let before = -1; before !== client.socket.writableLength; ) {
      before = client.socket.writableLength;
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
    expect(client.socket.writableLength).toBeGreaterThan((COUNT / 2) * big.length);
    expect(client.seen()).toBe('');
    go();
    await until(() => client.seen().split(' 400 ').length === COUNT + 1, 'all answers');
    expect(client.seen().startsWith('HTTP/1.1 204')).toBe(true);
  });

  test('go on behind one that is refused', async () => {
    const { path, vmm } = await serve();
    const client = raw(path);
    client.socket.write(put('/nowhere') + put('/v1/vm/power', '{') + put('/v1/vm/pause'));
    await until(() => client.seen().includes(' 204 '), 'the last answer');
    expect(client.seen().match(/ (404|400|204) /g)).toEqual([' 404 ', ' 400 ', ' 204 ']);
    expect(vmm.asked).toEqual(['pause']);
  });
});

describe('events', () => {
  test('that are kept, and those that come, each with its number', async () => {
    const { path, vmm } = await serve();
    vmm.events.emit('vm', 'booted');
    vmm.events.emit('vm', 'paused', { why: 'a test' });
    expect((await ask(path, 'GET', '/v1/events?since=1&wait=0')).json).toMatchObject([
      { seq: 2, source: 'vm', event: 'paused', data: { why: 'a test' } },
    ]);
    const client = raw(path);
    client.socket.write('GET /v1/events?since=1 HTTP/1.1\r\nHost: vm\r\n\r\n');
    await until(() => client.seen().includes('"paused"'), 'the kept one');
    vmm.events.emit('vm', 'resumed');
    await until(() => client.seen().includes('id: 3\ndata: {"seq":3'), 'the new one');
    expect(client.seen()).not.toContain('"booted"');
  });

  test('that are too old are gone, and said to be, and so are those of a process before', async () => {
    const { path, vmm } = await serve();
    for (let i = 0; i < 300; i++) vmm.events.emit('vm', `e${i}`);
    expect((await ask(path, 'GET', '/v1/events?since=3')).status).toBe(410);
    expect((await ask(path, 'GET', '/v1/events', undefined, { 'last-event-id': '301' })).status).toBe(410);
    expect((await ask(path, 'GET', '/v1/events?since=300&wait=0')).json).toEqual([]);
    for (const since of ['x', '', '-1']) expect((await ask(path, 'GET', `/v1/events?since=${since}`)).status).toBe(422);
  });

  test.each(['?since=oldest&wait=0', '?wait=0'])('all that are kept: %s', async (query) => {
    const { path, vmm } = await serve();
    for (let i = 0; i < 300; i++) vmm.events.emit('vm', `e${i}`);
    const kept = (await ask(path, 'GET', `/v1/events${query}`)).json as { seq: number }[];
    expect([kept.length, kept[0]?.seq, kept.at(-1)?.seq]).toEqual([256, 45, 300]);
  });

  test('a reader that does not read is cut off, and costs nobody memory', async () => {
    const { path, vmm } = await serve();
    const client = connect(path);
    cleanUp.push(() => client.destroy());
    client.pause();
    client.write('GET /v1/events HTTP/1.1\r\nHost: vm\r\n\r\n');
    await new Promise((resolve) => setTimeout(resolve, 100));
    const data = { filler: 'x'.repeat(8 * 1024) };
    for (let i = 0; i < 500; i++) {
      vmm.events.emit('vm', 'noise', data);
      if (i % 50 === 0) await new Promise((resolve) => setImmediate(resolve));
    }
    // The others are served.
    expect((await ask(path, 'GET', '/v1/vm')).status).toBe(200);
    let isCut = false;
    client.on('close', () => {
      isCut = true;
    });
    client.resume();
    await until(() => isCut, 'cut off');
  });
});

describe('a console', () => {
  const upgrade = (id: string, query = '') =>
    `GET /v1/consoles/${id}/stream${query} HTTP/1.1\r\nHost: vm\r\nConnection: Upgrade\r\nUpgrade: acrn-console\r\n\r\n`;

  test('is attached to: output, input, and its end', async () => {
    const { path, vmm } = await serve();
    const client = raw(path);
    client.socket.write(`${upgrade('com1', '?history=1')}early `);
    await until(() => vmm.listeners.size === 1 && client.seen().endsWith('login: '), 'attached');
    expect(client.seen()).toContain('101 Switching Protocols');
    client.socket.write('root\r');
    await until(() => vmm.typed === 'early root\r', 'typed');
    for (const tell of vmm.listeners) tell(Buffer.from('Password: '));
    await until(() => client.seen().endsWith('login: Password: '), 'output');
    client.socket.destroy();
    await until(() => vmm.listeners.size === 0, 'detached');
    expect(vmm.events.since(0)?.map(({ event }) => event)).toEqual(['attached', 'detached']);
  });

  test('whose guest does not read keeps its client waiting', async () => {
    const { path, vmm } = await serve();
    vmm.room = 4;
    const client = raw(path);
    client.socket.write(upgrade('com1'));
    await until(() => vmm.listeners.size === 1, 'attached');
    client.socket.write('abcdefgh');
    await until(() => vmm.typed === 'abcd', 'as much as there is room for');
    vmm.room = 100;
    await until(() => vmm.typed === 'abcdefgh', 'the rest');
  });

  test('that there is not is a 404, and says which there are', async () => {
    const { path } = await serve();
    const client = raw(path);
    client.socket.write(upgrade('com9'));
    await until(() => client.isClosed(), 'refused');
    expect(client.seen()).toMatch(/^HTTP\/1.1 404/);
    expect(client.seen()).toContain('Content-Type: application/problem+json');
    expect(JSON.parse(client.seen().split('\r\n\r\n')[1] as string)).toMatchObject({
      detail: 'there is no console "com9"',
      hint: 'there are com1',
    });
  });

  test('is asked for in any spelling', async () => {
    const { path, vmm } = await serve();
    const client = raw(path);
    client.socket.write(upgrade('com1').replace('Upgrade: acrn', 'Upgrade: ACRN'));
    await until(() => vmm.listeners.size === 1, 'attached');
  });
});

describe('an Upgrade that there is not is ignored, as RFC 9110 has it', () => {
  const h2c = { Connection: 'Upgrade, HTTP2-Settings', Upgrade: 'h2c', 'HTTP2-Settings': 'AAMAAABkAAQCAAAAAAIAAAAA' };

  test.each([
    ['GET', '/v1/vm', undefined, 200],
    ['PUT', '/v1/vm/power', { action: 'button' }, 204],
    ['GET', '/v1/consoles/com1/stream', undefined, 400],
    ['GET', '/nowhere', undefined, 404],
  ])('%s %s', async (method, resource, body, status) => {
    const { path, vmm } = await serve();
    expect(await ask(path, method, resource, body, h2c)).toMatchObject({ status });
    expect(vmm.asked).toEqual(body === undefined ? [] : ['power button']);
  });
});

describe('a hostile client', () => {
  test('a body of a gigabyte is refused before it comes', async () => {
    const { path } = await serve();
    const client = raw(path);
    client.socket.write('PUT /api/v1/vm.create HTTP/1.1\r\nHost: vm\r\nContent-Length: 1073741824\r\n\r\n{');
    await until(() => client.seen().startsWith('HTTP/1.1 413'), 'refused');
    const patient = raw(path);
    patient.socket.write(
      'PUT /api/v1/vm.create HTTP/1.1\r\nHost: vm\r\nExpect: 100-continue\r\nContent-Length: 1073741824\r\n\r\n',
    );
    await until(() => patient.seen().startsWith('HTTP/1.1 413'), 'refused without being asked for');
  });

  test('a body without a length is counted', async () => {
    const { path } = await serve({ bodyBytes: 1000 });
    const client = raw(path);
    client.socket.write('PUT /api/v1/vm.create HTTP/1.1\r\nHost: vm\r\nTransfer-Encoding: chunked\r\n\r\n');
    for (let i = 0; i < 20; i++) client.socket.write(`64\r\n${'x'.repeat(100)}\r\n`);
    await until(() => client.seen().startsWith('HTTP/1.1 413'), 'refused');
  });

  test('headers that do not end, and garbage', async () => {
    const { path } = await serve({ headersTimeoutMs: 100 });
    const slow = raw(path);
    slow.socket.write('GET /v1/vm HTTP/1.1\r\nX: ');
    const garbage = raw(path);
    garbage.socket.write('\0\xff\x16\x03 nonsense\r\n\r\n');
    await until(() => garbage.isClosed(), 'garbage cut off');
    await until(() => slow.isClosed(), 'slow bytes cut off');
    const large = raw(path);
    large.socket.write(`GET /v1/vm HTTP/1.1\r\nX: ${'x'.repeat(100_000)}`);
    await until(() => large.isClosed(), 'headers without end cut off');
    expect((await ask(path, 'GET', '/v1/vm')).status).toBe(200);
  });

  test.each([
    'GET // HTTP/1.1\r\nHost: vm\r\n\r\n',
    'GET http://[ HTTP/1.1\r\nHost: vm\r\n\r\n',
    'OPTIONS * HTTP/1.1\r\nHost: vm\r\n\r\n',
    'GET /v1/consoles/%E0%A4%A HTTP/1.1\r\nHost: vm\r\n\r\n',
    'GET // HTTP/1.1\r\nHost: vm\r\nConnection: Upgrade\r\nUpgrade: acrn-console\r\n\r\n',
    'GET /v1/consoles/%E0%A4%A/stream HTTP/1.1\r\nHost: vm\r\nConnection: Upgrade\r\nUpgrade: acrn-console\r\n\r\n',
  ])('%j is refused, and ends nothing', async (text) => {
    const { path } = await serve();
    const client = raw(path);
    client.socket.write(text);
    await until(() => /^HTTP\/1.1 4\d\d/.test(client.seen()), 'refused');
    expect((await ask(path, 'GET', '/v1/vm')).status).toBe(200);
  });

  test.each([
    ['a head that is too large', `GET /v1/vm HTTP/1.1\r\nHost: vm\r\nX: ${'x'.repeat(20_000)}\r\n\r\n`, 431],
    ['no HTTP', 'nonsense\r\n\r\n', 400],
  ])('%s is told so as everything is', async (_what, request, status) => {
    const { path } = await serve();
    const client = raw(path);
    client.socket.write(request);
    await until(() => client.isClosed(), 'refused');
    expect(client.seen()).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
    expect(JSON.parse(client.seen().split('\r\n\r\n')[1] as string)).toMatchObject({ status });
  });

  test('garbage behind a request for a stream ends it, and is not answered within', async () => {
    const { path } = await serve();
    const client = raw(path);
    client.socket.write('GET /v1/events HTTP/1.1\r\nHost: vm\r\n\r\n');
    await until(() => client.seen().includes('text/event-stream'), 'the stream');
    client.socket.write('nonsense\r\n\r\n');
    await until(() => client.isClosed(), 'ended');
    expect(client.seen()).not.toContain('400 Bad');
  });

  test('a body that is broken off is no failure of ours', async () => {
    const { path, lines } = await serve();
    const client = raw(path);
    client.socket.write('PUT /v1/vm/power HTTP/1.1\r\nHost: vm\r\nContent-Length: 100\r\n\r\n{');
    await new Promise((resolve) => setTimeout(resolve, 50));
    client.socket.destroy();
    await until(() => lines.some((line) => line.includes('/v1/vm/power')), 'noticed');
    expect(lines.filter((line) => line.includes('/v1/vm/power') && !line.startsWith('debug'))).toEqual([]);
  });

  test('requests that do not come to their end give way to others', async () => {
    const { path } = await serve({ connections: 4 });
    const slow = Array.from({ length: 4 }, () => raw(path));
    for (const { socket } of slow) {
      socket.write('PUT /v1/vm/power HTTP/1.1\r\nHost: vm\r\nContent-Length: 100\r\n\r\n{');
    }
    await new Promise((resolve) => setTimeout(resolve, 50));
    expect((await ask(path, 'GET', '/v1/vm')).status).toBe(200);
  });

  test('streams leave places for others', async () => {
    const { path } = await serve({ connections: 8, streams: 3 });
    const streams = Array.from({ length: 8 }, () => raw(path));
    for (const { socket } of streams) socket.write('GET /v1/events HTTP/1.1\r\nHost: vm\r\n\r\n');
    await until(() => streams.every(({ seen }) => seen().startsWith('HTTP/1.1 ')), 'answered');
    expect(streams.map(({ seen }) => seen().slice(9, 12)).sort()).toEqual([
      '200',
      '200',
      '200',
      ...Array(5).fill('503'),
    ]);
    expect((await ask(path, 'GET', '/v1/vm')).status).toBe(200);
    const console = raw(path);
    console.socket.write(
      'GET /v1/consoles/com1/stream HTTP/1.1\r\nHost: vm\r\nConnection: Upgrade\r\nUpgrade: acrn-console\r\n\r\n',
    );
    await until(() => console.seen().startsWith('HTTP/1.1 503'), 'refused');
    streams[0]?.socket.destroy();
    for (const { socket } of streams) socket.destroy();
    await until(() => true, 'gone');
    await new Promise((resolve) => setTimeout(resolve, 50));
    const again = raw(path);
    again.socket.write('GET /v1/events HTTP/1.1\r\nHost: vm\r\n\r\n');
    await until(() => again.seen().startsWith('HTTP/1.1 200'), 'a place is free again');
  });

  test('too many connections: the idle give way', async () => {
    const { path } = await serve({ connections: 4 });
    const idle = Array.from({ length: 10 }, () => raw(path));
    await until(() => idle.filter(({ isClosed }) => isClosed()).length >= 6, 'six of ten gave way');
    expect((await ask(path, 'GET', '/v1/vm')).status).toBe(200);
  });

  test('many requests in one go are all answered, and the thread has its turns between', async () => {
    const { path } = await serve();
    let count = 0;
    const socket = connect(path);
    cleanUp.push(() => socket.destroy());
    let rest = '';
    socket.on('data', (data) => {
      const parts = (rest + data.toString('latin1')).split('HTTP/1.1 200');
      count += parts.length - 1;
      rest = (parts.at(-1) as string).slice(-11);
    });
    for (let i = 0; i < 5; i++) socket.write('GET /api/v1/vmm.ping HTTP/1.1\r\nHost: vm\r\n\r\n'.repeat(100));
    let turns = 0;
    await until(() => {
      turns++;
      return count === 500;
    }, 'all');
    // Parsed in one go they would take one turn or two.
    expect(turns).toBeGreaterThan(100);
  });
});

describe('the door', () => {
  test('closes with clients on it: answers are given, streams end', async () => {
    const { path, close } = await serve();
    const stream = raw(path);
    stream.socket.write('GET /v1/events HTTP/1.1\r\nHost: vm\r\n\r\n');
    await until(() => stream.seen().includes('200 OK'), 'a stream');
    const idle = raw(path);
    await close();
    await until(() => stream.isClosed() && idle.isClosed(), 'both gone');
    await expect(ask(path, 'GET', '/v1/vm')).rejects.toThrow();
  });

  test('takes a listening socket from its parent, and says when it is none', async () => {
    const scratch = scratchDirectory();
    cleanUp.push(() => scratch.remove());
    const parent = createServer();
    await new Promise<void>((resolve) => parent.listen(scratch.file('s'), resolve));
    cleanUp.push(() => parent.close());
    const { log } = memoryLog();
    await expect(openApiDoor({ at: { kind: 'fd', fd: 999 }, vmm: new FakeVmm(), log })).rejects.toThrow(
      'fd=999: is no listening socket',
    );
  });
});
