/** The thread finds a device's half by the name of its folder: no list has to be kept. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { repository } from '../../../../support/program.ts';

const virtio = join(repository, 'devicemodel/hw/pci/virtio');
const folders = readdirSync(virtio).filter((folder) => existsSync(join(virtio, folder, 'server.ts')));

test.each(folders)('%s: its service is called as its folder, and its server.ts exports the server', async (folder) => {
  const path = join(virtio, folder, 'server.ts');
  const module: { readonly server?: unknown } = await import(path);
  expect(typeof module.server).toBe('function');
  expect(readFileSync(path, 'utf8')).toContain(`readonly kind: '${folder}';`);
});

test('there are some', () => {
  expect(folders).toEqual(expect.arrayContaining(['block', 'net']));
});
