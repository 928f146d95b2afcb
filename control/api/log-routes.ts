/** The log of the process: its newest lines, those that come, and how much of it goes where. */
import { LogLevel } from '../../devicemodel/core/log.ts';
import type { LogLine } from '../../devicemodel/core/log-tail.ts';
import { HttpProblem } from './problem.ts';
import { json, OLDEST, parsed, type Route, STREAM_TYPE, sinceMembers, sinceOf } from './routes.ts';
import { serveEvents } from './server-sent.ts';
import { Give, Take } from './shapes.ts';
import type { Vmm } from './vmm.ts';

export function logRoutes({ log }: Vmm): Route[] {
  const tell = () => json({ levels: log.levels, lines: log.tail.lines.map(shown) });
  return [
    {
      method: 'GET',
      path: '/v1/log',
      summary: 'How much of the log goes where, and its newest lines.',
      answer: Give.log,
      run: tell,
    },
    {
      method: 'PUT',
      path: '/v1/log',
      summary: 'How much of the log goes to a sink, or to all there are: error, warn, notice, info or debug.',
      body: Take.logLevel,
      answer: Give.log,
      run: ({ body }) => {
        const { level, sink } = parsed(Take.logLevel, body);
        if (!log.setLevel(LogLevel[level], sink)) {
          throw new HttpProblem(409, 'no-sink', `there is no log${sink === undefined ? '' : ` to ${sink}`}`, {
            hint: '--logger_setting at the start says which: console, kmsg, disk',
          });
        }
        return tell();
      },
    },
    {
      method: 'GET',
      path: '/v1/log/stream',
      summary: 'Lines as they come (server-sent).',
      type: STREAM_TYPE,
      ...sinceMembers,
      run: ({ query, request, response, becomeStream }) => {
        const since = sinceOf(query.get('since') ?? request.headers['last-event-id']);
        const kept = since === undefined ? [] : log.tail.lines.filter(({ seq }) => since === OLDEST || seq > since);
        const write = serveEvents({ response, becomeStream });
        const tell = (line: LogLine) => write(line.seq, shown(line));
        for (const line of kept) tell(line);
        const stop = log.tail.listen(tell);
        response.once('close', stop);
        return 'streams';
      },
    },
  ];
}

function shown({ seq, timeMs, level, message }: LogLine): object {
  return { seq, time: new Date(timeMs).toISOString(), level, message };
}
