import { z } from 'zod';

import { nearestKey } from './nearest-key.ts';
import { configurationSchema } from './schema.ts';

export interface Finding {
  /** Where in the file, for the line number. */
  path: readonly (string | number)[];
  message: string;
  /** What to write instead, where that is clear. */
  suggestion?: string;
}

interface SchemaNode {
  properties?: Record<string, SchemaNode>;
  additionalProperties?: SchemaNode | boolean;
  items?: SchemaNode;
}

/** Puts what the schema found wrong into the words of the file: dotted paths and, for an unknown key, the nearest known one. */
export function explainIssues(issues: readonly z.core.$ZodIssue[]): Finding[] {
  return issues.flatMap((issue): Finding[] => {
    const path = issue.path.map((part) => (typeof part === 'symbol' ? String(part) : part));
    if (issue.code === 'unrecognized_keys') {
      return issue.keys.map((key) => unknownKey(path, key));
    }
    if (issue.code === 'invalid_key') {
      const [reason] = issue.issues;
      return [{ path, message: `${dotted(path)} ${reason?.message ?? 'is not a possible name'}` }];
    }
    const where = path.length === 0 ? 'the file' : dotted(path);
    if (issue.code === 'invalid_value') {
      const values = issue.values.map(String);
      return [{ path, message: `${where} must be one of ${values.join(', ')}` }];
    }
    if (issue.code === 'invalid_type' && issue.message.startsWith('Invalid input')) {
      const missing = issue.input === undefined && issue.message.endsWith('received undefined');
      const kind = KINDS[issue.expected] ?? issue.expected;
      return [{ path, message: missing ? `${where} is missing` : `${where} must be ${kind}` }];
    }
    return [{ path, message: `${where} ${lowerFirst(issue.message)}` }];
  });
}

const KINDS: Readonly<Record<string, string>> = {
  object: 'a mapping (key: value)',
  record: 'a mapping (name: …)',
  array: 'a list',
  string: 'a text',
  boolean: 'true or false',
};

function unknownKey(path: readonly (string | number)[], key: string): Finding {
  const known = knownKeys(path);
  const near = nearestKey(key, known);
  const where = [...path, key];
  return {
    path: where,
    message: `${dotted(where)} is not a known key`,
    suggestion: near === undefined ? `known here: ${known.join(', ')}` : `did you mean "${near}"?`,
  };
}

function knownKeys(path: readonly (string | number)[]): string[] {
  let node: SchemaNode | undefined = z.toJSONSchema(configurationSchema, { io: 'input' }) as SchemaNode;
  for (const part of path) {
    if (typeof part === 'number') node = node?.items;
    else {
      const own: SchemaNode | undefined = node?.properties?.[part];
      const others: SchemaNode | boolean | undefined = node?.additionalProperties;
      node = own ?? (typeof others === 'object' ? others : undefined);
    }
  }
  return Object.keys(node?.properties ?? {});
}

function dotted(path: readonly (string | number)[]): string {
  return path
    .map((part, at) => (typeof part === 'number' ? `[${part}]` : at === 0 ? part : `.${part}`))
    .join('');
}

function lowerFirst(text: string): string {
  return text.charAt(0).toLowerCase() + text.slice(1);
}
