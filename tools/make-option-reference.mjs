/**
 * Writes docs/option-reference.md, docs/config.schema.json, docs/acrn-dm.1 and docs/acrn-dm.bash from the option table and the
 * drivers' schemas; docs/acrnvm.1 and docs/acrnvm.bash from the commands of the client.
 */
import './usage.mjs';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { tsImport } from 'tsx/esm/api';
import { root } from './prepare.mjs';

const { optionReference } = await tsImport('../cmd/option-reference.ts', import.meta.url);
const { pciDrivers } = await tsImport('../devicemodel/hw/registry.ts', import.meta.url);
const { configJsonSchema } = await tsImport('../config/config-file.ts', import.meta.url);
writeFileSync(join(root, 'docs/option-reference.md'), optionReference(pciDrivers));
writeFileSync(join(root, 'docs/config.schema.json'), `${JSON.stringify(configJsonSchema(), undefined, 2)}\n`);
const { bashCompletion, clientManPage, manPage } = await tsImport('../cmd/man-page.ts', import.meta.url);
writeFileSync(join(root, 'docs/acrn-dm.1'), manPage(pciDrivers));
writeFileSync(join(root, 'docs/acrn-dm.bash'), bashCompletion(pciDrivers));
const { commands } = await tsImport('../cmd/acrnvm/commands.ts', import.meta.url);
const { completionScript } = await tsImport('../cmd/acrnvm/completion.ts', import.meta.url);
writeFileSync(join(root, 'docs/acrnvm.1'), clientManPage(commands));
writeFileSync(join(root, 'docs/acrnvm.bash'), completionScript('bash', commands));
