import { existsSync, mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { ExitCode } from '../../../devicemodel/core/errors.ts';
import { ensureOwnFolder, FolderMode, makeParents } from '../../../devicemodel/core/host/folders.ts';

/** Of calls by this name the next one fails. */
const failing = vi.hoisted(() => new Set<string>());
vi.mock(import('node:fs'), async (importOriginal) => {
  const fs = await importOriginal();
  const refusing = (name: 'chownSync' | 'chmodSync') => {
    const call = fs[name] as (...args: unknown[]) => void;
    return (...args: unknown[]) => {
      if (failing.delete(name)) throw Object.assign(new Error(name), { code: 'EPERM', errno: -1, syscall: name });
      call(...args);
    };
  };
  return { ...fs, chownSync: refusing('chownSync'), chmodSync: refusing('chmodSync') };
});

const root = mkdtempSync(join(tmpdir(), 'folders-'));
beforeEach(() => failing.clear());
afterAll(() => rmSync(root, { recursive: true, force: true }));

describe('a folder whose group or mode the host refuses', () => {
  const group = process.getegid?.() ?? 0;
  const refused = expect.objectContaining({ exitCode: ExitCode.CannotCreate });

  test.each(['chownSync', 'chmodSync'])('is not left to the next VM: %s', (call) => {
    const path = join(root, call);
    failing.add(call);
    expect(() => ensureOwnFolder(path, FolderMode.group, group)).toThrow(refused);
    expect(existsSync(path)).toBe(false);
    ensureOwnFolder(path, FolderMode.group, group);
    expect(statSync(path).mode & 0o777).toBe(FolderMode.group);
  });

  test.each(['chownSync', 'chmodSync'])('nor is a parent that was missing: %s', (call) => {
    failing.add(call);
    expect(() => makeParents(join(root, `above-${call}/monitor`), group)).toThrow(refused);
    expect(existsSync(join(root, `above-${call}`))).toBe(false);
  });
});
