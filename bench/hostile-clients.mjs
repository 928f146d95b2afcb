/**
 * node bench/hostile-clients.mjs [--seconds N] [ATTACK...]
 *
 * Does a guest notice what hostile clients do to the sockets of its VM? The demo guest on the embedded hypervisor echoes
 * lines of its console while each attack of test/support/hostile-client.mjs runs for some seconds: how long an echo takes,
 * how long an honest client of the API waits, how much memory and how many descriptors the process has before and after.
 * Times are those of a machine that does nothing else.
 */
import '../tools/usage.mjs';
import { spawn } from 'node:child_process';
import { readdirSync, readFileSync, rmSync } from 'node:fs';
import { request } from 'node:http';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { makeScratch } from '../tools/scratch.mjs';

const root = fileURLToPath(new URL('..', import.meta.url));
const client = join(root, 'test/support/hostile-client.mjs');
const LIMIT_MS = 20;

/** A line comes back from the guest. @returns milliseconds */
function echo(vm, count) {
  const text = `n${count}`;
  const startMs = performance.now();
  return new Promise((resolve) => {
    let seen = '';
    const look = (data) => {
      seen += data;
      if (!seen.includes(`echo: "${text}"`)) return;
      vm.stdout.off('data', look);
      resolve(performance.now() - startMs);
    };
    vm.stdout.on('data', look);
    vm.stdin.write(`${text}\r`);
  });
}

/** An honest question. @returns milliseconds, or undefined for anything but 200 */
function ask(socketPath) {
  const startMs = performance.now();
  return new Promise((resolve) => {
    const asked = request({ socketPath, path: '/v1/vm', agent: false }, (response) => {
      response.resume();
      response.once('end', () => resolve(response.statusCode === 200 ? performance.now() - startMs : undefined));
      response.once('error', () => resolve(undefined));
    });
    asked.once('error', () => resolve(undefined));
    asked.end();
  });
}

const rssMiB = (pid) => Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))[1]) / 1024;
const descriptors = (pid) => readdirSync(`/proc/${pid}/fd`).length;
const shown = (ms) => ms.toFixed(1).padStart(6);
const of = (sorted, part) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * part))] ?? Number.NaN;

/** For so long, an echo after the other, and honest questions beside. */
async function watch(vm, socketPath, seconds) {
  const echoes = [];
  const answers = [];
  let refused = 0;
  let isOver = false;
  const honest = (async () => {
    while (!isOver) {
      const ms = await ask(socketPath);
      if (ms === undefined) refused++;
      else answers.push(ms);
      await sleep(50);
    }
  })();
  const endMs = performance.now() + seconds * 1000;
  for (let i = 0; performance.now() < endMs; i++) {
    echoes.push(await echo(vm, i));
    await sleep(10);
  }
  isOver = true;
  await honest;
  const sort = (list) => list.sort((a, b) => a - b);
  return { echoes: sort(echoes), answers: sort(answers), refused };
}

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { seconds: { type: 'string', default: '3' } },
});
const seconds = Number(values.seconds);
const scratch = makeScratch('hostile-clients');
const api = join(scratch, 'api.sock');
const monitor = join(scratch, 'monitor.sock');
const args =
  `--hypervisor soft -m 128M -s 0:0,hostbridge -s 1:0,lpc -l com1,stdio --api-socket ${api} --cmd_monitor ${monitor}`.split(
    ' ',
  );
const vm = spawn(
  process.execPath,
  [
    join(root, 'dist/acrn-dm.js'),
    ...args,
    '-k',
    join(root, 'examples/guest/demo.bzimage'),
    '-B',
    'demo=echo',
    'hostile',
  ],
  { env: { ...process.env, ACRN_RUN_DIR: scratch }, stdio: ['pipe', 'pipe', 'inherit'] },
);
vm.stdout.setEncoding('utf8');
await new Promise((resolve) => vm.stdout.on('data', (text) => text.includes('> ') && resolve()));
await ask(api);
await sleep(500);
const manager = join(scratch, 'mngr', readdirSync(join(scratch, 'mngr'))[0]);
const placeOf = (name) => (name.startsWith('monitor-') ? monitor : name.startsWith('acrnctl-') ? manager : api);

const names = spawn(process.execPath, [client, '--list']);
let list = '';
for await (const text of names.stdout) list += text;
const attacks = positionals.length > 0 ? positionals : list.trim().split('\n');

console.log(
  '                    console: median   99 %   worst ms   honest client: median  worst ms  refused   MiB   fds',
);
let isBad = false;
const before = { rss: rssMiB(vm.pid), fds: descriptors(vm.pid) };
for (const name of ['nothing', ...attacks]) {
  let rounds = '';
  const child = name === 'nothing' ? undefined : spawn('nice', [process.execPath, client, name, placeOf(name)]);
  child?.stdout.on('data', (text) => {
    rounds = String(text).trim().split('\n').at(-1);
  });
  if (child !== undefined) await sleep(300);
  const { echoes, answers, refused } = await watch(vm, api, seconds);
  child?.kill();
  await sleep(300);
  const worst = of(echoes, 1);
  // The 99th: the worst one is the machine's as often as ours.
  if (name !== 'nothing' && of(echoes, 0.99) > LIMIT_MS) isBad = true;
  console.log(
    `${name.padEnd(28)} ${shown(of(echoes, 0.5))} ${shown(of(echoes, 0.99))}   ${shown(worst)}   ${shown(of(answers, 0.5)).padStart(20)}    ${shown(of(answers, 1))} ${String(refused).padStart(8)} ${rssMiB(vm.pid).toFixed(0).padStart(6)} ${String(descriptors(vm.pid)).padStart(5)}  ${rounds}`,
  );
}
await sleep(2000);
console.log(
  `memory ${before.rss.toFixed(0)} -> ${rssMiB(vm.pid).toFixed(0)} MiB, descriptors ${before.fds} -> ${descriptors(vm.pid)}`,
);
vm.kill('SIGTERM');
await new Promise((resolve) => vm.once('exit', resolve));
rmSync(scratch, { recursive: true, force: true });
process.exit(isBad ? 1 : 0);
