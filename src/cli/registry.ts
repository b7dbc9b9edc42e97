import type { CommandSpec } from './command.ts';

interface Entry {
  name: string;
  load: () => Promise<CommandSpec>;
}

/** Every command, in the order of help. A run loads the one it needs. */
export const COMMANDS: readonly Entry[] = [
  { name: 'init', load: async () => (await import('./commands/init.ts')).init },
  { name: 'check', load: async () => (await import('./commands/check.ts')).check },
  { name: 'wal release', load: async () => (await import('./commands/wal-release.ts')).walRelease },
  { name: 'backup base', load: async () => (await import('./commands/backup-base.ts')).backupBase },
  { name: 'wal receive', load: async () => (await import('./commands/wal-receive.ts')).walReceive },
  { name: 'list', load: async () => (await import('./commands/list.ts')).list },
  { name: 'show', load: async () => (await import('./commands/show.ts')).show },
  { name: 'window', load: async () => (await import('./commands/window.ts')).window },
  { name: 'wal status', load: async () => (await import('./commands/wal-status.ts')).walStatus },
  { name: 'restore base', load: async () => (await import('./commands/restore-base.ts')).restoreBase },
  { name: 'wal push', load: async () => (await import('./commands/wal-push.ts')).walPush },
  { name: 'wal catch-up', load: async () => (await import('./commands/wal-catch-up.ts')).walCatchUp },
  { name: 'wal fetch', load: async () => (await import('./commands/wal-fetch.ts')).walFetch },
  {
    name: 'wal prefetch',
    load: async () => (await import('./commands/wal-prefetch.ts')).walPrefetch,
  },
  { name: 'demo', load: async () => (await import('./commands/demo.ts')).demo },
];

export async function loadAll(): Promise<CommandSpec[]> {
  return Promise.all(COMMANDS.map(async (command) => command.load()));
}
