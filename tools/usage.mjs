/** Imported first by a tool: `--help` prints the comment at the head of its file, and nothing is done. */
import { readFileSync } from 'node:fs';

if (process.argv[2] === '--help' || process.argv[2] === '-h') {
  const source = readFileSync(process.argv[1], 'utf8');
  const comment = /\/\*\*([\s\S]*?)\*\//.exec(source)?.[1] ?? '';
  const lines = comment.split('\n').map((line) => line.replace(/^\s*\* ?/, '').trimEnd());
  console.log(lines.join('\n').trim());
  process.exit(0);
}
