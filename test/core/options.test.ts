/** How the text behind a device's name becomes the options of its schema. */
import * as v from 'valibot';
import { expect, test } from 'vitest';
import { integer, optionsFromText, optionWords } from '../../devicemodel/core/options.ts';

const schema = v.strictObject({
  path: v.optional(v.string()),
  sectorSize: v.optional(v.pipe(integer(), v.metadata({ arg: 'sectorsize=BYTES', named: true }))),
  ro: v.optional(v.pipe(v.boolean(), v.metadata({ named: true }))),
});

// Mutation: look for the key alone, and `sectorsize=512` is an unknown option, although help shows it.
test('an option is taken by the word that help shows, whatever its key is', () => {
  expect(optionWords(schema)).toEqual(['sectorsize', 'ro']);
  expect(optionsFromText(schema, 'disk.img,ro,sectorsize=512')).toEqual({
    path: 'disk.img',
    ro: true,
    sectorSize: '512',
  });
});

test('its key is understood, too', () => {
  expect(optionsFromText(schema, 'sectorSize=512')).toEqual({ sectorSize: '512' });
});

test('what is no option is positional while there is room', () => {
  expect(optionsFromText(schema, 'sector=512')).toEqual({ path: 'sector=512' });
  expect(() => optionsFromText(schema, 'a,b')).toThrow('unknown option "b"');
});
