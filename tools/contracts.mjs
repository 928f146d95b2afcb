/**
 * npm run contracts [-- WORD...]: take each owner of a contract away, and see that a test notices. What is changed is one
 * line of the source, put back at once; a contract whose tests still pass is the fault this looks for. WORD: only those
 * whose line in the list below has it. The list is what docs/architecture.md shows (test/contracts.test.ts compares).
 */
import './usage.mjs';
import { spawn } from 'node:child_process';
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { root } from './root.mjs';

const virtio = 'devicemodel/hw/pci/virtio';
const wish = { contract: 'the wish to end', owner: '`PowerState` of `Vm`', test: 'test/core/power-off.test.ts' };
const lent = {
  contract: 'what is lent',
  owner: 'the data thread, until it answered',
  test: 'test/hw/pci/virtio/data-thread/stalled-storage.test.ts',
};
const shared = {
  contract: 'what is lent',
  owner: 'the copying thread, until it answered',
  test: 'test/hw/storage/copy-thread.test.ts',
  file: 'devicemodel/hw/storage/copy-thread/copy-thread.ts',
};
const usb = {
  contract: 'what is lent',
  owner: '`Lent` of a USB controller',
  test: 'test/hw/pci/xhci/xhci.test.ts',
  file: 'devicemodel/hw/pci/xhci/lent.ts',
};
const bound = { contract: 'one step is bounded', owner: '`serveChains`, `ImageAside`' };
const durable = {
  contract: 'durability',
  owner: '`DiskImage.syncFailure`',
  test: 'test/hw/storage/durability.test.ts',
};
const ours = {
  contract: 'sockets and files we make',
  owner: '`listenUnix`, `ensureOwnFolder`',
  test: 'test/core/host/unix-listener.test.ts',
};
const groups = {
  contract: "what is the group's",
  owner: 'its owner, as the kernel says',
  test: 'test/hypervisor/embedded/group.test.ts',
};
const thread = { contract: 'the thread', owner: '`GuestLoop`; `Vm` says when' };
const signals = { contract: 'signals', owner: '`process-signals.ts`, `Launch`' };

