/** What the benches of WAL print, as far as the page shows it. */
export interface StreamResult {
  machine: string[];
  postgresql: string;
  throughput: {
    what: string;
    segmentsPerSecond: { sealed: number; unsealed: number; pgbackrest: number };
    ratioSealed: number;
    ratioUnsealed: number;
    versions: { holdfast: string; pgbackrest: string };
    turns: {
      contender: string;
      segmentsPerSecond: number;
      storedBytesPerSegment: number;
      peakBytes?: number;
    }[];
  }[];
  memory: { what: string; peakBytes: number; slopeBytesPerSegment: number };
}

export interface PushResult {
  what: string;
  segmentsPerSecond: { holdfast: number; pgbackrest: number };
  ratio: number;
  turns: { tool: string; segmentsPerSecond: number }[];
}

export interface FetchResult {
  segments: number;
  wallMs: { holdfast: number[]; pgbackrest: number[] };
  ratio: number;
}

interface Ages {
  p50: number;
  p99: number;
  max: number;
}

export interface LossResult {
  what: string;
  ageSeconds: Ages;
  ageSecondsFullLoad: Ages;
  ageSecondsHeldLoad: Ages;
  lostReported: number;
  restores: number;
  restoresWrong: number;
  trials: unknown[];
}

export interface WalReport {
  date: string;
  stream: StreamResult;
  push: PushResult;
  fetch: FetchResult;
  loss: LossResult;
}
