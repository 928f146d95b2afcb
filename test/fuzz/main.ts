/**
 * npm run fuzz [-- --seed N --steps N --device NAME --coverage FOLDER]
 * npm run fuzz -- --device faults [--seed N --minutes M --from N --only TEXT]
 *
 * Devices: `platform` is the whole PC board on a made-up hypervisor; `ahci` the SATA controller with its drives; `xhci` the
 * USB controller; any other name is the beginning of the names of virtio devices (`virtio-blk`, `virtio-net-modern`, `gpu`,
 * …). Without one: all virtio devices. `faults` is about the host: each
 * call that the program makes fails (faults.ts), for M minutes or until all of them did; `--from` goes on where a run with
 * the same seed was ended.
 * The same seed does the same again; without one the clock gives it. With `--coverage` the end of the run tells how much
 * of the files in FOLDER it reached, `devicemodel/hw/pci` for one.
 */
import { parseArgs } from 'node:util';
import { Coverage } from './coverage.ts';

const { values } = parseArgs({
  options: {
    seed: { type: 'string' },
    steps: { type: 'string' },
    device: { type: 'string' },
    coverage: { type: 'string' },
    minutes: { type: 'string' },
    from: { type: 'string' },
    only: { type: 'string' },
  },
});
const seed = values.seed === undefined ? Date.now() >>> 0 : Number(values.seed);
const steps = Number(values.steps ?? 1_000_000);
const coverage = values.coverage === undefined ? undefined : new Coverage();
await coverage?.start();
// Not before: what runs while modules are loaded counts, too.
const { fuzzVirtio } = await import('./virtio.ts');
const { fuzzPlatform } = await import('./platform.ts');
const { fuzzAhci } = await import('./ahci.ts');
const { fuzzFaults } = await import('./faults.ts');
const { fuzzXhci } = await import('./xhci.ts');
const minutes = values.minutes === undefined ? undefined : Number(values.minutes);
const startMs = performance.now();
try {
  const result =
    values.device === 'faults'
      ? await fuzzFaults({ seed, minutes, from: Number(values.from ?? 0), only: values.only })
      : values.device === 'platform'
        ? await fuzzPlatform(seed, steps)
        : values.device === 'ahci'
          ? await fuzzAhci(seed, steps)
          : values.device === 'xhci'
            ? await fuzzXhci(seed, steps)
            : await fuzzVirtio(seed, steps, values.device);
  const seconds = (performance.now() - startMs) / 1000;
  const facts = Object.entries(result).map(([what, count]) => `${count} ${what}`);
  console.log(`fuzz: seed ${seed}, ${facts.join(', ')}, ${seconds.toFixed(0)} s`);
} catch (error) {
  console.error(error);
  process.exitCode = 1;
}
for (const { file, share, missed } of (await coverage?.stop(values.coverage ?? '')) ?? []) {
  console.log(
    `${(100 * share).toFixed(1).padStart(5)} %  ${file}${missed.length > 0 ? `: not ${missed.join(', ')}` : ''}`,
  );
}
