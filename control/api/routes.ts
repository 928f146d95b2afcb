/** The paths of the API: matching, and what the OpenAPI document says of each. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import * as v from 'valibot';
import { HttpProblem } from './problem.ts';

export interface Answer {
  readonly status: number;
  /** An object goes as JSON, a text as it is; absent: none. */
  readonly body?: unknown;
  readonly type?: string;
  readonly headers?: Readonly<Record<string, string>>;
}

export interface Asked {
  readonly parameters: Readonly<Record<string, string>>;
  readonly query: URLSearchParams;
  readonly body: unknown;
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Before an answer that has no end of its own. @throws HttpProblem 503 when there are enough of them. */
  readonly becomeStream: () => void;
}

export interface Route {
  readonly method: 'GET' | 'PUT' | 'POST' | 'DELETE';
  /** `/v1/consoles/{id}` */
  readonly path: string;
  readonly summary: string;
  /** The body it takes, for the document; `run` checks by the same schema. */
  readonly body?: v.GenericSchema | (() => Promise<v.GenericSchema>);
  /** The JSON it answers; absent: none, or what `type` says. */
  readonly answer?: v.GenericSchema;
  /** Of an answer that is no JSON. With `answer`, too: the request says which. */
  readonly type?: string;
  /** What may stand behind `?`, and what each member says. */
  readonly query?: Readonly<Record<string, string>>;
  /** Header lines it looks at, beside those of HTTP itself. */
  readonly headers?: Readonly<Record<string, string>>;
  run(asked: Asked): Answer | 'streams' | Promise<Answer | 'streams'>;
}

/** Server-sent events. */
export const STREAM_TYPE = 'text/event-stream';

export const done: Answer = { status: 204 };

export function json(body: unknown): Answer {
  return { status: 200, body };
}

/** What a request line asks for, as clients of every kind write it. @throws HttpProblem 400 for what is no target. */
export function targetOf(url: string): Pick<URL, 'pathname' | 'searchParams'> {
  try {
    // By itself a path that begins with two slashes would name a host.
    return new URL(url.startsWith('/') ? `http://vm${url}` : url, 'http://vm');
  } catch {
    throw new HttpProblem(400, 'target', 'this is no path');
  }
}

/**
 * HEAD (RFC 9110 9.1) is GET of which Node sends no body; of a stream, which has no end, there is none.
 * @throws HttpProblem 404, or 405 for a path that has other methods.
 */
export function matchRoute(routes: readonly Route[], method: string, pathname: string) {
  const words = pathname.split('/');
  const matching = routes.flatMap((route) => {
    const parameters = parametersOf(route.path.split('/'), words);
    return parameters === undefined ? [] : [{ route, parameters }];
  });
  const found = matching.find(({ route }) =>
    method === 'HEAD' ? route.method === 'GET' && route.type !== STREAM_TYPE : route.method === method,
  );
  if (found !== undefined) return found;
  if (matching.length === 0) {
    throw new HttpProblem(404, 'no-such-path', `there is nothing at ${pathname}`, {
      hint: 'GET /v1/openapi.json lists what there is',
    });
  }
  const allow = matching.map(({ route }) => route.method).join(', ');
  throw new HttpProblem(405, 'method', `${pathname} takes ${allow}`, { headers: { allow } });
}

function parametersOf(pattern: readonly string[], words: readonly string[]): Record<string, string> | undefined {
  if (pattern.length !== words.length) return undefined;
  const parameters: Record<string, string> = {};
  for (const [i, part] of pattern.entries()) {
    const word = words[i] as string;
    const name = /^\{(\w+)\}$/.exec(part)?.[1];
    if (name === undefined && part !== word) return undefined;
    if (name !== undefined) parameters[name] = decoded(word);
  }
  return parameters;
}

export function decoded(word: string): string {
  try {
    return decodeURIComponent(word);
  } catch {
    return word;
  }
}

/** As far back as there is anything. */
export const OLDEST = 'oldest';

/** What a stream of numbered things is asked by ({@link sinceOf}). */
export const sinceMembers = {
  query: { since: `what came behind this number comes first; "${OLDEST}": all that is kept` },
  headers: { 'Last-Event-ID': 'as since, from a client that connects again' },
} as const;

/** What a stream begins behind. @returns undefined when nobody said. @throws HttpProblem 422 */
export function sinceOf(asked: string | string[] | null | undefined): number | typeof OLDEST | undefined {
  if (asked === null || asked === undefined) return undefined;
  if (asked === OLDEST) return OLDEST;
  const since = Number(asked);
  if (asked !== '' && Number.isSafeInteger(since) && since >= 0) return since;
  throw new HttpProblem(422, 'member', `since: "${asked}" is no number, and not ${OLDEST}`);
}

/** The body of a request, checked. @throws HttpProblem 422, or another status, with the member that is wrong. */
export function parsed<S extends v.GenericSchema>(schema: S, body: unknown, status = 422): v.InferOutput<S> {
  const result = v.safeParse(schema, body ?? {});
  if (result.success) return result.output;
  const [issue] = result.issues;
  const where = v.getDotPath(issue);
  if (where === null) throw new HttpProblem(status, 'member', 'the body is no object');
  if (issue.expected === 'never') throw new HttpProblem(status, 'member', `${where}: there is no such member`);
  // valibot writes a choice as `("up" | "down")`.
  const expected = issue.expected?.replace(/[()"]/g, '').replaceAll(' | ', ', ');
  const what = issue.received === 'undefined' ? 'is missing' : `expected ${expected}, not ${issue.received}`;
  throw new HttpProblem(status, 'member', `${where}: ${what}`);
}
