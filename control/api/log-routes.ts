/** The log of the process: its newest lines, those that come, and how much of it goes where. */
import { LogLevel, type LogLevelName } from '../../devicemodel/core/log.ts';
import type { LogLine } from '../../devicemodel/core/log-tail.ts';
import { HttpProblem } from './problem.ts';
import { json, member, type Route } from './routes.ts';
import { serveEvents } from './server-sent.ts';
import type { Vmm } from './vmm.ts';

const levels = Object.keys(LogLevel) as LogLevelName[];
const sinks = ['console', 'kmsg', 'disk'] as const;

export function logRoutes({ log }: Vmm): Route[] {
  const tell = () => json({ levels: log.levels, lines: log.tail.lines.map(shown) });
  return [
    {
      method: 'GET',
      path: '/v1/log',
      summary: 'How much of the log goes where, and its newest lines.',
      run: tell,
    },
    {
      method: 'PUT',
      path: '/v1/log',
      summary: 'How much of the log goes to a sink, or to all there are: error, warn, notice, info or debug.',
      body: {
        type: 'object',
        required: ['level'],
        properties: { level: { enum: levels }, sink: { enum: [...sinks] } },
      },
      isAnswered: true,
      run: ({ body }) => {
        const asked = member(body, 'level', 'string');
        const level = levels.find((name) => name === asked);
        if (level === undefined) throw new HttpProblem(422, 'member', `level: is one of ${levels.join(', ')}`);
        const sink = member(body, 'sink', 'string');
        if (!log.setLevel(LogLevel[level], sink)) {
          throw new HttpProblem(409, 'no-sink', `there is no log${sink === undefined ? '' : ` to ${sink}`}`, {
            hint: `--logger_setting at the start says which: ${sinks.join(', ')}`,
          });
        }
        return tell();
      },
    },
    {
      method: 'GET',
      path: '/v1/log/stream',
      summary: 'Lines as they come (server-sent).',
      isStream: true,
      run: ({ response, becomeStream }) => {
        const write = serveEvents({ response, becomeStream });
        const stop = log.tail.listen((line) => write(line.seq, shown(line)));
        response.once('close', stop);
        return 'streams';
      },
    },
  ];
}

function shown({ seq, timeMs, level, message }: LogLine): object {
  return { seq, time: new Date(timeMs).toISOString(), level, message };
}
