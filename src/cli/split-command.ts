/** Options that take the next word, and may stand before a command's name. */
const VALUE_OPTIONS = new Set(['--config', '--cluster']);

/**
 * Finds the command among words: its name is the first one or two words that are not options, wherever the options
 * stand. `name` is what was found, or the words that name nothing.
 */
export function splitCommand(
  words: readonly string[],
  names: readonly string[],
): { name: string; rest: string[] } {
  const at: number[] = [];
  for (let index = 0; index < words.length && at.length < 2; index += 1) {
    const word = words[index] ?? '';
    if (word === '--') break;
    if (VALUE_OPTIONS.has(word)) index += 1;
    else if (!word.startsWith('-')) at.push(index);
  }
  const spoken = at.map((index) => words[index] ?? '');
  for (const length of [2, 1]) {
    const name = spoken.slice(0, length).join(' ');
    if (spoken.length >= length && names.includes(name)) {
      const used = new Set(at.slice(0, length));
      return { name, rest: words.filter((_, index) => !used.has(index)) };
    }
  }
  return { name: spoken.join(' '), rest: words.filter((_, index) => !at.includes(index)) };
}
