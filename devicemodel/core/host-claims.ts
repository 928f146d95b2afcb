/** What a device wants of this host, for a look at whether two of one VM want the same thing. */
import { realpathSync, statSync } from 'node:fs';
import { basename, dirname, resolve } from 'node:path';

export interface HostClaim {
  /** For people: `socket /run/a`. */
  readonly what: string;
  /** The same for the same thing. */
  readonly key: string;
  /** Holders that are content with one another. */
  readonly isShared?: boolean;
  /** A part of it, in bytes; default: the whole. */
  readonly range?: { readonly base: number; readonly sizeBytes: number };
  /** What comes of it: the VM starts, and a person is told. Absent: it does not start. */
  readonly consequence?: string;
  /** The consequence is this mild only between holders that have the same here. */
  readonly variant?: string;
  /** What to do instead. */
  readonly hint?: string;
  /** It is a file that is written as things happen. */
  readonly outputPath?: string;
}

/** Of something that is in a folder by this name, whatever the name leads to: a socket, a link. */
export function placeKey(path: string): string {
  const whole = resolve(path);
  try {
    return `place ${realpathSync(dirname(whole))}/${basename(whole)}`;
  } catch {
    return `place ${whole}`;
  }
}

/** Of a file or device, by whichever of its names. */
export function fileKey(path: string): string {
  try {
    const { dev, ino, rdev } = statSync(path);
    return rdev === 0 ? `file ${dev}:${ino}` : `device ${rdev}`;
  } catch {
    return placeKey(path);
  }
}

/** Of a socket that somebody listens at. */
export function socketClaim(path: string): HostClaim {
  return { what: `socket ${path}`, key: placeKey(path) };
}

/** Of a file that is written as things happen. */
export function outputClaim(path: string): HostClaim {
  return { what: path, key: fileKey(path), consequence: 'what both write is mixed in it', outputPath: path };
}

/** Whether both can be had. */
export function areCompatible(one: HostClaim, other: HostClaim): boolean {
  if (one.key !== other.key || (one.isShared === true && other.isShared === true)) return true;
  const [a, b] = [one.range, other.range];
  if (a === undefined || b === undefined) return false;
  return a.base + a.sizeBytes <= b.base || b.base + b.sizeBytes <= a.base;
}
