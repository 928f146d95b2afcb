/**
 * Cloud Hypervisor's own OpenAPI document, which is not in this repository: CH_OPENAPI is its path
 * (vmm/src/api/openapi/cloud-hypervisor.yaml there). Each path it lists is answered as it says, or by 501; and a client made
 * from it works.
 */
import { readFileSync } from 'node:fs';
import { request as httpRequest } from 'node:http';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { parse } from 'yaml';
import { optionsOfChVm } from '../../../config/cloud-hypervisor.ts';
import { openApiDoor } from '../../../control/api-door.ts';
import type { FrontDoor } from '../../../control/front-doors.ts';
import { FakeVmm } from '../../support/fake-vmm.ts';
import { memoryLog } from '../../support/memory-log.ts';
import { type OpenApiDocument, type Schema, violations } from '../../support/open-api-schema.ts';
import { demoGuest, Program, softVm, whyNoSoftHypervisor } from '../../support/program.ts';
import { scratchDirectory } from '../../support/pty.ts';

const path = process.env['CH_OPENAPI'];
if (path === undefined) console.log('skipped: CH_OPENAPI names no OpenAPI document of Cloud Hypervisor');

interface Operation {
  readonly operationId?: string;
  readonly requestBody?: { readonly content: { readonly 'application/json': { readonly schema: Schema } } };
  readonly responses: Readonly<
    Record<string, { readonly content?: { readonly 'application/json': { readonly schema: Schema } } }>
  >;
}
type Document = OpenApiDocument & {
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
  readonly servers: readonly { readonly url: string }[];
};

const document: Document =
  path === undefined ? { components: { schemas: {} }, paths: {}, servers: [] } : parse(readFileSync(path, 'utf8'));
const operations = Object.entries(document.paths).flatMap(([name, methods]) =>
  Object.entries(methods).map(([method, operation]) => ({ name, method: method.toUpperCase(), operation })),
);

let door: FrontDoor | undefined;
let scratch: ReturnType<typeof scratchDirectory>;
beforeEach(() => {
  scratch = scratchDirectory();
});
afterEach(async () => {
  await door?.close();
  scratch.remove();
});

async function serve(state: 'none' | 'created' | 'booted') {
  const vmm = new FakeVmm();
  vmm.isBooted = state === 'booted';
  if (state === 'none') vmm.config = undefined;
  const socketPath = scratch.file('api.sock');
  door = await openApiDoor({ at: { kind: 'path', path: socketPath }, vmm, log: memoryLog().log });
  return { vmm, socketPath };
}

interface Reply {
  readonly status: number;
  readonly body: unknown;
}

function ask(socketPath: string, method: string, url: string, body: unknown): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const request = httpRequest({ socketPath, method, path: url, agent: false }, (response) => {
      let text = '';
      response.setEncoding('utf8').on('data', (part: string) => {
        text += part;
      });
      response.on('end', () =>
        resolve({ status: response.statusCode ?? 0, body: text === '' ? undefined : JSON.parse(text) }),
      );
    });
    request.on('error', reject);
    request.end(body === undefined ? undefined : JSON.stringify(body));
  });
}

/** The least that the document takes for this schema. */
function sampleOf(schema: Schema): unknown {
  if (schema.$ref !== undefined)
    return sampleOf(document.components.schemas[schema.$ref.split('/').at(-1) as string] as Schema);
  if (schema.enum !== undefined) return schema.enum[0];
  if (schema.type === 'object' || schema.properties !== undefined) {
    return Object.fromEntries((schema.required ?? []).map((name) => [name, sampleOf(schema.properties?.[name] ?? {})]));
  }
  if (schema.type === 'array') return [];
  if (schema.type === 'integer' || schema.type === 'number') return 1;
  return schema.type === 'boolean' ? false : '/dev/null';
}

/** What a generated client sends of an object whose members nobody set: the defaults of the document. */
function defaultsOf(name: string): Record<string, unknown> {
  const properties = (document.components.schemas[name]?.properties ?? {}) as Record<string, { default?: unknown }>;
  return Object.fromEntries(
    Object.entries(properties).flatMap(([key, { default: value }]) => (value === undefined ? [] : [[key, value]])),
  );
}

const base = new URL(document.servers[0]?.url ?? 'http://localhost').pathname;

describe.skipIf(path === undefined)("Cloud Hypervisor's document", () => {
  test.each(operations)('$method $name is answered as it says, or by 501', async ({ name, method, operation }) => {
    const schema = operation.requestBody?.content['application/json'].schema;
    for (const state of ['none', 'created', 'booted'] as const) {
      const { vmm, socketPath } = await serve(state);
      const { status, body } = await ask(socketPath, method, base + name, schema && sampleOf(schema));
      const listed = Object.keys(operation.responses);
      // Where it lists no failure at all, failures are left to the program.
      const hasFailures = listed.some((code) => Number(code) >= 400);
      const what = `${state}: ${status} ${JSON.stringify(body)}`;
      if (state === 'booted' && !['/vm.create', '/vm.boot'].includes(name)) {
        expect([...listed, '501'], what).toContain(String(status));
      } else if (hasFailures && status >= 400) {
        expect([...listed, '501'], what).toContain(String(status));
      }
      expect(body ?? {}, what).not.toMatchObject({ type: 'urn:acrn-dm:no-such-path' });
      expect(status, what).not.toBe(500);
      const answer = operation.responses[status]?.content?.['application/json'].schema;
      if (answer !== undefined) expect(violations(document, answer, body), what).toEqual([]);
      if (status === 501) expect(vmm.asked, 'nothing was done').toEqual([]);
      await door?.close();
    }
  });
});

