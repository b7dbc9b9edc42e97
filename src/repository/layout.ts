import { HoldfastError } from '../errors.ts';

/** Where things lie in a repository, format 1. `docs/repository-format.md` is the specification. */
export const FORMAT_VERSION = 1;

export const MARKER_KEY = 'holdfast.json';

const CLUSTER_NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/;

/** A cluster name is a folder in every repository, so it is kept to letters, digits, `_` and `-`. */
export function isClusterName(text: string): boolean {
  return CLUSTER_NAME.test(text);
}

/** One history of one cluster: its name *and* its system identifier, so that two histories never mix. */
export interface ClusterIdentity {
  cluster: string;
  systemIdentifier: string;
}

export const CLUSTERS_PREFIX = 'clusters/';

export function clusterPrefix(identity: ClusterIdentity): string {
  if (!isClusterName(identity.cluster)) {
    throw new HoldfastError('usage-invalid', `"${identity.cluster}" is not a cluster name`, {
      hint: 'use letters, digits, "_" and "-", at most 63, beginning with a letter or digit',
    });
  }
  return `${CLUSTERS_PREFIX}${identity.cluster}/${identity.systemIdentifier}/`;
}

export function recordsPrefix(identity: ClusterIdentity): string {
  return `${clusterPrefix(identity)}base/`;
}

export function recordKey(identity: ClusterIdentity, backupId: string): string {
  return `${recordsPrefix(identity)}${backupId}.json`;
}

/** Everything one run of `backup base` writes lies here, except the record that commits it. */
export function runPrefix(identity: ClusterIdentity, backupId: string): string {
  return `${clusterPrefix(identity)}data/${backupId}/`;
}

/** `kind` b: packs of blocks, m: packs of block maps. Without the sealer's suffix. */
export function packKey(
  identity: ClusterIdentity,
  backupId: string,
  kind: 'b' | 'm',
  number: number,
): string {
  return `${runPrefix(identity, backupId)}${kind}${String(number).padStart(6, '0')}.pack`;
}

export function walPrefix(identity: ClusterIdentity): string {
  return `${clusterPrefix(identity)}wal/`;
}

/** Timeline as 8 hexadecimal digits. */
export function walTimelinePrefix(identity: ClusterIdentity, timeline: string): string {
  return `${walPrefix(identity)}${timeline}/`;
}

/** The folder of a WAL file: characters 8..16 of its name; history files have their own. */
function walFolder(name: string): string {
  return name.endsWith('.history') ? 'history' : name.slice(8, 16);
}

export function walHeaderKey(identity: ClusterIdentity, name: string): string {
  return `${walPrefix(identity)}${name.slice(0, 8)}/${walFolder(name)}/${name}.json`;
}

export function walDataPrefix(identity: ClusterIdentity): string {
  return `${clusterPrefix(identity)}wal-data/`;
}

export function walDataKey(identity: ClusterIdentity, name: string, hash: string, attempt: string): string {
  return `${walDataPrefix(identity)}${name.slice(0, 8)}/${walFolder(name)}/${name}-${hash.slice(0, 16)}-${attempt}.zst`;
}

/** Pieces of the segment that a timeline is writing now. */
export function walTailPrefix(identity: ClusterIdentity): string {
  return `${clusterPrefix(identity)}wal-tail/`;
}

export function walTailTimelinePrefix(identity: ClusterIdentity, timeline: string): string {
  return `${walTailPrefix(identity)}${timeline}/`;
}

/** Everything stored of one segment's tail begins so. */
export function walTailSegmentPrefix(identity: ClusterIdentity, segment: string): string {
  return `${walTailTimelinePrefix(identity, segment.slice(0, 8))}${walFolder(segment)}/${segment}-`;
}

export function walGapPrefix(identity: ClusterIdentity): string {
  return `${clusterPrefix(identity)}wal-gap/`;
}
