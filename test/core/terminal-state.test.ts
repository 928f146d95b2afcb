import { closeSync, openSync } from 'node:fs';
import { expect, test } from 'vitest';
import { openPty } from '../../devicemodel/core/host/tty.ts';
import { isTerminal } from '../../devicemodel/core/terminal-state.ts';

// Mutation: without isatty, or with a throw where the descriptor is closed.
test('a pseudo terminal is a terminal; a file, /dev/null and what is not open are none', () => {
  const { masterFd, slaveFd } = openPty();
  const [file, nothing] = [openSync(import.meta.filename, 'r'), openSync('/dev/null', 'r')];
  try {
    expect([slaveFd, file, nothing, -1].map(isTerminal)).toEqual([true, false, false, false]);
  } finally {
    for (const fd of [masterFd, slaveFd, file, nothing]) closeSync(fd);
  }
});
