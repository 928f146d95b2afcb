/** The program's version: put in by the bundler, or read from package.json when the sources run. */
import fs from 'node:fs';

declare const ACRN_DM_VERSION: string | undefined;

/** The ACRN release whose device model this one takes the place of. */
const ACRN_RELEASE = '3.4';

/** The line of `--version`: libvirt's ACRN driver wants this beginning and a dotted number. */
export function versionLine(): string {
  return `DM version is: ${ACRN_RELEASE} (acrn-dm ${version()})`;
}

export function version(): string {
  if (typeof ACRN_DM_VERSION === 'string') return ACRN_DM_VERSION;
  try {
    const text = fs.readFileSync(new URL('../package.json', import.meta.url), 'utf8');
    return String((JSON.parse(text) as { version?: unknown }).version);
  } catch {
    return 'unknown';
  }
}
