import { z } from 'zod';

import { errorText } from '../errors.ts';
import { parseDuration } from './durations.ts';
import { parseSize } from './sizes.ts';

/**
 * The whole configuration file. Keys of features that come later are validated too, so that one file serves every
 * version; `docs/configuration.md` says which of them take effect. Values leave here parsed: sizes in bytes, durations
 * in milliseconds. Secrets stay references (`env:NAME`, `file:/path`).
 */

const NAME = /^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$/;

const name = z.string().regex(NAME, {
  error: 'must be a name of letters, digits, "_" and "-", at most 63, beginning with a letter or digit',
});

function parsedBy(parse: (text: string) => number, meaning: string, example: string): z.ZodType<number> {
  return z
    .string({ error: `must be ${meaning}, for example ${example}` })
    .transform((text, context) => {
      try {
        return parse(text);
      } catch (error) {
        context.addIssue({ code: 'custom', message: `${errorText(error)} (for example ${example})` });
        return z.NEVER;
      }
    })
    .meta({ description: `${meaning}, for example ${example}` });
}

const size = parsedBy(parseSize, 'a size with a unit', '16MiB');
const duration = parsedBy(parseDuration, 'a duration with a unit', '5m');
const count = z.int({ error: 'must be a whole number' }).nonnegative({ error: 'must not be negative' });

const SECRET = /^(env:[A-Za-z_][A-Za-z0-9_]*|file:(?!\/\/).+)$/;

const server = z
  .string({ error: 'must be a connection, for example postgres://holdfast@db1/postgres' })
  .superRefine((text, context) => {
    if (SECRET.test(text) || /^postgres(ql)?:\/\//.test(text)) return;
    const path = text.startsWith('/') || text.startsWith('file:') || text.startsWith('~');
    context.addIssue({
      code: 'custom',
      message: path
        ? `"${text}" is a path; Holdfast backs a cluster up over a connection, not from its data directory: write postgres://holdfast@HOST/postgres`
        : 'must be a connection, for example postgres://holdfast@db1/postgres',
    });
  })
  .meta({ description: 'postgres://USER@HOST:PORT/DATABASE, or env:NAME, or file:/path' });

const cluster = z.strictObject({
  servers: z.array(server).min(1, { error: 'must name at least one server' }),
  source: z
    .strictObject({
      prefer: z.enum(['auto', 'standby', 'primary']).default('auto'),
      maxLag: size.prefault('1MiB'),
      maxWait: duration.prefault('5m'),
      fallback: z.enum(['primary', 'fail']).default('primary'),
    })
    .prefault({}),
  wal: z
    .strictObject({
      mode: z.enum(['push', 'stream']).default('push'),
      slot: z
        .string()
        .regex(/^[a-z0-9_]{1,63}$/, { error: 'must be a slot name of lower-case letters, digits and "_"' })
        .default('holdfast'),
      tailInterval: duration.prefault('5s'),
    })
    .prefault({}),
  databases: z
    .strictObject({
      include: z.array(z.string()).default(['*']),
      exclude: z.array(z.string()).default([]),
    })
    .prefault({}),
});

const repositoryUrl = z
  .string({ error: 'must be a URL, for example file:///var/backups/holdfast' })
  .superRefine((text, context) => {
    const reason = /^env:\w+$/.test(text) ? undefined : faultOfRepositoryUrl(text);
    if (reason !== undefined) context.addIssue({ code: 'custom', message: reason });
  })
  .meta({ description: 'file:///absolute/path, s3://BUCKET/PREFIX?region=…, azure://…, gs://…, sftp://…' });

function faultOfRepositoryUrl(text: string): string | undefined {
  if (text.startsWith('/')) return `"${text}" is a path; write file://${text}`;
  const url = URL.parse(text);
  if (url === null) return 'must be a URL, for example file:///var/backups/holdfast';
  if (!['file:', 's3:', 'azure:', 'gs:', 'sftp:'].includes(url.protocol)) {
    return `${url.protocol}// is not a kind of repository; known are file, s3, azure, gs and sftp`;
  }
  if (url.protocol === 'file:' && (url.host !== '' || url.pathname === '/' || url.search !== '')) {
    return 'a file:// repository is an absolute path below /, with three slashes: file:///var/backups/holdfast';
  }
  return undefined;
}

const repository = z.strictObject({
  url: repositoryUrl,
  required: z.boolean().optional(),
  storageClass: z.string().min(1).optional(),
});

const recipient = z
  .string()
  .refine((text) => /^(age1[a-z0-9]{20,}|gpg:.+)$/.test(text) || SECRET.test(text), {
    error: 'must be an age recipient (age1…) or gpg:KEY',
  });

const encryption = z.strictObject({
  recipients: z.array(recipient).default([]),
  identity: z
    .string()
    .min(1)
    .optional()
    .meta({ description: 'path of a file of age identities, or env:NAME' }),
});

const keep = z.strictObject({
  last: count.optional(),
  hourly: count.optional(),
  daily: count.optional(),
  weekly: count.optional(),
  monthly: count.optional(),
  yearly: count.optional(),
});

const retention = z.strictObject({
  dumps: keep.optional(),
  base: keep.optional(),
  wal: duration.optional(),
  minimumBackups: count.optional(),
});

const cron = z.string().refine((text) => text.trim().split(/\s+/).length === 5, {
  error: 'must be five cron fields in quotes, for example "0 2 * * *"',
});

const secretOrUrl = z.string().min(1);

/** The file as it may be written (`z.input`) and as it is used (`z.output`). */
export const configurationSchema = z
  .strictObject({
    clusters: z.record(name, cluster).refine((all) => Object.keys(all).length > 0, {
      error: 'must name at least one cluster',
    }),
    repositories: z.record(name, repository).refine((all) => Object.keys(all).length > 0, {
      error: 'must name at least one repository',
    }),
    encryption: encryption.prefault({}),
    retention: z.record(name, retention).default({}),
    schedule: z
      .strictObject({
        dump: cron.optional(),
        base: cron.optional(),
        sync: cron.optional(),
        verify: cron.optional(),
        expire: cron.optional(),
        drill: cron.optional(),
      })
      .prefault({}),
    drill: z
      .strictObject({
        assertions: z
          .array(z.strictObject({ database: z.string().min(1), sql: z.string().min(1) }))
          .default([]),
      })
      .prefault({}),
    state: z
      .string()
      .refine((path) => path.startsWith('/'), { error: 'must be an absolute path' })
      .optional(),
    alerts: z
      .strictObject({
        mail: z
          .strictObject({ smtp: secretOrUrl, from: z.string().optional(), to: z.array(z.string()).min(1) })
          .optional(),
        slack: z.strictObject({ webhook: secretOrUrl }).optional(),
        deadMan: secretOrUrl.optional(),
      })
      .prefault({}),
  })
  .superRefine((file, context) => {
    for (const repositoryName of Object.keys(file.retention)) {
      if (repositoryName in file.repositories) continue;
      context.addIssue({
        code: 'custom',
        path: ['retention', repositoryName],
        message: `names no repository; there are ${Object.keys(file.repositories).join(', ')}`,
      });
    }
  });

export type ConfigurationFile = z.output<typeof configurationSchema>;
export type ClusterConfiguration = ConfigurationFile['clusters'][string];
