/** The API as an OpenAPI document, made of its routes. */
import type { Route } from './routes.ts';

export function openApiDocument(routes: readonly Route[], version = '1'): object {
  const paths: Record<string, Record<string, object>> = {};
  for (const { method, path, summary, body, isStream, isAnswered } of routes) {
    const names = [...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => name as string);
    const success = isStream === true || isAnswered === true || method === 'GET' ? '200' : '204';
    const operations = (paths[path] ??= {});
    operations[method.toLowerCase()] = {
      operationId: `${method.toLowerCase()}${path.replace(/[^A-Za-z0-9]+(\w?)/g, (_, next: string) => next.toUpperCase())}`,
      summary,
      ...(names.length === 0
        ? {}
        : { parameters: names.map((name) => ({ name, in: 'path', required: true, schema: { type: 'string' } })) }),
      ...(body === undefined
        ? {}
        : { requestBody: { required: true, content: { 'application/json': { schema: body } } } }),
      responses: {
        [success]: { description: 'Done.' },
        '4XX': problem,
        '5XX': problem,
      },
    };
  }
  return {
    openapi: '3.1.0',
    info: {
      title: 'A User VM of acrn-dm',
      version,
      description: "On a Unix socket of the VM. /api/v1 speaks Cloud Hypervisor's dialect, /v1 has what that lacks.",
      license: { name: 'BSD-3-Clause', identifier: 'BSD-3-Clause' },
    },
    servers: [{ url: 'http://localhost' }],
    security: [],
    paths,
    components: { schemas: { Problem: problemSchema } },
  };
}

const problem = {
  description: 'Not done: RFC 9457, with the text, hint and exit status of the command line.',
  content: { 'application/problem+json': { schema: { $ref: '#/components/schemas/Problem' } } },
};

const problemSchema = {
  type: 'object',
  required: ['type', 'title', 'status', 'detail'],
  properties: {
    type: { type: 'string' },
    title: { type: 'string' },
    status: { type: 'integer' },
    detail: { type: 'string' },
    hint: { type: 'string' },
    exitStatus: { type: 'integer' },
    errno: { type: 'integer' },
  },
};
