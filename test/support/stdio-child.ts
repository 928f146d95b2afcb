/**
 * A process with a stdio back end, for tests of what it leaves behind. `argv[2]` says how it ends. It writes `ready`
 * first, and echoes what it receives in angle brackets.
 */
import { Log } from '../../devicemodel/core/log.ts';
import { openCharBackend } from '../../devicemodel/hw/uart/backends/open.ts';

const manner = process.argv[2];
const log = new Log([{ maxLevel: 4, write: (_level, line) => process.stderr.write(`${line}\n`) }]);
const backend = openCharBackend('stdio', { user: 'com1', log });
const say = (text: string) => {
  for (const byte of Buffer.from(text, 'latin1')) backend.write(byte);
  backend.flush();
};
// The process lives until it is told to go, whatever becomes of its input.
const alive = setInterval(() => {}, 60_000);
let heard = '';
backend.onReadable = () => {
  for (let byte = backend.read(); byte >= 0; byte = backend.read()) heard += String.fromCharCode(byte);
  if (manner !== 'big') say(`<${heard}>`);
  if (heard.includes('q')) void end();
  heard = '';
};

async function end(): Promise<void> {
  switch (manner) {
    case 'stop':
      clearInterval(alive);
      await backend.stop();
      return;
    case 'exit':
      say('last words');
      return process.exit(3);
    case 'throw':
      throw new Error('planned crash');
    case 'big':
      // More than any pipe holds, and gone with the process unless stop waits for the reader.
      say('x'.repeat(600_000));
      clearInterval(alive);
      await backend.stop();
  }
}

await backend.start();
say('ready');
if (manner === 'big') void end();
