/**
 * The id of a new backup: the time in UTC, and a random part that keeps two hosts apart. Ids of one cluster always rise:
 * where the clock stands behind the newest id (it was set back, another host's is ahead) that id's time plus a second is
 * taken.
 */
export function makeBackupId(now: Date, newestId: string | undefined, random: Buffer): string {
  const last = newestId === undefined ? undefined : timeOfBackupId(newestId);
  const time =
    last === undefined || now.getTime() >= last.getTime() + 1000 ? now : new Date(last.getTime() + 1000);
  const text = time
    .toISOString()
    .replace(/\.\d+Z$/, 'Z')
    .replace(/[-:]/g, '');
  return `${text}-${random.toString('hex', 0, 2)}`;
}

const ID = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z-[0-9a-f]{4}$/;

/** The time in a backup id; undefined where the text is none. */
export function timeOfBackupId(id: string): Date | undefined {
  const parts = ID.exec(id);
  if (parts === null) return undefined;
  const [, year, month, day, hour, minute, second] = parts;
  const time = new Date(`${year}-${month}-${day}T${hour}:${minute}:${second}Z`);
  return Number.isNaN(time.getTime()) ? undefined : time;
}
