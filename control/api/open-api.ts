/** The API as an OpenAPI document, made of its routes. */
import type { GenericSchema } from 'valibot';
import { jsonSchemaOf } from './json-schema.ts';
import type { Route } from './routes.ts';

export async function openApiDocument(routes: readonly Route[], version = '1'): Promise<object> {
  const paths: Record<string, Record<string, object>> = {};
  for (const route of routes) {
    const { method, path, summary, body } = route;
    const parameters = parametersOf(route);
    const taken = typeof body === 'function' ? await (body as () => Promise<GenericSchema>)() : body;
    const operations = (paths[path] ??= {});
    operations[method.toLowerCase()] = {
      operationId: `${method.toLowerCase()}${path.replace(/[^A-Za-z0-9]+(\w?)/g, (_, next: string) => next.toUpperCase())}`,
      summary,
      ...(parameters.length === 0 ? {} : { parameters }),
      ...(taken === undefined
        ? {}
        : { requestBody: { required: true, content: { 'application/json': { schema: jsonSchemaOf(taken) } } } }),
      responses: {
        ...successOf(route),
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
    servers: [{ url: 'http://vm' }],
    security: [],
    paths,
    components: { schemas: { Problem: problemSchema } },
  };
}

function parametersOf({ path, query = {}, headers = {} }: Route): object[] {
  const schema = { type: 'string' };
  const optional = (place: 'query' | 'header', members: Readonly<Record<string, string>>) =>
    Object.entries(members).map(([name, description]) => ({ name, in: place, required: false, description, schema }));
  return [
    ...[...path.matchAll(/\{(\w+)\}/g)].map(([, name]) => ({ name, in: 'path', required: true, schema })),
    ...optional('query', query),
    ...optional('header', headers),
  ];
}

function successOf({ answer, type }: Route): object {
  if (answer === undefined && type === undefined) return { 204: { description: 'Done.' } };
  const content = {
    ...(type === undefined ? {} : { [type]: { schema: { type: 'string' } } }),
    ...(answer === undefined ? {} : { 'application/json': { schema: jsonSchemaOf(answer) } }),
  };
  return { 200: { description: 'Done.', content } };
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
