/**
 * In koffi's place in the thread of a vCPU: KVM_RUN waits for the test to put an exit into struct kvm_run
 * (fake-guest.ts), everything else is koffi's. No signal ends it, so it looks at immediate_exit all the time.
 */
const { workerData } = require('node:worker_threads');
const koffi = require('koffi');

const CONTROL_AT = 0x3000;
const EINTR = 4;
const pause = new Int32Array(new SharedArrayBuffer(4));
const run = new Uint8Array(koffi.view(workerData.runAddress, CONTROL_AT));
/** Exits that were put there, taken, and finished: by the KVM_RUN after their answer. Times that it was entered. */
const control = new Int32Array(koffi.view(workerData.runAddress + BigInt(CONTROL_AT), 16));
const [POSTED, TAKEN, FINISHED, ENTERED] = [0, 1, 2, 3];
let errno = 0;

function enter() {
  Atomics.add(control, ENTERED, 1);
  Atomics.store(control, FINISHED, Atomics.load(control, TAKEN));
  for (;;) {
    if (run[1] !== 0) {
      errno = EINTR;
      return -1;
    }
    if (Atomics.load(control, POSTED) !== Atomics.load(control, TAKEN)) {
      Atomics.add(control, TAKEN, 1);
      return 0;
    }
    Atomics.wait(pause, 0, 0, 1);
  }
}

module.exports = {
  ...koffi,
  errno: () => errno,
  load: () => {
    const library = koffi.load(null);
    return { func: (prototype) => (prototype.startsWith('int ioctl') ? enter : library.func(prototype)) };
  },
};
