/** What of this host a character back end has for itself. */
import { fileKey, type HostClaim, outputClaim, placeKey, socketClaim } from '../../../core/host-claims.ts';
import type { CharBackendSpec } from './spec.ts';

/** What a serial port can have instead of standard input and output. */
const OTHER_THAN_STDIO = 'give the serial port pty, tcp:PORT or unix:PATH';

/** @param otherThanStdio what the device can have where another one has standard input and output. */
export function charBackendClaims(spec: CharBackendSpec, otherThanStdio = OTHER_THAN_STDIO): readonly HostClaim[] {
  switch (spec.kind) {
    case 'stdio':
      return [{ what: 'stdio', key: 'stdio', hint: otherThanStdio }];
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
