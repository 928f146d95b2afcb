/** Options of vhost-vsock. */
import { accessSync, constants } from 'node:fs';
import * as v from 'valibot';
import { ConfigError, ExitCode, HostError } from '../../../../core/errors.ts';
import { pathFailure } from '../../../../core/host/path-failure.ts';
import { integer } from '../../../../core/options.ts';
import { describePciDriver } from '../../driver.ts';

export const VSOCK_PATH = '/dev/vhost-vsock';
export const VSOCK_HINT = 'modprobe vhost_vsock';
/** 0 to 2 are the hypervisor, the local and the host's own addresses; the last is a wildcard. */
const FIRST_CID = 3;
const LAST_CID = 0xfffffffe;

export const VsockOptions = v.strictObject({
  cid: v.pipe(
    integer({ min: FIRST_CID, max: LAST_CID }),
    v.metadata({ arg: 'cid=N', help: "the guest's vsock address, 3 or more", named: true }),
  ),
});

/** @throws ConfigError */
export function parseVsockText(text: string): Record<string, unknown> {
  if (!text.startsWith('cid=')) throw new ConfigError('vhost-vsock: which address? cid=N');
  return { cid: text.slice('cid='.length) };
}

export const vsockInfo = describePciDriver({
  name: 'vhost-vsock',
  summary: 'sockets between host and guest, by the kernel',
  options: VsockOptions,
  parseText: parseVsockText,
  inspectHost: ({ cid }) => {
    try {
      accessSync(VSOCK_PATH, constants.R_OK | constants.W_OK);
    } catch (error) {
      const { errno, message, exitCode } = pathFailure(`vhost-vsock,cid=${cid}: ${VSOCK_PATH}: open`, error);
      const isForbidden = exitCode === ExitCode.NoPermission;
      throw new HostError(message, errno, {
        exitCode: isForbidden ? exitCode : ExitCode.Unavailable,
        hint: isForbidden ? 'run as root, or as a user of the group kvm' : VSOCK_HINT,
      });
    }
  },
  claims: ({ cid }) => [{ what: `cid ${cid}`, key: `cid ${cid}` }],
});
