/** acrnvm: what a person or a script does with the VMs that run, by their APIs. */
import './first-line.ts';
import { parseArgs } from 'node:util';
import { didYouMean } from '../../config/suggest.ts';
import { DmError, ExitCode } from '../../devicemodel/core/errors.ts';
import { version } from '../version.ts';
import { ClientError } from './client.ts';
import { commands, type Invocation, print } from './commands.ts';

// ACRN's life manager powers the machine off once no command line names acrn-dm: ours may, by the folder it is in.
process.title = 'acrnvm';

const usageWidth = Math.max(...commands.map((command) => command.usage.length));
const usage = `acrnvm: the User VMs that run here. VM is a name, or the path of an API socket.

${commands.map((command) => `  ${command.usage.padEnd(usageWidth)} ${command.help}`).join('\n')}

--json answers in JSON. Exit statuses are those of acrn-dm.`;

/** @throws ClientError */
function above0(option: string, text: string, what: string): number {
  const value = Number(text);
  if (value > 0) return value;
  throw new ClientError(`${option} ${text}: not ${what}`, { exitCode: ExitCode.Usage });
}

/** Longer than any timer waits. */
const MAX_INTERVAL_S = 24 * 3600;

/** @throws ClientError */
function intervalOf(text: string): number {
  const seconds = above0('--interval', text, 'a time in seconds');
  if (seconds <= MAX_INTERVAL_S) return seconds;
  throw new ClientError(`--interval ${text}: at most ${MAX_INTERVAL_S} seconds, a day`, { exitCode: ExitCode.Usage });
}

function parse(argv: readonly string[]): Invocation {
  const dashes = argv.indexOf('--');
  const own = dashes < 0 ? argv : argv.slice(0, dashes);
  try {
    const { values, positionals } = parseArgs({
      args: [...own],
      allowPositionals: true,
      options: {
        json: { type: 'boolean', default: false },
        force: { type: 'boolean', short: 'f', default: false },
        timeout: { type: 'string', short: 't', default: '60' },
        since: { type: 'string' },
        level: { type: 'string' },
        sink: { type: 'string' },
        interval: { type: 'string', default: '2' },
        count: { type: 'string', short: 'n' },
        yaml: { type: 'boolean', default: false },
      },
    });
    const timeoutS = above0('-t', values.timeout, 'a time in seconds');
    return {
      words: values.yaml ? [...positionals, '--yaml'] : positionals,
      isJson: values.json,
      force: values.force,
      isFollowing: values.force,
      timeoutS,
      since: values.since,
      level: values.level,
      sink: values.sink,
      intervalS: intervalOf(values.interval),
      count: values.count === undefined ? undefined : above0('-n', values.count, 'a number above 0'),
      rest: dashes < 0 ? [] : argv.slice(dashes + 1),
    };
  } catch (error) {
    if (error instanceof ClientError) throw error;
    throw optionError(error as NodeJS.ErrnoException);
  }
}

/** What `parseArgs` says in several lines. */
function optionError({ code, message }: NodeJS.ErrnoException): ClientError {
  const option = /'(?:-\w, )?(--?[^' ]*)/.exec(message)?.[1];
  const text =
    option === undefined
      ? message
      : code === 'ERR_PARSE_ARGS_UNKNOWN_OPTION'
        ? `there is no option ${option}`
        : message.includes('does not take')
          ? `option ${option} takes no value`
          : `option ${option} needs a value`;
  return new ClientError(text, { exitCode: ExitCode.Usage, hint: 'acrnvm help lists them' });
}

async function main(argv: readonly string[]): Promise<ExitCode> {
  // What is said of every command may also stand before it.
  const [verb, ...rest] =
    argv[0] === '--json' && argv.length > 1 ? [...argv.slice(1, 2), '--json', ...argv.slice(2)] : argv;
  if (verb === '--version') {
    print(`acrnvm ${version()}`);
    return ExitCode.Ok;
  }
  if (verb === undefined || verb === 'help' || verb === '--help' || verb === '-h') {
    print(usage);
    return verb === undefined ? ExitCode.Usage : ExitCode.Ok;
  }
  const command = commands.find(({ name }) => name === verb);
  if (command === undefined) {
    const guess = didYouMean(
      verb,
      commands.map(({ name }) => name),
    );
    throw new ClientError(`there is no command "${verb}"`, {
      exitCode: ExitCode.Usage,
      hint: guess === undefined ? 'acrnvm help lists them' : `did you mean ${guess}?`,
    });
  }
  const invocation = parse(rest);
  const tooMany = invocation.words[command.words];
  if (tooMany !== undefined) {
    throw new ClientError(`${verb}: "${tooMany}" is one word too many`, {
      exitCode: ExitCode.Usage,
      hint: `acrnvm ${command.usage}`,
    });
  }
  return (await command.run(invocation)) ?? ExitCode.Ok;
}

process.stdout.on('error', ({ code, message }: NodeJS.ErrnoException) => {
  // Who reads only the first lines is not a failure; what could not be written is.
  if (code === 'EPIPE') process.exit(ExitCode.Ok);
  process.stderr.write(`acrnvm: standard output: ${message}\n`);
  process.exit(ExitCode.IoError);
});
main(process.argv.slice(2)).then(
  // Behind everything that was printed: what went wrong with that ends the process otherwise.
  (code) => process.stdout.write('', (error) => error instanceof Error || process.exit(code)),
  (error: unknown) => {
    const { message, hint } = error as DmError;
    process.stderr.write(`acrnvm: ${message}\n${hint === undefined ? '' : `hint: ${hint}\n`}`);
    process.exit(error instanceof DmError ? error.exitCode : ExitCode.Software);
  },
);
