/**
 * npm run bench [-- [--reference PATH] PART...]
 *
 *   start     start-up times of the program beside those of a bare node
 *   micro     bench/*.bench.ts: parts of the device model inside this process (vitest bench)
 *   large-request  the console beside one disk request of 4 GiB
 *   virtio    disks and networks under load, in the same recorder, beside the C device model (bench/virtio.mjs)
 *   ahci      disks of AHCI in the same way (bench/ahci.mjs)
 *   soft-boot  CPU time of Debian's start on the software engine beside QEMU's TCG (bench/soft-boot.mjs)
 *   pairs     this checkout beside another one, figure by figure (bench/pairs.mjs)
 *   hsmrec    round trips and start-up against a recorded hypervisor, when a recorder is there (as root, huge pages)
 *
 * --reference PATH (or ACRN_DM_REFERENCE=PATH): the C device model, for `virtio` and `ahci` to take turns with.
 */
import './usage.mjs';
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { benchAhci } from '../bench/ahci.mjs';
import { benchLargeRequest } from '../bench/large-request.mjs';
import { benchPairs } from '../bench/pairs.mjs';
import { benchSoftBoot } from '../bench/soft-boot.mjs';
import { benchVirtio } from '../bench/virtio.mjs';
import { prepare, root, run } from './prepare.mjs';
import { makeScratch } from './scratch.mjs';

/** Interleaved, so that what else the machine does hits all alike. */
function startTimes(commands, rounds) {
  const times = commands.map(() => []);
  for (let round = 0; round < rounds; round++) {
    for (const [index, command] of commands.entries()) {
      const startMs = performance.now();
      const { status } = spawnSync(process.execPath, command.args, { cwd: root, stdio: 'ignore' });
      if (status !== 0) throw new Error(`${command.name} ended with status ${status}`);
      times[index].push(performance.now() - startMs);
    }
  }
  for (const [index, command] of commands.entries()) {
    const sorted = times[index].sort((a, b) => a - b);
    const [min, median] = [sorted[0], sorted[rounds >> 1]].map((ms) => ms.toFixed(1).padStart(6));
    console.log(`${command.name.padEnd(28)} min ${min} ms   median ${median} ms`);
  }
}

function benchStart() {
  const vm = '--dry-run -m 256M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio -s 5,ivshmem,hv:/shm,2'.split(' ');
  startTimes(
    [
      { name: 'node -e 0', args: ['-e', '0'] },
      { name: 'acrn-dm --version', args: ['dist/acrn-dm.js', '--version'] },
      { name: 'acrn-dm --help', args: ['dist/acrn-dm.js', '--help'] },
      {
        name: 'acrn-dm --dry-run',
        args: ['dist/acrn-dm.js', ...vm, '-k', 'examples/guest/demo.bzimage', '-B', 'console=ttyS0', 'vm1'],
      },
    ],
    20,
  );
}

function benchMicro() {
  if (!readdirSync(join(root, 'bench')).some((name) => name.endsWith('.bench.ts'))) return 0;
  return run(process.execPath, [join(root, 'node_modules/vitest/vitest.mjs'), 'bench', '--run', '--dir', 'bench']);
}

/** Build the recorder and its fixtures, and run `measure(recorder, work)` with them. */
function withRecorder(part, measure) {
  const recorder = process.env.HSMREC_DIR ?? join(root, '../shared/tools/hsmrec');
  if (!existsSync(recorder) || process.getuid() !== 0) {
    console.log(`${part}: skipped (${existsSync(recorder) ? 'needs root' : `no ${recorder}`})`);
    return 0;
  }
  const work = makeScratch('bench');
  try {
    const program = `make -s -C '${recorder}' OUT='${work}' && '${recorder}/mkfixtures.py' '${work}/fx' >/dev/null`;
    return run('bash', ['-c', program]) || measure(recorder, work);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

const benchHsmrec = () =>
  withRecorder('hsmrec', (recorder, work) => {
    const dm = `node '${join(root, 'dist/acrn-dm.js')}'`;
    return run('bash', ['-c', `HSMREC='${work}/hsmrec' NOVIRTIO=1 '${recorder}/bench.sh' '${work}/fx' ${dm}`]);
  });

const benchOfVirtio = () =>
  withRecorder('virtio', (_recorder, work) => {
    const dm = [process.execPath, join(root, 'dist/acrn-dm.js')];
    return benchVirtio({ dm, recorder: join(work, 'hsmrec'), kernel: join(work, 'fx/bzimage') });
  });

const benchOfAhci = () =>
  withRecorder('ahci', (_recorder, work) => {
    const dm = [process.execPath, join(root, 'dist/acrn-dm.js')];
    return benchAhci({ dm, recorder: join(work, 'hsmrec'), kernel: join(work, 'fx/bzimage') });
  });

const benchOfLargeRequest = () =>
  withRecorder('large-request', (_recorder, work) => {
    const dm = [process.execPath, join(root, 'dist/acrn-dm.js')];
    return benchLargeRequest({ dm, recorder: join(work, 'hsmrec'), kernel: join(work, 'fx/bzimage') });
  });

const benchOfPairs = () =>
  withRecorder('pairs', (_recorder, work) =>
    benchPairs(root, { recorder: join(work, 'hsmrec'), kernel: join(work, 'fx/bzimage') }),
  );

const parts = {
  start: benchStart,
  micro: benchMicro,
  virtio: benchOfVirtio,
  ahci: benchOfAhci,
  'large-request': benchOfLargeRequest,
  'soft-boot': () => benchSoftBoot(root),
  hsmrec: benchHsmrec,
  pairs: benchOfPairs,
};

/** @returns parts that are asked for. */
function readArguments(argv) {
  const at = argv.indexOf('--reference');
  if (at === -1) return argv;
  const path = argv[at + 1];
  if (path === undefined || !existsSync(path)) throw new Error(`--reference: there is no ${path ?? 'path'}`);
  process.env.ACRN_DM_REFERENCE = path;
  return argv.toSpliced(at, 2);
}

const asked = readArguments(process.argv.slice(2));
await prepare();
let status = 0;
for (const name of asked.length > 0 ? asked : Object.keys(parts)) {
  const part = parts[name];
  if (part === undefined) throw new Error(`no bench part "${name}"; there are ${Object.keys(parts).join(', ')}`);
  console.log(`\n--- ${name}`);
  status = part() || status;
}
process.exit(status);
