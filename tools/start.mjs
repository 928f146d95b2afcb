/**
 * npm start: installs and builds if needed, then boots the demo guest (examples/guest) on the embedded hypervisor. It
 * tours its machine, powers off, and this ends with the device model's status. Needs no ACRN, no KVM and no root.
 *
 *   npm start -- "demo=echo"      other boot arguments, see examples/guest/README.md
 */
import './usage.mjs';
import { existsSync } from 'node:fs';
import { join } from 'node:path';
import { prepare, root, run } from './prepare.mjs';

await prepare();

if (!existsSync(join(root, 'node_modules/v86'))) {
  console.error('acrn-dm: the embedded hypervisor needs the optional package v86: npm install v86');
  process.exit(1);
}

const bootargs = process.argv.slice(2).join(' ');
const args = [
  ...['--hypervisor', 'soft'],
  ...['-m', '128M'],
  ...['-s', '0:0,hostbridge'],
  ...['-s', '1:0,lpc'],
  ...['-l', 'com1,stdio'],
  ...['-s', '5,ivshmem,hv:/demo,2'],
  ...['-s', '6,uart,vuart_idx:1'],
  ...['-k', 'examples/guest/demo.bzimage'],
  ...['-B', bootargs === '' ? 'demo=tour' : bootargs],
  'demo',
];
const quote = (word) => (/[\s"$]/.test(word) ? `'${word}'` : word);
console.log(`$ acrn-dm ${args.map(quote).join(' ')}`);
process.exit(run(process.execPath, ['dist/acrn-dm.js', ...args]));
