/** A log that remembers its lines as `level: text`. */
import { Log } from '../../devicemodel/core/log.ts';

export function memoryLog(): { readonly log: Log; readonly lines: string[] } {
  const lines: string[] = [];
  const log = new Log([{ maxLevel: 5, write: (level, line) => lines.push(`${level}: ${line}`) }]);
  return { log, lines };
}
