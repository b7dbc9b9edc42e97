import { stringify } from 'yaml';

/** What `init` writes a configuration from. */
export interface InitAnswers {
  cluster: string;
  servers: readonly string[];
  /** How WAL arrives. */
  wal: 'push' | 'stream';
  repositories: readonly { name: string; url: string }[];
  recipients: readonly string[];
  /** Path of the identity file, on hosts that restore. */
  identity?: string;
  state?: string;
}

/** The text of a new configuration: what was answered, and a word on what was not. */
export function configurationText(answers: InitAnswers): string {
  const { cluster, servers, wal, repositories, recipients, identity, state } = answers;
  const sections = [
    '# Configuration of Holdfast. docs/configuration.md describes every key.',
    block({ clusters: { [cluster]: { servers: [...servers], wal: { mode: wal } } } }),
    block({ repositories: Object.fromEntries(repositories.map(({ name, url }) => [name, { url }])) }),
    recipients.length === 0
      ? '# Backups are stored in clear. To seal them, make a key pair with age-keygen and name its public key:\n# encryption:\n#   recipients: [age1…]'
      : block({
          encryption: { recipients: [...recipients], ...(identity !== undefined && { identity }) },
        }),
  ];
  if (state !== undefined) sections.push(block({ state }));
  return `${sections.join('\n\n')}\n`;
}

function block(value: object): string {
  return stringify(value, { lineWidth: 0 }).trimEnd();
}
