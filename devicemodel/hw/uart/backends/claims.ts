/** What of this host a character back end has for itself. */
import { fileKey, type HostClaim, outputClaim, placeKey, socketClaim } from '../../../core/host-claims.ts';
import type { CharBackendSpec } from './spec.ts';

/** Standard input and output are shared out by the pool, which also knows what to use instead. */
export function charBackendClaims(spec: CharBackendSpec): readonly HostClaim[] {
  switch (spec.kind) {
    case 'tty':
      return [
        {
          what: spec.path,
          key: `terminal ${fileKey(spec.path)}`,
          consequence: 'each gets a part of what is typed there',
        },
      ];
    case 'file':
      return [outputClaim(spec.path)];
    case 'unix':
      return spec.role === 'server' ? [socketClaim(spec.path)] : [];
    case 'pty':
      return spec.linkPath === undefined ? [] : [{ what: `pty link ${spec.linkPath}`, key: placeKey(spec.linkPath) }];
    case 'tcp':
      return spec.port === 0 ? [] : [tcpClaim(spec.address, spec.port)];
    default:
      return [];
  }
}

export function tcpClaim(address: string, port: number): HostClaim {
  const host = address === 'localhost' ? '127.0.0.1' : address;
  return { what: `tcp port ${port} of ${host}`, key: `tcp ${host} ${port}` };
}
