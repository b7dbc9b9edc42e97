import { HoldfastError } from '../errors.ts';

/**
 * Text of PostgreSQL's configuration files (manual, "Setting Parameters via the Configuration File"): lines of
 * `name = value`, names in any case, the last one of a name wins. Everything here is pure.
 */

/** A value as it must be written: in quotes, quotes doubled, backslashes escaped. Line breaks cannot be written at all. */
export function quoteSetting(value: string): string {
  if (/[\n\r\0]/.test(value)) {
    throw new HoldfastError('usage-invalid', `a setting cannot hold a line break: ${JSON.stringify(value)}`);
  }
  return `'${value.replaceAll('\\', '\\\\').replaceAll("'", "''")}'`;
}

export function settingLine(name: string, value: string): string {
  return `${name} = ${quoteSetting(value)}\n`;
}

/** A word for the shell that PostgreSQL runs `restore_command` with. Percent signs are doubled: PostgreSQL expands `%f`. */
export function quoteShellWord(word: string): string {
  const doubled = word.replaceAll('%', '%%');
  return /^[A-Za-z0-9_%+,./:=@-]+$/.test(doubled) ? doubled : `'${doubled.replaceAll("'", `'\\''`)}'`;
}

const LINE = /^[ \t]*([A-Za-z_][A-Za-z0-9_$.]*)[ \t]*(?:=|[ \t])[ \t]*(.*)$/;

/** The settings of a file, the last of each name; values without quotes and comments. Includes are not followed. */
export function readSettings(text: string): Map<string, string> {
  const found = new Map<string, string>();
  for (const line of text.split(/\r?\n/)) {
    const match = LINE.exec(line);
    if (match?.[1] === undefined) continue;
    found.set(match[1].toLowerCase(), plainValue(match[2] ?? ''));
  }
  return found;
}

function plainValue(text: string): string {
  const quoted = /^'((?:[^'\\]|''|\\.)*)'/.exec(text);
  if (quoted?.[1] !== undefined) return quoted[1].replaceAll("''", "'").replaceAll(/\\(.)/g, '$1');
  return text.replace(/\s*#.*$/, '').trim();
}

/** Whether other files are read in, whose settings are not seen here. */
export function hasIncludes(text: string): boolean {
  return /^[ \t]*include(_dir|_if_exists)?[ \t=]/im.test(text);
}

/** Turns lines of certain settings into comments that say why. */
export function commentOut(
  text: string,
  applies: (name: string, value: string) => boolean,
  why: string,
): { text: string; names: string[] } {
  const names: string[] = [];
  const lines = text.split('\n').map((line) => {
    const match = LINE.exec(line);
    const name = match?.[1]?.toLowerCase();
    if (name === undefined || !applies(name, plainValue(match?.[2] ?? ''))) return line;
    names.push(name);
    return `# ${why}: ${line.trim()}`;
  });
  return { text: lines.join('\n'), names };
}
