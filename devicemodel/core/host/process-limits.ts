/** Limits of this process (`ulimit`, getrlimit(2)), as the kernel lists them. Needs nothing native: clients ask here, too. */
import { readFileSync } from 'node:fs';

/** @returns nothing where nobody says so. */
export function processLimitsText(): string {
  try {
    return readFileSync('/proc/self/limits', 'utf8');
  } catch {
    return '';
  }
}

/**
 * @param name as the list has it, `Max open files`.
 * @returns the soft limit, in the list's unit; Infinity for none, and for what the list does not have.
 */
export function processLimit(name: string, text = processLimitsText()): number {
  return Number(new RegExp(`^${name}\\s+(\\d+)`, 'm').exec(text)?.[1] ?? Number.POSITIVE_INFINITY);
}
