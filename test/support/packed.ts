/** The package as a user installs it. */
import { execFileSync } from 'node:child_process';
import { cpSync, existsSync, mkdirSync, readFileSync, symlinkSync } from 'node:fs';
import { join } from 'node:path';
import { repository } from './program.ts';

interface Manifest {
  readonly dependencies?: Record<string, string>;
  readonly optionalDependencies?: Record<string, string>;
}

export interface Installed {
  /** What `npm install` would put there. */
  readonly packages: readonly string[];
  /** The package's own folder. */
  readonly path: string;
}

/**
 * Packs what was built and puts it in `folder` with the packages it names, those that they name, and nothing else: what
 * `npm install` does, without a registry. v86 is only linked to.
 */
export function installPacked(folder: string): Installed {
  const options = ['--ignore-scripts', '--json', '--pack-destination', folder];
  const packed = execFileSync('npm', ['pack', ...options], { cwd: repository, encoding: 'utf8', stdio: 'pipe' });
  const [{ filename }] = JSON.parse(packed) as [{ filename: string }];
  const path = join(folder, 'node_modules/acrn-dm');
  mkdirSync(path, { recursive: true });
  execFileSync('tar', ['-xzf', join(folder, filename), '--strip-components=1', '-C', path]);
  const packages = ['acrn-dm'];
  for (const name of packages) {
    const { dependencies, optionalDependencies } = manifest(join(folder, 'node_modules', name));
    for (const needed of Object.keys({ ...dependencies, ...optionalDependencies })) {
      const from = join(repository, 'node_modules', needed);
      // Optional ones are there for this platform only.
      if (packages.includes(needed) || !existsSync(from)) continue;
      const to = join(folder, 'node_modules', needed);
      mkdirSync(join(to, '..'), { recursive: true });
      if (needed === 'v86') symlinkSync(from, to);
      else cpSync(from, to, { recursive: true });
      if (needed !== 'v86') packages.push(needed);
    }
  }
  return { packages, path };
}

function manifest(path: string): Manifest {
  return JSON.parse(readFileSync(join(path, 'package.json'), 'utf8')) as Manifest;
}