/** A function for each operation that has an answer here, by its operationId, or its path without one. */
function clientFor(socketPath: string) {
  return Object.fromEntries(
    operations.map(({ name, method, operation }) => [
      operation.operationId ?? name.slice(1),
      async (body?: unknown): Promise<unknown> => {
        const sent = operation.requestBody?.content['application/json'].schema;
        if (sent !== undefined) expect(violations(document, sent, body)).toEqual([]);
        const reply = await ask(socketPath, method, base + name, body);
        expect(Object.keys(operation.responses), `${name}: ${JSON.stringify(reply.body)}`).toContain(
          String(reply.status),
        );
        const schema = operation.responses[reply.status]?.content?.['application/json'].schema;
        if (schema !== undefined) expect(violations(document, schema, reply.body)).toEqual([]);
        if (reply.status >= 400) throw new Error(`${name}: ${reply.status}`);
        return reply.body;
      },
    ]),
  );
}

describe.skipIf(path === undefined)('a client made from it', () => {
  test('may send the defaults of it', () => {
    const body = {
      ...defaultsOf('VmConfig'),
      cpus: { ...defaultsOf('CpusConfig'), boot_vcpus: 1, max_vcpus: 1 },
      memory: { ...defaultsOf('MemoryConfig'), size: 1 << 28 },
      payload: { kernel: '/k' },
      disks: [{ ...defaultsOf('DiskConfig'), path: '/d.img' }],
      net: [{ ...defaultsOf('NetConfig'), tap: 'tap0' }],
      rng: { ...defaultsOf('RngConfig'), src: '/dev/urandom' },
      console: { ...defaultsOf('ConsoleConfig'), mode: 'Off' },
      serial: { ...defaultsOf('ConsoleConfig'), mode: 'Null' },
      platform: defaultsOf('PlatformConfig'),
    };
    expect(body.net[0]).toHaveProperty('ip');
    expect(optionsOfChVm(body).argv).toContain('3,virtio-net,tap=tap0');
  });

  test('takes a VM through its life', async () => {
    const { vmm, socketPath } = await serve('none');
    const client = clientFor(socketPath) as Record<string, (body?: unknown) => Promise<unknown>>;
    expect(await client['vmm.ping']?.()).toMatchObject({ pid: process.pid });
    await expect(client['vm.info']?.()).rejects.toThrow('404');
    await client['createVM']?.({ payload: { kernel: '/vmlinuz', cmdline: 'console=hvc0' }, memory: { size: 1 << 28 } });
    await client['bootVM']?.();
    expect(await client['vm.info']?.()).toMatchObject({ state: 'Running' });
    await client['vm.counters']?.();
    await client['pauseVM']?.();
    await client['resumeVM']?.();
    await client['power-buttonVM']?.();
    await client['rebootVM']?.();
    await client['shutdownVM']?.();
    expect(vmm.asked).toEqual([
      'pause',
      'resume',
      'power button',
      'reset: asked by the API',
      'patient shutdown: asked by the API',
    ]);
    await client['deleteVM']?.();
    await client['shutdownVMM']?.();
    expect(vmm.calls).toEqual(['create', 'boot', 'remove', 'quit']);
  });

  test.skipIf(whyNoSoftHypervisor() !== undefined)(
    'brings a guest to the program itself, and takes it away',
    { timeout: 60_000 },
    async () => {
      const socketPath = scratch.file('vmm.sock');
      const program = new Program(['--api-socket', `path=${socketPath}`, '--hypervisor', 'soft']);
      try {
        let isThere = false;
        while (!isThere) {
          isThere = await ask(socketPath, 'GET', '/api/v1/vmm.ping', undefined).then(
            () => true,
            () => new Promise<boolean>((resolve) => setTimeout(() => resolve(false), 50)),
          );
        }
        const client = clientFor(socketPath) as Record<string, (body?: unknown) => Promise<unknown>>;
        await client['createVM']?.({
          payload: { kernel: demoGuest, cmdline: 'demo=idle' },
          memory: { size: 1 << 27 },
          serial: { mode: 'Tty' },
          console: { mode: 'Off' },
        });
        await client['bootVM']?.();
        await program.console('idle: sleeping');
        expect(await client['vm.info']?.()).toMatchObject({ state: 'Running' });
        await client['vm.counters']?.();
        await client['pauseVM']?.();
        expect(await client['vm.info']?.()).toMatchObject({ state: 'Paused' });
        await client['resumeVM']?.();
        await expect(client['resumeVM']?.()).rejects.toThrow('405');
        await client['rebootVM']?.();
        await client['deleteVM']?.();
        await expect(client['vm.info']?.()).rejects.toThrow('404');
        await client['shutdownVMM']?.();
        expect(await program.exited).toMatchObject({ code: 0 });
      } finally {
        await program.end();
      }
    },
  );

  test.skipIf(whyNoSoftHypervisor() !== undefined)(
    'reads a VM that a command line described',
    { timeout: 60_000 },
    async () => {
      const socketPath = scratch.file('vm.sock');
      const program = new Program(softVm(`ch${process.pid % 100_000}`, 'demo=idle', '--api-socket', socketPath));
      try {
        await program.console('idle: sleeping');
        const client = clientFor(socketPath) as Record<string, (body?: unknown) => Promise<unknown>>;
        expect(await client['vm.info']?.()).toMatchObject({ state: 'Running' });
        await client['vm.counters']?.();
      } finally {
        await program.end();
      }
    },
  );
});
