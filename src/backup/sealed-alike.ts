import type { BackupRecord } from '../repository/backup-record.ts';

/**
 * A backup may only refer to packs that everybody can open who can open the backup itself, and never to clear ones when it
 * is sealed. What holds for the earlier backup holds for the packs it refers to, as it was compared by the same rule.
 */
export function isSealedAlike(
  earlier: BackupRecord['seal'],
  now: { kind: BackupRecord['seal']['kind']; recipients: readonly string[] },
): boolean {
  return (
    earlier.kind === now.kind && now.recipients.every((recipient) => earlier.recipients.includes(recipient))
  );
}