/** `from` stands once in `file`; with `to` in its place the owner is gone. */
export const contracts = [
  {
    ...wish,
    mutation: 'what was asked before the first life is forgotten',
    file: 'devicemodel/core/vm.ts',
    from: '      let event = this.#power.event;',
    to: '      let event: PowerEvent | undefined;',
  },
  {
    ...wish,
    mutation: 'configure does not look',
    file: 'devicemodel/core/life.ts',
    from: 'await board.start();\n    this.#power.checkWanted();',
    to: 'await board.start();',
  },
  {
    ...wish,
    mutation: 'a full reset keeps what it was asked for',
    file: 'devicemodel/core/vm.ts',
    from: "return instead ?? (event.kind === 'poweroff' ? event : (this.#power.event ?? event));",
    to: 'return instead ?? event;',
  },
  {
    ...wish,
    mutation: 'a life has a wish of its own',
    file: 'devicemodel/core/life.ts',
    from: '    this.#power = power;\n',
    to: '    this.#power = new (power.constructor as new () => PowerState)();\n',
  },
  {
    ...wish,
    mutation: 'S3 is not woken by it',
    file: 'devicemodel/core/life.ts',
    from: '    this.#wakeUp?.();\n  }',
    to: '  }',
  },
  {
    ...lent,
    mutation: 'after the time-out an order counts as answered',
    file: `${virtio}/data-thread/data-thread.ts`,
    from: 'reject(this.#hang(thread, limitMs));',
    to: 'resolve();',
  },
  {
    ...lent,
    mutation: 'the device thread waits for the answer',
    file: `${virtio}/data-thread/data-thread.ts`,
    from: 'const QUICK_ANSWER_MS = 1;',
    to: 'const QUICK_ANSWER_MS = 60_000;',
  },
  {
    ...lent,
    mutation: 'the vCPU that needs the answer is not held',
    file: `${virtio}/transport/returning.ts`,
    from: '    gate.close();\n',
    to: '',
  },
  {
    ...lent,
    mutation: 'descriptors are closed before the answer',
    file: `${virtio}/transport/queue-lending.ts`,
    from: '    this.#returning = wait.then(() => {',
    to: '    this.#release();\n    this.#returning = wait.then(() => {',
  },
  {
    ...lent,
    mutation: 'a position is written for another set-up',
    file: `${virtio}/data-thread/data-thread.ts`,
    from: '      if (queue.generation !== generation) continue;\n',
    to: '',
    test: 'test/hw/pci/virtio/data-thread/data-thread.test.ts',
  },
  {
    ...lent,
    mutation: 'a hang does not name the request',
    file: `${virtio}/data-thread/data-thread.ts`,
    from: "describeWork?.(words) ?? 'a request'",
    to: "'a request'",
  },
  {
    ...lent,
    mutation: 'a VM whose storage hangs is not paused',
    file: 'devicemodel/core/vm.ts',
    from: '  #endHung(life: Life, error: StorageHangError): PowerEvent {\n    life.abandon();\n',
    to: '  #endHung(_life: Life, error: StorageHangError): PowerEvent {\n',
  },
  {
    ...lent,
    mutation: 'what goes on beside the device thread is not waited for',
    file: `${virtio}/block/requests.ts`,
    from: '      this.#settling = this.#settleAside(aside, queues);\n      return this.#settling;\n',
    to: '      return undefined;\n',
    test: 'test/hw/pci/virtio/block/device-thread.test.ts',
  },
  {
    ...shared,
    mutation: 'what it is at counts as done',
    from: 'if (this.stateOf(job) === JobState.Open) return false;',
    to: '',
  },
  {
    ...shared,
    mutation: 'what a thread had that is gone is waited for',
    from: 'return state === JobState.Open && this.#worker === undefined ? JobState.Failed : state;',
    to: 'return state;',
  },
  {
    ...shared,
    mutation: 'one without a CPU goes on sharing',
    from: 'if (this.#inTime >= 0) return;',
    to: 'if (this.#inTime < Infinity) return;',
  },
  {
    ...shared,
    mutation: 'it writes what makes the file longer',
    file: 'devicemodel/hw/storage/copy-thread/copy-thread-main.ts',
    from: 'endOfFile(fd) < at + sizeBytes ? 0 : ',
    to: '',
  },
  {
    ...shared,
    mutation: 'a write of what it may be writing is begun',
    file: 'devicemodel/hw/storage/ring-queue.ts',
    from: 'if (sharing.postpone(request)) return true;',
    to: '',
  },
  {
    ...usb,
    mutation: 'it is waited for as long as storage is',
    file: 'devicemodel/hw/pci/xhci/controller.ts',
    from: 'patience.within(back, RECALL_MS)',
    to: 'patience.within(back)',
  },
  {
    ...usb,
    mutation: 'what did not come back is waited for again',
    from: 'this.#life = { bytes: 0, transfers: 0 };',
    to: '',
  },
  {
    ...usb,
    mutation: "what comes back late is the next life's",
    from: 'if (life === this.#life && life.transfers === 0) this.#tellBack();',
    to: 'this.#tellBack();',
  },
  {
    ...usb,
    mutation: 'each life lends as much',
    from: ' || all.bytes + bytes > MAX_BYTES_OF_ALL_LIVES',
    to: '',
    test: 'test/hw/pci/xhci/controller.test.ts',
  },
  {
    ...bound,
    mutation: 'a ring is served as long as it has requests: bytes',
    file: `${virtio}/ring/serve-chains.ts`,
    from: ' || cost <= 0',
    to: '',
    test: 'test/hw/pci/virtio/ring/serve-chains.test.ts',
  },
  {
    ...bound,
    mutation: 'a ring is served as long as it has requests: time',
    file: `${virtio}/ring/serve-chains.ts`,
    from: 'isSpent = nowNs >= endNs;',
    to: 'isSpent = false;',
    test: 'test/hw/pci/virtio/ring/serve-chains.test.ts',
  },
  {
    ...bound,
    mutation: 'a read is made as a whole',
    file: `${virtio}/block/requests.ts`,
    from: 'const part = Math.min(count - at, SLICE_BYTES);\n    this.#state.note?.set(Work.Read,',
    to: 'const part = count - at;\n    this.#state.note?.set(Work.Read,',
    test: 'test/hw/pci/virtio/slices.test.ts',
  },
  {
    ...bound,
    mutation: 'a kick waits for storage that hangs, again and again',
    file: 'devicemodel/hw/storage/prompt-wait.ts',
    from: '    this.#restsUntilNs = nowNs + this.#restNs;\n',
    to: '',
    test: 'test/hw/storage/prompt-wait.test.ts',
  },
  {
    ...bound,
    mutation: 'the device thread copies as long as it takes',
    file: 'devicemodel/hw/storage/image-aside.ts',
    from: ' || this.#clock.nowNs() >= endNs',
    to: '',
    test: 'test/hw/storage/image-aside.test.ts',
  },
  {
    ...durable,
    mutation: 'a sync after one that failed is tried',
    file: 'devicemodel/hw/storage/image-io.ts',
    from: '  sync(): number {\n    if (this.syncFailure !== 0) return this.syncFailure;\n',
    to: '  sync(): number {\n    Atomics.store(this.#syncFailure, 0, 0);\n',
  },
  {
    ...durable,
    mutation: 'a failed sync is told once',
    file: 'devicemodel/hw/storage/image-io.ts',
    from: '    Atomics.compareExchange(this.#syncFailure, 0, 0, errno);\n',
    to: '    void errno;\n',
  },
  {
    ...durable,
    mutation: 'each thread has a failure of its own',
    file: 'devicemodel/hw/storage/image-io.ts',
    from: 'new Int32Array(image.syncFailure)',
    to: 'new Int32Array(image.syncFailure.byteLength / 4)',
  },
  {
    ...ours,
    mutation: 'a socket has the mode that the umask leaves',
    file: 'devicemodel/core/host/unix-listener.ts',
    from: 'withUmask(OWNER_ONLY, ',
    to: 'withUmask(0o000, ',
  },
  {
    ...ours,
    mutation: 'a folder has the mode that the umask leaves',
    file: 'devicemodel/core/host/folders.ts',
    from: '    chmodSync(path, mode);\n',
    to: '',
  },
  {
    ...ours,
    mutation: "somebody else's folder is used",
    file: 'devicemodel/core/host/folders.ts',
    from: ': !isOurs(stat)',
    to: ': false',
  },
  {
    ...ours,
    mutation: 'a folder that others may write to is used',
    file: 'devicemodel/core/host/folders.ts',
    from: '(stat.mode & WRITABLE_BY_OTHERS) !== 0',
    to: 'false',
  },
  {
    ...groups,
    mutation: "a VM speaks for another user's",
    file: 'hypervisor/embedded/meeting-folder.ts',
    from: 'return owner !== undefined && owner === userId;',
    to: 'return owner !== undefined || userId === undefined;',
  },
  {
    ...groups,
    mutation: "whoever has a VM's name for doorbells is that VM",
    file: 'hypervisor/embedded/doorbells.ts',
    from: '!folder.isOf(other, way.userId) || ',
    to: '',
  },
  {
    ...groups,
    mutation: 'an id has several connections',
    file: 'hypervisor/embedded/neighbours.ts',
    from: 'if (other === peer || other.vmid !== message.vmid) continue;',
    to: 'if (other.vmid !== -1) continue;',
  },
  {
    ...groups,
    mutation: 'an id has several connections for doorbells',
    file: 'hypervisor/embedded/doorbells.ts',
    from: '(other.vmid || other.calledId) === message.vmid',
    to: 'other.vmid === -1',
  },
  {
    ...groups,
    mutation: 'a file with a second name elsewhere is used',
    file: 'devicemodel/core/host/group-place.ts',
    from: '(stat.mode & OTHERS) === 0 && stat.nlink <= 1',
    to: '(stat.mode & OTHERS) === 0',
  },
  {
    ...groups,
    mutation: "another member's folder is used",
    file: 'devicemodel/core/host/group-place.ts',
    from: 'stat.uid !== 0 && stat.uid !== process.geteuid?.()',
    to: 'stat.uid < 0',
  },
  {
    ...groups,
    mutation: "whatever has a socket's name is given away",
    file: 'devicemodel/core/host/group-place.ts',
    from: '!stat.isSocket() || stat.uid !== process.geteuid?.() || stat.nlink > 1',
    to: 'stat.uid < 0',
    test: 'test/core/host/group-place.test.ts',
  },
  {
    ...groups,
    mutation: 'descriptors that nobody wants are taken with what they come with',
    file: 'devicemodel/core/host/byte-stream.ts',
    from: "      else if (seen.hasRights) this.#end('it sends descriptors');\n",
    to: '',
    test: 'test/hypervisor/embedded/strangers-descriptors.test.ts',
  },
  {
    ...groups,
    mutation: 'and closed with the connection',
    file: 'devicemodel/core/host/wary-socket.ts',
    from: '        Atomics.add(kept, 0, 1);\n',
    to: '        closeFd(fd);\n',
    test: 'test/hypervisor/embedded/strangers-descriptors.test.ts',
  },
  {
    ...groups,
    mutation: 'an id is free whose socket stays',
    file: 'hypervisor/embedded/meeting-folder.ts',
    from: 'return lookAt(path) === undefined;',
    to: 'return true;',
  },
  {
    ...thread,
    mutation: "it stays the guest's when the guest has ended",
    file: 'devicemodel/core/vm.ts',
    from: '      loop.ended();\n',
    to: '',
    test: 'test/core/vm.test.ts',
  },
  {
    ...thread,
    mutation: "it is the guest's before there is one",
    file: 'hypervisor/blocking-loop/loop.ts',
    from: 'this.#lookBeforeWatcher());\n    this.#giveThread();',
    to: 'this.#lookBeforeWatcher());',
    test: 'test/hypervisor/blocking-loop/loop.test.ts',
  },
  {
    ...signals,
    mutation: 'not held from the first line',
    file: 'cmd/first-line.ts',
    from: '\nholdSignals();\n',
    to: '\nvoid holdSignals;\n',
    test: 'test/integration/signals.test.ts',
  },
  {
    ...signals,
    mutation: 'not held to the last line',
    file: 'devicemodel/core/host/process-signals.ts',
    from: '  else if (!hadListener) {',
    to: '  else {',
    test: 'test/core/host/process-signals.test.ts',
  },
  {
    ...signals,
    mutation: 'an unforeseen error ends the process and leaves the VM',
    file: 'library/launcher.ts',
    from: '    this.vm.abandon();\n',
    to: '',
    test: 'test/library/launch.test.ts',
  },
  {
    ...signals,
    mutation: 'the VM is destroyed without a pause',
    file: 'devicemodel/core/life.ts',
    from: '() => hsm?.pauseVm(), () => hsm?.destroyVm()',
    to: '() => hsm?.destroyVm()',
    test: 'test/core/vm.test.ts',
  },
];

