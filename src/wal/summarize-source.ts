import { createWalSummarizer, type WalSummary } from '../postgres/wal-summary.ts';
import type { WalSource } from './wal-source.ts';

/** What a segment or partial segment holds; undefined for other files. Never throws for what the bytes hold. */
export async function summarizeSource(source: WalSource): Promise<WalSummary | undefined> {
  const { file, header } = source;
  if (header === undefined) return undefined;
  const summarizer = createWalSummarizer({
    start: header.pageAddress,
    segmentSize: header.segmentSize,
    timeline: file.timeline,
    systemIdentifier: header.systemIdentifier,
    partial: file.kind === 'partial',
  });
  for await (const piece of source.pieces()) summarizer.push(piece);
  return summarizer.finish();
}
