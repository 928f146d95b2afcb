/** `--vtpm2 sock_path=PATH`: a TPM 2.0 that swtpm plays. */
import * as v from 'valibot';
import { ConfigError } from '../../core/errors.ts';
import { inspectServedSocket } from '../../core/host/socket-path.ts';
import { placeKey } from '../../core/host-claims.ts';
import { parseSocketPath } from '../../core/options.ts';
import { definePlatformDriver } from './driver.ts';

export const Vtpm2Options = v.strictObject({
  socketPath: v.pipe(
    v.string(),
    v.metadata({ arg: 'sock_path=PATH', help: 'control socket of swtpm (swtpm socket --ctrl)', named: true }),
  ),
});

/** Compat: C starts without a TPM when `sock_path=` is missing. As in C the path ends at a comma; what follows is nothing. */
function parseText(text: string): Record<string, unknown> {
  const path = /^sock_path=([^,]*)/.exec(text)?.[1];
  if (path === undefined) {
    throw new ConfigError(`sock_path= is missing in "${text}"`, { hint: 'write --vtpm2 sock_path=PATH' });
  }
  return { socketPath: parseSocketPath(path) };
}

export const vtpm2 = definePlatformDriver({
  name: 'vtpm2',
  group: 'Devices',
  arg: 'sock_path=PATH',
  summary: 'TPM 2.0 backed by swtpm',
  options: Vtpm2Options,
  parseText,
  claims: ({ socketPath }) => [{ what: `the TPM at ${socketPath}`, key: placeKey(socketPath) }],
  passedOver: (text) => {
    const comma = text.indexOf(',');
    return comma < 0 ? [] : [`the path ends at the comma, "${text.slice(comma + 1)}" is ignored`];
  },
  check: (all) => {
    if (!all.some(({ driver }) => driver === 'acpidev_pt')) return;
    throw new ConfigError('--vtpm2 and --acpidev_pt: a VM has one TPM', { hint: 'give one of the two' });
  },
  /** Compat: C starts without a TPM. */
  inspectHost: ({ socketPath }) =>
    inspectServedSocket(
      socketPath,
      `start swtpm first: swtpm socket --tpm2 --tpmstate dir=DIR --ctrl type=unixio,path=${socketPath}`,
    ),
  create: async ({ socketPath }, env) => new (await import('./tpm/vtpm2.ts')).VirtualTpm(socketPath, env),
});
