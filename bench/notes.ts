import type { GoalId } from './goals.ts';

/** Why a goal was missed, and what would change that: printed below the verdicts for as long as it is missed. */
export const notes: Partial<Record<GoalId, string>> = {
  'first-wall':
    'Both tools are bound by the two cores here, and one of them is busy with the server process that sends the backup, ' +
    'which pgBackRest does not need: it reads the files itself. Holdfast also decompresses and compares every frame ' +
    "before it is stored, and checks every file against PostgreSQL's manifest. About a third of its processor time is " +
    'compression, an eighth the comparison, a sixth the garbage of compression buffers. A source that reads files beside ' +
    'the server, and a compressor that keeps its context from frame to frame, would change that.',
  'same-wall':
    'PostgreSQL sends a base backup as one stream of about 1 GiB/s on this machine, and reading it is nearly all that a ' +
    'backup of an unchanged cluster does: see pg_basebackup into nothing, the floor for this way of reading. Only ' +
    'another source, which reads files in parallel, can be faster.',
  'changed-wall':
    'The floor is the same stream as for an unchanged cluster; compressing and comparing what changed comes on top, ' +
    'for two cores that the server shares.',
  'changed-bytes':
    'Random updates touch many blocks a little. Blocks of 8 KiB would store less (see the sweep), for maps of twice the ' +
    'size and more processor time in every backup.',
  'restore-wall':
    'One thread checks the hash of every block and writes most of them; after 20,000 transactions they lie scattered over ' +
    'the frames of two backups. Every frame is decompressed into memory of its own, which the collector has to free again: ' +
    'in user mode that and the hashing are most of what a restore costs, where pgBackRest runs two processes without a ' +
    'collector. Workers that decompress, check and write for themselves, into memory they keep, would change that.',
};
