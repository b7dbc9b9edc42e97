import { HoldfastError } from '../errors.ts';

const UNITS: Readonly<Record<string, number>> = {
  B: 1,
  kB: 1024,
  KB: 1024,
  KiB: 1024,
  MB: 1024 ** 2,
  MiB: 1024 ** 2,
  GB: 1024 ** 3,
  GiB: 1024 ** 3,
  TB: 1024 ** 4,
  TiB: 1024 ** 4,
};

/**
 * Bytes of `1MiB`, `16 MB`, `512kB` or a bare number of bytes. As in PostgreSQL's own settings every unit is a power of
 * 1024 (manual, "Setting Parameters"). Throws `config-invalid` for anything else, and above 2^53 bytes.
 */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)\s*([A-Za-z]+)?$/.exec(text.trim());
  const unit = match === null ? undefined : UNITS[match[2] ?? 'B'];
  const bytes = match === null || unit === undefined ? Number.NaN : Number(match[1]) * unit;
  if (!Number.isSafeInteger(bytes)) {
    throw new HoldfastError('config-invalid', `'${text}' is not a size`, {
      hint: 'write a whole number of bytes with a unit, for example 512kB, 16MiB or 2GiB',
    });
  }
  return bytes;
}

const STEPS = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'] as const;

/** `1.4 GiB`: three digits at most, for people. Scripts get bytes. */
export function formatSize(bytes: number): string {
  let value = bytes;
  let step = 0;
  while (Math.abs(value) >= 1024 && step < STEPS.length - 1) {
    value /= 1024;
    step += 1;
  }
  const digits = step === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits)} ${STEPS[step] ?? 'B'}`;
}
