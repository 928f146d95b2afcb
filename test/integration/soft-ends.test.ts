/**
 * How a guest ends, on the software CPU: what it asked for takes effect at the instruction that asked, whatever comes
 * behind it, and what it printed before is out. Each guest is a few instructions in a Multiboot image.
 */
import { readFileSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { afterEach, describe, expect, test } from 'vitest';
import { ExitCode } from '../../devicemodel/core/errors.ts';
import { Log, LogLevel, type LogSink } from '../../devicemodel/core/log.ts';
import { type LaunchConfig, type LaunchedVm, launch } from '../../library/index.ts';
import { file, temporaryDirectory } from '../support/images.ts';
import { Program, whyNoSoftHypervisor } from '../support/program.ts';
import { until } from '../support/pty.ts';
import { asm, dword } from '../support/soft-vm.ts';

const BASE = 0x10_0000;
const HEADER_BYTES = 32;

/** A Multiboot image with address fields; the code begins right behind the header. */
function image(code: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(HEADER_BYTES + code.length);
  const view = new DataView(bytes.buffer);
  const [magic, flags] = [0x1bad_b002, 0x1_0002];
  const words = [magic, flags, -(magic + flags), BASE, BASE, 0, 0, BASE + HEADER_BYTES];
  for (const [i, word] of words.entries()) view.setUint32(4 * i, word, true);
  bytes.set(code, HEADER_BYTES);
  return bytes;
}

const running: LaunchedVm[] = [];
afterEach(async () => {
  for (const vm of running.splice(0)) {
    vm.ask('power-off', { reason: 'the test is over' });
    await vm.ended;
  }
});

async function start(code: readonly number[], more: Partial<LaunchConfig> = {}) {
  const lines: string[] = [];
  const sink: LogSink = { maxLevel: LogLevel.info, write: (_level, line) => void lines.push(line) };
  const elf = file(temporaryDirectory(), 'guest', image(code));
  const vm = await launch(
    { name: `ends${process.pid}`, hypervisor: 'soft', memory: '128M', elf, ...more },
    { log: new Log([sink]) },
  );
  running.push(vm);
  let text = '';
  vm.on('console', (data: Uint8Array) => {
    text += Buffer.from(data).toString('latin1');
  });
  return { vm, lines, text: () => text };
}

const print = (text: string) => [...Buffer.from(text)].flatMap((byte) => [...asm.movAl(byte), ...asm.outAl(0x3f8)]);
/** Sleep type 5 and SLP_EN into PM1a control. */
const powerOff = [...asm.movEax(0x3400), 0x66, 0xba, 0x04, 0x04, 0x66, 0xef];
const resetBy = (port: number, value: number) => [...asm.movAl(value), ...asm.outAl(port)];
const halt = [...asm.cli, ...asm.hlt, ...asm.jump(-3)];
/** `loop` so many times: about as long as a guest that tries the next way of rebooting. */
const delay = [0xb9, ...dword(30_000), 0xe2, 0xfe];
/** lidt of a table without entries; int3. */
const tripleFault = [0x0f, 0x01, 0x1d, ...dword(0x9000), 0xcc];
const spin = asm.jump(-2);

test.skipIf(whyNoSoftHypervisor() !== undefined)(
  '--crash-dump: what is known of a guest after a triple fault',
  async () => {
    const folder = temporaryDirectory();
    const dump = join(folder, 'crash.json');
    const elf = file(folder, 'guest', image([...print('last words'), ...tripleFault]));
    const options = ['--hypervisor', 'soft', '-m', '128M', '-s', '0:0,hostbridge', '-s', '1:0,lpc', '-l', 'com1,stdio'];
    const program = new Program([...options, '--elf_file', elf, '--crash-dump', dump, `crash${process.pid}`]);
    const { code, stderr } = await program.exited;
    expect([code, stderr]).toEqual([ExitCode.TripleFault, expect.stringContaining(dump)]);
    expect(statSync(dump).mode & 0o777).toBe(0o600);
    expect(JSON.parse(readFileSync(dump, 'utf8'))).toMatchObject({
      cause: 'triple-fault',
      name: `crash${process.pid}`,
      hypervisor: 'soft',
      vcpus: [expect.stringContaining('cs:eip 0008:0010')],
      consoles: { com1: 'last words' },
      counters: expect.arrayContaining([expect.objectContaining({ kind: 'console', id: 'com1', outBytes: 10 })]),
      log: expect.arrayContaining([
        expect.objectContaining({ level: 'error', message: expect.stringContaining('triple fault') }),
      ]),
    });
  },
);

describe.skipIf(whyNoSoftHypervisor() !== undefined)('a guest of a few instructions', () => {
  // Without #hasServed in soft-engine.ts nothing comes out while the guest sleeps for good.
  test.each([
    ['halts with interrupts off', halt],
    ['spins', spin],
    ['halts with interrupts on and no timer', [...asm.sti, ...asm.hlt, ...asm.jump(-3)]],
  ])('prints and %s: it is seen', async (_, after) => {
    const { text } = await start([...print('HELLO BEFORE'), ...after]);
    await until(() => text() === 'HELLO BEFORE', 'the text');
  });

  test.each([
    ['halts', halt],
    ['spins', spin],
    ['goes on printing', [...print('after'), ...halt]],
    ['resets', [...resetBy(0xcf9, 0x0e), ...halt]],
    ['shuts down by a triple fault', [...delay, ...tripleFault]],
  ])('asks for power-off, then %s: it is powered off, by itself', async (_, after) => {
    const { vm, text } = await start([...print('B'), ...powerOff, ...after]);
    expect(await vm.ended).toMatchObject({ kind: 'poweroff', by: 'guest' });
    expect(text()).toBe('B');
  });

  // Without holdCompletions for every event the guest runs on into its triple fault.
  test.each([
    ['full reset (CF9 0xe)', resetBy(0xcf9, 0x0e), halt],
    ['full reset (CF9 0xe)', resetBy(0xcf9, 0x0e), [...delay, ...tripleFault]],
    ['system reset (CF9 6)', resetBy(0xcf9, 6), halt],
    ['system reset (CF9 6)', resetBy(0xcf9, 6), [...delay, ...tripleFault]],
    ['reset by the keyboard controller', resetBy(0x64, 0xfe), halt],
    ['reset by the keyboard controller', resetBy(0x64, 0xfe), [...delay, ...tripleFault]],
  ])('asks for a %s, whatever is behind it: it begins again', async (_, ask, after) => {
    const { vm, text } = await start([...print('B'), ...ask, ...after]);
    await until(() => text().length >= 3, 'three beginnings');
    expect(text()).toMatch(/^B+$/);
    vm.ask('power-off', { reason: 'seen' });
    expect(await vm.ended).toMatchObject({ reason: 'seen' });
  });

  test.each([
    ['at once', tripleFault],
    ['after output', [...print('x'), ...tripleFault]],
    ['in a loop of its own', [...delay, ...delay, ...tripleFault]],
  ])('a triple fault %s says so, with the registers', async (_, code) => {
    const { vm, lines } = await start(code);
    const crashes: unknown[] = [];
    vm.on('crash', (crash) => void crashes.push(crash));
    expect(await vm.ended).toMatchObject({ kind: 'poweroff', by: 'triple-fault', reason: 'triple fault' });
    expect(crashes).toEqual([
      { cause: 'triple-fault', vcpus: [expect.stringMatching(/cs:eip 0008:0010[0-9a-f]{4} eax [0-9a-f]{8}/)] },
    ]);
    expect(lines.join('\n')).toMatch(/triple fault on vCPU 0: cs:eip 0008:0010[0-9a-f]{4} eax [0-9a-f]{8}/);
  });
});
