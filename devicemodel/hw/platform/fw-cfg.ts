/** `--fw_cfg [opt/NAME,string=TEXT|file=PATH]`: QEMU's firmware configuration device. ACRN has none. */
import * as v from 'valibot';
import { ConfigError, DmError } from '../../core/errors.ts';
import { definePlatformDriver } from './driver.ts';
import { contentOf, FwCfgFile } from './fw-cfg/file.ts';

/** A name and its end have 56 bytes. */
const MAX_NAME_BYTES = 55;
const MAX_FILES = 64;
const USAGE = '[opt/NAME,string=TEXT|file=PATH]';

export const FwCfgOptions = v.strictObject({
  files: v.pipe(
    v.array(FwCfgFile),
    v.maxLength(MAX_FILES, `at most ${MAX_FILES} files are possible`),
    v.metadata({ arg: USAGE, help: 'a file for the guest, by its text or from one of this machine; may be repeated' }),
  ),
});

/** As QEMU's -fw_cfg, `name=` in front or not; nothing: the device without files of the user's. */
function parseText(text: string): Record<string, unknown> {
  if (text === '') return { files: [] };
  const match = /^(?:name=)?(pci[0-9a-f]{4},[0-9a-f]{4}\.rom|[^,]*),(string|file)=(.*)$/s.exec(text);
  const hint = 'write opt/NAME,string=TEXT or opt/NAME,file=PATH';
  if (match === null) throw new ConfigError(`"${text}" is no file for the guest`, { hint });
  const [, name = '', from, value = ''] = match;
  // Other names are the device's own, as with QEMU. SeaBIOS runs what it finds in vgaroms/, and pciVVVV,DDDD.rom as the
  // expansion ROM of a function with these ids: only then a VGA BIOS knows where its frame buffer is.
  if (!/^((opt|vgaroms)\/.|pci.{9}\.rom$)/.test(name))
    throw new ConfigError(`the name "${name}" does not begin with opt/`, { hint });
  if (!/^[\x21-\x7e]+$/.test(name) || name.length > MAX_NAME_BYTES) {
    throw new ConfigError(`the name "${name}" is longer than ${MAX_NAME_BYTES} characters, or not plain ASCII`);
  }
  if (value === '' && from === 'file') throw new ConfigError(`"${text}" names no file`, { hint });
  return { files: [{ name, from, value }] };
}

export const fwCfg = definePlatformDriver({
  name: 'fw_cfg',
  group: 'Devices',
  arg: USAGE,
  summary: "QEMU's firmware configuration device, with files for the guest",
  options: FwCfgOptions,
  argPattern: /^(name=|opt\/|[^-].*,(string|file)=)/,
  isList: true,
  parseText,
  merge: (earlier, added) => {
    const again = added.files.find((file) => earlier.files.some(({ name }) => name === file.name));
    if (again !== undefined) throw new ConfigError(`${again.name} is given twice`);
    return { files: [...earlier.files, ...added.files] };
  },
  inspectHost: ({ files }) => {
    try {
      for (const file of files) contentOf(file);
    } catch (error) {
      if (!(error instanceof DmError)) throw error;
      throw new ConfigError(error.message, { exitCode: error.exitCode, cause: error });
    }
  },
  create: async ({ files }, env) => new (await import('./fw-cfg/device.ts')).FwCfg(files, env),
});
