/** Options of virtio-rpmb. */
import { statSync } from 'node:fs';
import * as v from 'valibot';
import { ConfigError, ExitCode } from '../../../../core/errors.ts';
import { outputClaim } from '../../../../core/host-claims.ts';
import { UnknownOption } from '../../../../core/options.ts';
import { MiB } from '../../../../core/units.ts';
import { inspectCharBackend } from '../../../uart/backends/inspect.ts';
import { describePciDriver } from '../../driver.ts';

/** As with C. [RPMB_SIM_PATH_NAME] */
const DEFAULT_PATH = '/data/rpmbfile';

/** A simulated one: the blocks, and behind them the page of its counter. */
export const BLOCKS_BYTES = 4 * MiB;
export const PAGE_BYTES = 4096;
export const FILE_BYTES = BLOCKS_BYTES + PAGE_BYTES;

export const RpmbOptions = v.strictObject({
  isPhysical: v.optional(
    v.pipe(
      v.boolean(),
      v.metadata({ arg: 'physical_rpmb', help: "the partition of this host's storage, by /dev/rpmbmux", named: true }),
    ),
    false,
  ),
  path: v.optional(
    v.pipe(
      v.string(),
      v.metadata({ arg: 'path=FILE', help: `the file of a simulated one, default ${DEFAULT_PATH}`, named: true }),
    ),
    DEFAULT_PATH,
  ),
});

/** Whether what is there can be one. @throws ConfigError (65) */
function inspectStore(path: string): void {
  const stat = statSync(path, { throwIfNoEntry: false });
  if (stat === undefined || (stat.isFile() && [0, BLOCKS_BYTES, FILE_BYTES].includes(stat.size))) return;
  const why = stat.isFile() ? `it has ${stat.size} bytes` : 'it is no regular file';
  throw new ConfigError(`${path} is no replay protected memory: ${why}`, {
    exitCode: ExitCode.DataError,
    hint: 'name another file: path=FILE makes it',
  });
}

/** Compat: C takes every word but physical_rpmb for nothing. @throws ConfigError */
export function parseRpmbText(text: string): Record<string, unknown> {
  const options: { isPhysical?: boolean; path?: string } = {};
  for (const word of text === '' ? [] : text.split(',')) {
    if (word === 'physical_rpmb') options.isPhysical = true;
    else if (word === 'path=') throw new ConfigError('virtio-rpmb: path=: the name of the file is missing');
    else if (word.startsWith('path=')) options.path = word.slice('path='.length);
    else throw new UnknownOption(word, 'virtio-rpmb');
  }
  if (options.isPhysical === true && options.path !== undefined) {
    throw new ConfigError('virtio-rpmb: physical_rpmb has no file: leave path= out');
  }
  return options;
}

export const rpmbInfo = describePciDriver({
  name: 'virtio-rpmb',
  summary: 'replay protected memory: a file, or a partition of the host',
  options: RpmbOptions,
  isSingle: true,
  parseText: parseRpmbText,
  claims: ({ isPhysical, path }) => {
    const { what, key } = outputClaim(path);
    return isPhysical ? [] : [{ what, key }];
  },
  inspectHost: ({ isPhysical, path }) => {
    if (isPhysical || path === DEFAULT_PATH) return;
    inspectCharBackend({ kind: 'file', path });
    inspectStore(path);
  },
});
