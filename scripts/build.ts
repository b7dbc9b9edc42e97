import { spawnSync } from 'node:child_process';
import { mkdir, rename, rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

/**
 * Compiles src/ to dist/ (`npm run build`). The result takes the place of the old one in two renames, since PostgreSQL
 * may run an archive command out of it at any moment; between the two, the launcher finds no build and runs the sources.
 */
const root = fileURLToPath(new URL('..', import.meta.url));
const cache = join(root, 'node_modules', '.cache');
const fresh = join(cache, 'holdfast-build');
const old = join(cache, 'holdfast-build-old');
const dist = join(root, 'dist');

await mkdir(cache, { recursive: true });
await rm(fresh, { recursive: true, force: true });
const compiler = join(root, 'node_modules', 'typescript', 'bin', 'tsc');
const { status } = spawnSync(
  process.execPath,
  [compiler, '-p', join(root, 'tsconfig.build.json'), '--outDir', fresh],
  { stdio: 'inherit' },
);
if (status === 0) {
  await rm(old, { recursive: true, force: true });
  await rename(dist, old).catch((error: unknown) => {
    if (!(error instanceof Error && 'code' in error && error.code === 'ENOENT')) throw error;
  });
  await rename(fresh, dist);
  await rm(old, { recursive: true, force: true });
}
process.exitCode = status ?? 1;
