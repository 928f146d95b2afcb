/** What goes wrong, as HTTP says it: RFC 9457, with the text, hint and exit status that standard error would have had. */
import { ExitCode } from '../../devicemodel/core/errors.ts';

/** An answer that is no success. */
export class HttpProblem extends Error {
  readonly status: number;
  readonly code: string;
  readonly hint: string | undefined;
  readonly headers: Readonly<Record<string, string>>;
  constructor(
    status: number,
    code: string,
    message: string,
    more: { readonly hint?: string; readonly headers?: Readonly<Record<string, string>> } = {},
  ) {
    super(message);
    this.status = status;
    this.code = code;
    this.hint = more.hint;
    this.headers = more.headers ?? {};
  }
}

export interface ProblemDocument {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly hint?: string;
  readonly exitStatus?: number;
  readonly errno?: number;
}

const TITLES: Readonly<Record<number, string>> = {
  400: 'Bad request',
  404: 'Not found',
  405: 'Not allowed now',
  409: 'Conflict with the state of the VM',
  408: 'Too slow',
  410: 'Not kept any more',
  413: 'Request too large',
  422: 'Cannot be',
  431: 'Header too large',
  500: 'Failed',
  501: 'Not possible here',
  503: 'Busy',
};

/** The program's errors by their names: this code is a bundle of its own, with classes of its own. */
interface ErrorOfProgram {
  readonly name?: unknown;
  readonly message?: unknown;
  readonly hint?: unknown;
  readonly exitCode?: unknown;
  readonly errno?: unknown;
  readonly kind?: unknown;
}

function statusOf({ name, kind }: ErrorOfProgram): { readonly status: number; readonly code: string } {
  if (name === 'ConfigError') return { status: 422, code: 'config' };
  if (name === 'RefusedError') {
    return kind === 'impossible' ? { status: 501, code: 'impossible' } : { status: 409, code: 'wrong-state' };
  }
  return { status: 500, code: name === 'HostError' || name === 'HsmError' ? 'host' : 'internal' };
}

/** What the command line would end with. */
function exitStatusOf(status: number): ExitCode {
  if (status === 500) return ExitCode.Software;
  return status === 400 || status === 413 || status === 422 ? ExitCode.Usage : ExitCode.Unavailable;
}

/** @param statusOfWrongState what the dialect has for it. */
export function problemOf(error: unknown, statusOfWrongState = 409): ProblemDocument {
  if (error instanceof HttpProblem) {
    const { status, code, message, hint } = error;
    return document(status, code, message, {
      ...(hint === undefined ? {} : { hint }),
      exitStatus: exitStatusOf(status),
    });
  }
  const known = (typeof error === 'object' && error !== null ? error : {}) as ErrorOfProgram;
  const { status, code } = statusOf(known);
  return document(
    code === 'wrong-state' ? statusOfWrongState : status,
    code,
    typeof known.message === 'string' ? known.message : String(error),
    {
      ...(typeof known.hint === 'string' ? { hint: known.hint } : {}),
      ...(typeof known.exitCode === 'number' ? { exitStatus: known.exitCode } : {}),
      ...(typeof known.errno === 'number' && known.errno !== 0 ? { errno: known.errno } : {}),
    },
  );
}

/** What goes to a client whose connection Node's server has nothing to do with any more. */
export function problemAnswer(problem: ProblemDocument): string {
  const body = `${JSON.stringify(problem)}\n`;
  return [
    `HTTP/1.1 ${problem.status} ${problem.title}`,
    'Connection: close',
    'Content-Type: application/problem+json',
    `Content-Length: ${Buffer.byteLength(body)}`,
    '',
    body,
  ].join('\r\n');
}

function document(status: number, code: string, detail: string, more: Partial<ProblemDocument>): ProblemDocument {
  return { type: `urn:acrn-dm:${code}`, title: TITLES[status] ?? 'Failed', status, detail, ...more };
}
