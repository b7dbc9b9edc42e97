/** Reads documents as their readers do: what can be clicked, and what can be typed. */
import { glob, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';

export const ROOT = fileURLToPath(new URL('..', import.meta.url));

/** Every document of this checkout, relative to its root. */
export async function documents(): Promise<string[]> {
  const found: string[] = [];
  for (const pattern of ['*.md', 'docs/**/*.md']) {
    for await (const path of glob(pattern, { cwd: ROOT })) found.push(path);
  }
  return found.sort();
}

export async function readDocument(path: string): Promise<string> {
  return readFile(join(ROOT, path), 'utf8');
}

export interface FencedBlock {
  /** Of the opening fence, from 1. */
  line: number;
  language: string;
  text: string;
  /** The heading above it. */
  heading: string;
}

/** The fenced blocks, also those inside lists. Throws where one is not closed. */
export function fencedBlocks(markdown: string): FencedBlock[] {
  const blocks: FencedBlock[] = [];
  let open: (FencedBlock & { indent: number; lines: string[] }) | undefined;
  let heading = '';
  for (const [index, line] of markdown.split('\n').entries()) {
    const fence = /^( *)```(.*)$/.exec(line);
    if (open !== undefined) {
      if (fence?.[2]?.trim() === '') {
        blocks.push({ line: open.line, language: open.language, text: open.lines.join('\n'), heading });
        open = undefined;
      } else open.lines.push(line.slice(Math.min(open.indent, line.search(/\S|$/))));
    } else if (fence !== null) {
      const [, indent = '', language = ''] = fence;
      open = {
        line: index + 1,
        language: language.trim(),
        text: '',
        heading,
        indent: indent.length,
        lines: [],
      };
    } else heading = /^#+ +(.*)$/.exec(line)?.[1] ?? heading;
  }
  if (open !== undefined) throw new Error(`the block that begins in line ${open.line} has no end`);
  return blocks;
}

/**
 * The commands of a piece of shell, as words. Knows quotes, comments, `\` at the end of a line and `&&`; throws for
 * anything else that a shell would act on, as it could not be checked.
 */
export function shellCommands(text: string): string[][] {
  const commands: string[][] = [[]];
  let word: string | undefined;
  const endWord = (): void => {
    if (word !== undefined) commands.at(-1)?.push(word);
    word = undefined;
  };
  for (let at = 0; at < text.length; at += 1) {
    const char = text.charAt(at);
    if (char === '\\') {
      if (text.charAt(at + 1) !== '\n') word = (word ?? '') + text.charAt(at + 1);
      at += 1;
    } else if (char === "'" || char === '"') {
      const end = text.indexOf(char, at + 1);
      const inside = text.slice(at + 1, end);
      if (end < 0) throw new Error(`a quote is not closed: ${text.slice(at)}`);
      if (char === '"' && /[$`\\]/.test(inside)) throw new Error(`cannot check the quoted text ${inside}`);
      word = (word ?? '') + inside;
      at = end;
    } else if (char === '#' && word === undefined) {
      const end = text.indexOf('\n', at);
      // The end of the line ends the command.
      at = end < 0 ? text.length : end - 1;
    } else if (char === '\n' || text.startsWith('&&', at)) {
      endWord();
      commands.push([]);
      if (char === '&') at += 1;
    } else if (char === ' ') endWord();
    else if ('|&;<>$`(){}*?~'.includes(char)) {
      throw new Error(`cannot check what "${char}" does in: ${text.split('\n')[0] ?? ''}`);
    } else word = (word ?? '') + char;
  }
  endWord();
  return commands.filter((words) => words.length > 0);
}

/** Targets of the links in the text, without those in code. */
export function linkTargets(markdown: string): string[] {
  const prose = withoutCode(markdown);
  return Array.from(prose.matchAll(/\]\(([^()\s]+(?:\([^()]*\))?)\)/g), (match) => match[1] ?? '');
}

/** The anchors GitHub gives to a document's headings. */
export function anchors(markdown: string): string[] {
  const seen = new Map<string, number>();
  return Array.from(withoutFences(markdown).matchAll(/^#{1,6} +(.*?) *#*$/gm), ([, title = '']) => {
    const slug = title
      .replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1')
      .toLowerCase()
      .replaceAll(/[^\p{L}\p{N}\p{M}_ -]/gu, '')
      .replaceAll(' ', '-');
    const before = seen.get(slug) ?? 0;
    seen.set(slug, before + 1);
    return before === 0 ? slug : `${slug}-${before}`;
  });
}

function withoutFences(markdown: string): string {
  return markdown.replaceAll(/^( *)```[\s\S]*?^ *``` *$/gm, '');
}

function withoutCode(markdown: string): string {
  return withoutFences(markdown).replaceAll(/`[^`\n]*`/g, '');
}
