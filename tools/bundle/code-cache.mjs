/** V8's code cache beside the bundle: what a usual start compiles, from a run of the bundle that was just made. */
import { spawnSync } from 'node:child_process';
import { existsSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { root } from '../root.mjs';
import { makeScratch } from '../scratch.mjs';

/** How long the run may take; it takes two seconds. */
const RUN_MS = 60_000;

/** How a run went, as a part of a sentence. */
const endOf = ({ error, signal, status }) => error?.message ?? (signal === null ? `status ${status}` : signal);

/**
 * The run is that of a usual VM on the embedded hypervisor, from its start to its end, which is what every start takes but for
 * the driver of ACRN; where that engine is not installed or fails, as far as a plan goes.
 */
export function makeCodeCache(dist) {
  for (const name of readdirSync(dist)) if (name.endsWith('.cache')) rmSync(join(dist, name));
  // What has a name on this machine must be nobody else's. 15 characters are possible, and seven are for the pid.
  const name = `cache-${process.pid}`;
  const devices = `-s 0:0,hostbridge -s 1:0,lpc -l com1 -s 5,ivshmem,hv:/${name},2 -s 6,uart,vuart_idx:1`.split(' ');
  const boot = ['-k', join(root, 'examples/guest/demo.bzimage'), '-B', 'console=ttyS0 demo=idle,0'];
  // Where the VMs of this user meet, nothing of this one is left, not even the folder.
  const env = { ...process.env, ACRN_RUN_DIR: makeScratch('build') };
  const run = (...how) =>
    spawnSync(
      process.execPath,
      [join(root, 'tools/bundle/write-code-cache.cjs'), dist, ...how, '-m', '256M', ...devices, ...boot, name],
      { encoding: 'utf8', env, stdio: ['ignore', 'pipe', 'pipe'], timeout: RUN_MS, killSignal: 'SIGKILL' },
    );
  if (existsSync(join(root, 'node_modules/v86'))) {
    const vm = run('--hypervisor', 'soft', '--api-socket', 'off');
    if (vm.status === 0) return;
    const [firstLine] = vm.stderr.split('\n');
    console.error(`build: a smaller code cache, since the VM that it comes from failed (${endOf(vm)}): ${firstLine}`);
  }
  const plan = run('--dry-run');
  if (plan.status !== 0) console.error(`build: the plan for the code cache failed (${endOf(plan)}):\n${plan.stderr}`);
}
