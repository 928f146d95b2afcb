/** Options of virtio-rpmb. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { UnknownOption } from '../../../../core/options.ts';
import { inspectCharBackend } from '../../../uart/backends/inspect.ts';
import { describePciDriver } from '../../driver.ts';

/** As with C. [RPMB_SIM_PATH_NAME] */
const DEFAULT_PATH = '/data/rpmbfile';

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

/** Compat: C takes every word but physical_rpmb for nothing. @throws ConfigError */
export function parseRpmbText(text: string): Record<string, unknown> {
  const options: { isPhysical?: boolean; path?: string } = {};
  for (const word of text === '' ? [] : text.split(',')) {
    if (word === 'physical_rpmb') options.isPhysical = true;
    else if (/^path=./.test(word)) options.path = word.slice('path='.length);
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
  inspectHost: ({ isPhysical, path }) => {
    if (!isPhysical && path !== DEFAULT_PATH) inspectCharBackend({ kind: 'file', path });
  },
});
