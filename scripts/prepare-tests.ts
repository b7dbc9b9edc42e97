import { spawnSync } from 'node:child_process';
import { existsSync, globSync } from 'node:fs';
import { delimiter, join } from 'node:path';

/**
 * Brings what the tests want beyond npm's packages: as root on Debian by apt-get, otherwise it says in a line what is
 * missing and what that leaves out. Never fails: the tests themselves tell.
 */
interface Need {
  packages: string[];
  what: string;
  present: () => boolean;
  leavesOut: string;
}

const NEEDS: Need[] = [
  {
    packages: ['postgresql-15'],
    what: "PostgreSQL's own tools",
    present: () => globSync('/usr/lib/postgresql/*/bin/pg_amcheck').length > 0 || onPath('pg_amcheck'),
    leavesOut: 'comparisons with pg_dump, pg_amcheck, pg_waldump and pg_verifybackup',
  },
  {
    packages: ['age'],
    what: 'the age program',
    present: () => onPath('age'),
    leavesOut: 'the proof that sealed objects open with stock age',
  },
  {
    packages: ['zstd'],
    what: 'the zstd program',
    present: () => onPath('zstd'),
    leavesOut: 'the proof that stored objects open with stock zstd',
  },
];

const missing = NEEDS.filter((need) => !need.present());
if (missing.length > 0 && process.getuid?.() === 0 && onPath('apt-get')) install(missing);
for (const need of NEEDS.filter((need) => !need.present())) {
  console.error(
    `prepare-tests: ${need.what} (${need.packages.join(', ')}) missing; left out: ${need.leavesOut}`,
  );
}

function install(needs: Need[]): void {
  const packages = needs.flatMap((need) => need.packages);
  console.error(`prepare-tests: apt-get install ${packages.join(' ')}`);
  if (aptGet(['install', ...packages])) return;
  // The package lists of a fresh machine are empty or old.
  aptGet(['update']);
  for (const need of needs) aptGet(['install', ...need.packages]);
}

function aptGet(words: string[]): boolean {
  const options = ['-y', '-q', '--no-install-recommends', '-o', 'DPkg::Lock::Timeout=120'];
  const { status } = spawnSync('apt-get', [...options, ...words], {
    stdio: ['ignore', 'ignore', 'inherit'],
    timeout: 600_000,
    env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
  });
  return status === 0;
}

function onPath(program: string): boolean {
  return (process.env['PATH'] ?? '').split(delimiter).some((folder) => existsSync(join(folder, program)));
}
