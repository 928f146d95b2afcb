/** `acrn-dm --version` and not a word more: libvirt asks for it often, and it needs nothing of the program. */
import './first-line.ts';
import { print } from './report.ts';
import { versionLine } from './version.ts';

process.exit(print([versionLine()]));