const TIMEOUT_MS = 180_000;

/** The group of what runs now, and the source as it was: nothing of either outlives this program. */
let group;
let writeBack = () => {};

function killGroup() {
  try {
    if (group !== undefined) process.kill(-group, 'SIGKILL');
  } catch {
    // Nothing of it is left.
  }
  group = undefined;
}

/**
 * In a group of its own: a worker that turns without end does not notice that its runner was killed.
 * @returns its status; null: it was killed, as is one that takes too long. Rejects where it could not be started.
 */
function runNode(args) {
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, args, { cwd: root, stdio: 'ignore', detached: true });
    group = child.pid;
    const timer = setTimeout(killGroup, TIMEOUT_MS);
    const ended = (answer) => {
      clearTimeout(timer);
      killGroup();
      answer();
    };
    child.once('error', (error) => ended(() => reject(error)));
    child.once('exit', (status) => ended(() => resolve(status)));
  });
}

/** @returns whether a test failed. */
async function isNoticed({ file, from, to, test }) {
  const path = join(root, file);
  const source = readFileSync(path, 'utf8');
  if (source.split(from).length !== 2) throw new Error(`${file}: "${from}" is to be there once`);
  writeBack = () => writeFileSync(path, source);
  try {
    writeFileSync(
      path,
      source.replace(from, () => to),
    );
    // The integration tests run what is built; one that waits for ever has noticed, too.
    if (test.includes('integration')) await runNode([join(root, 'tools/build.mjs')]);
    const vitest = join(root, 'node_modules/vitest/vitest.mjs');
    return (await runNode([vitest, 'run', '--reporter=dot', '--bail=1', test])) !== 0;
  } finally {
    writeBack();
    writeBack = () => {};
  }
}

function endBySignal(_signal, number) {
  killGroup();
  writeBack();
  process.exit(128 + number);
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  for (const signal of ['SIGINT', 'SIGTERM', 'SIGHUP']) process.once(signal, endBySignal);
  const words = process.argv.slice(2);
  const asked = contracts.filter((one) => words.every((word) => JSON.stringify(one).includes(word)));
  let status = asked.length === 0 ? 1 : 0;
  for (const one of asked) {
    const isKilled = await isNoticed(one);
    console.log(`${isKilled ? 'noticed ' : 'SURVIVED'} ${one.contract}: ${one.mutation} (${one.test})`);
    if (!isKilled) status = 1;
  }
  process.exit(status);
}
