/**
 * Types every command of README.md and docs/ as it stands there, in order, into one small world, with the documents'
 * placeholders replaced by that world's values. What a document shows must work; what is shown and has no entry in the
 * tables below fails.
 */
import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';

import { DocumentStage, type Ended, npmScripts, type Story } from '../harness/document-stage.ts';
import { documents, type FencedBlock, fencedBlocks, readDocument, ROOT, shellCommands } from '../markdown.ts';

let stage: DocumentStage;
before(async () => {
  stage = await DocumentStage.create();
});
after(async () => {
  await stage[Symbol.asyncDispose]();
});

/** Placeholders of the documents, and what they stand for here. The first that fits is replaced; longest first. */
function placeholders(story: Story | undefined): [string, string][] {
  const { scratch, socketDir, binaries } = stage.cluster;
  return [
    ['/var/lib/postgresql/restored', stage.restored],
    ['/var/run/postgresql', socketDir],
    ['/var/backups/holdfast', `${scratch}/backups/holdfast`],
    ['/var/lib/holdfast', `${scratch}/state of a host`],
    ['/etc/holdfast', stage.etc],
    ['/usr/lib/postgresql/15/bin', binaries.directory],
    ['/tmp/holdfast-unMXXs', stage.copySockets],
    ['/mnt/fast', `${scratch}/fast`],
    ['/tmp', `${scratch}/tmp`],
    ['2026-02-03 14:29:59+01', story?.time ?? ''],
    ['pg_wal/000000010000000000000003', `pg_wal/${stage.segmentOnDisk()}`],
    ['000000010000000000000003', story?.segment ?? ''],
  ];
}

/** Commands that are not run: what they do lies outside of this project, and nothing here depends on it. */
const NOT_OURS = new Set(['sudo', 'install', 'ln', 'age-keygen']);

/** Options whose value is a name that differs here. */
const VALUES: Record<string, () => string> = {
  '--backup': () => stage.newestBackup(),
  '--port': () => String(stage.port),
  '--owner': () => stage.userName,
};

function translated(words: readonly string[]): string[] {
  const table = placeholders(stage.story);
  return words.map((word, index) => {
    const value = VALUES[words[index - 1] ?? ''];
    if (value !== undefined) return value();
    if (/^\d{8}T\d{6}Z-[0-9a-f]{4}$/.test(word)) return stage.newestBackup();
    const pattern = table.map(([from]) => from.replaceAll(/[+.]/g, String.raw`\$&`)).join('|');
    const mapped = word.replaceAll(new RegExp(pattern, 'g'), (from) => {
      const to = table.find(([known]) => known === from)?.[1] ?? '';
      assert.notEqual(to, '', `nothing stands for ${from} here yet`);
      return word.includes('://') ? encodeURI(to) : to;
    });
    const unknown = /(?:^|=)(\/[a-z][^\s=]*)/.exec(word)?.[1];
    assert.ok(
      unknown === undefined || table.some(([from]) => unknown.startsWith(from)),
      `${unknown ?? ''} stands for nothing here: add it to the placeholders`,
    );
    return mapped;
  });
}

/** Types one command. Throws where it does not end as a reader may expect. */
async function type(words: readonly string[], { heading }: FencedBlock, document: string): Promise<void> {
  const [program = '', ...rest] = words;
  if (NOT_OURS.has(program)) return;
  if (program === 'npm') return npm(rest);
  if (program === 'systemctl') return service(rest);
  if (program === 'holdfast') return holdfast(rest, heading, document);
  const name = /^(?:\/usr\/lib\/postgresql\/15\/bin\/)?(psql|pg_\w+)$/.exec(program)?.[1];
  assert.ok(name !== undefined, `nobody knows what to do with "${program}": add it to the tables`);
  // Of those that are missing here, nothing more can be said.
  const ended = stage.program(name, translated(rest));
  if (ended !== undefined) assert.equal(ended.status, 0, ended.stderr);
  if (name === 'pg_ctl' && rest.includes('stop')) {
    await stage.forgetSockets();
    if (heading === 'Take over') await stage.takeOver();
  }
}

/** The units that documents speak of. */
async function service(words: readonly string[]): Promise<void> {
  const unit = words.at(-1);
  const verb = words.slice(0, -1).join(' ');
  if (unit === 'postgresql' && verb === 'restart') return stage.restart();
  assert.equal(unit, 'holdfast-receive-app', words.join(' '));
  if (verb === 'stop' || verb === 'disable --now') return stage.endReceiver();
  assert.match(verb, /^(start|restart|enable --now)$/);
  return stage.receive(['wal', 'receive', 'app']);
}

async function npm(words: readonly string[]): Promise<void> {
  const [verb = '', script = verb] = words;
  if (verb === 'ci') return;
  assert.ok(verb === 'run' || verb === 'test', `"npm ${words.join(' ')}" is not ours`);
  assert.ok((await npmScripts(ROOT)).includes(script), `package.json has no script "${script}"`);
}

async function holdfast(words: readonly string[], heading: string, document: string): Promise<void> {
  const [verb = ''] = words;
  if (verb === 'demo') return;
  if (verb === 'wal' && words[1] === 'receive') return stage.receive(translated(words));
  const restores = verb === 'restore';
  if (restores || (verb === 'wal' && words[1] === 'fetch')) await stage.tell();
  if (restores) await stage.clearRestored(words.includes('--delta'));
  const spaces = words.includes('--tablespace-mapping');
  if (spaces) await withTablespace();
  if (words.includes('--adopt')) {
    await stage.tell();
    // So that it is still on the disk.
    await stage.archive();
  }
  const push = verb === 'wal' && words[1] === 'push';
  const ended = stage.holdfast(await adopting(translated(words)), {
    ...(push && { directory: stage.dataDirectory }),
    asOurselves: heading === 'As root',
  });
  // At the end of "init" stands a check, and a server that is not set up yet fails it.
  const expected = verb === 'init' && ended.status === 3 ? 3 : 0;
  assert.equal(ended.status, expected, `${document}, "${heading}": ${said(ended)}`);
  if (verb === 'init') await stage.takeUpSetup(ended.stderr);
  if (restores) {
    const connect = /^Connect +psql -h (\S+) -p/m.exec(ended.stdout);
    stage.copySockets = connect?.[1] ?? '';
    assert.equal(connect !== null, words.includes('--start') && !words.includes('--stop-after'), said(ended));
  }
  if (spaces) await withoutTablespace();
}

function said({ stdout, stderr }: Ended): string {
  return `${stderr}\n${stdout}`;
}

async function withTablespace(): Promise<void> {
  const location = `${stage.cluster.scratch}/fast`;
  await stage.cluster.sql(`CREATE TABLESPACE fast LOCATION '${location}'`);
  await stage.cluster.sql('CREATE TABLE in_fast TABLESPACE fast AS SELECT 1 AS one');
  assert.equal(stage.holdfast(['backup', 'base', 'app']).status, 0);
}

async function withoutTablespace(): Promise<void> {
  await stage.cluster.sql('DROP TABLE in_fast');
  await stage.cluster.sql('DROP TABLESPACE fast');
  assert.equal(stage.holdfast(['backup', 'base', 'app']).status, 0);
}

/** The number of a server that is to be adopted is that of the server itself. */
async function adopting(words: string[]): Promise<string[]> {
  const at = words.indexOf('--adopt') + 1;
  if (at === 0) return words;
  const [row] = await stage.cluster.sql<{ id: string }>(
    'SELECT system_identifier::text AS id FROM pg_control_system()',
  );
  return words.with(at, row?.id ?? '');
}

/** Commands of a block: shell, or a crontab's lines without their times. */
function commandsOf(block: FencedBlock, document: string): string[][] {
  const where = `${document}:${block.line}`;
  switch (block.language) {
    case 'sh':
      return shellCommands(block.text);
    case 'crontab':
      return shellCommands(block.text.replaceAll(/^(\S+ ){5}/gm, ''));
    default:
      assert.ok(
        !/^(\S+ \S+ \S+ \S+ \S+ )?(holdfast|npm) /m.test(block.text),
        `${where} shows commands: make it an "sh" block, so that they are tried`,
      );
      return [];
  }
}

test('every command of README.md and docs/ works as it stands there', async (t) => {
  const others = (await documents()).filter((path) => path.startsWith('docs/') && path !== SETUP);
  let typed = 0;
  // The first two set up what the others start from.
  for (const document of ['README.md', SETUP, ...others]) {
    await t.test(document, async () => {
      for (const block of fencedBlocks(await readDocument(document))) {
        for (const words of commandsOf(block, document)) {
          typed += 1;
          try {
            await type(words, block, document);
          } catch (error) {
            const line = `${document}:${block.line}: ${words.join(' ')}`;
            throw new Error(`${line}\n${error instanceof Error ? error.message : String(error)}`, {
              cause: error,
            });
          }
        }
      }
    });
  }
  assert.ok(typed > 30, 'commands are found at all');
});

const SETUP = 'docs/setup.md';

test('a command with a misspelt option, an unknown script or an unknown placeholder is at fault', async () => {
  const block = { line: 1, language: 'sh', text: '', heading: '' };
  for (const bad of [
    'holdfast window app --repositori local',
    'holdfast windows app',
    'holdfast backup base ap',
    'npm run nothing',
    'holdfast list --config /srv/holdfast.yaml',
    'frobnicate',
  ]) {
    const [words = []] = shellCommands(bad);
    await assert.rejects(() => type(words, block, 'x.md'), bad);
  }
  assert.throws(() => commandsOf({ ...block, language: '', text: 'holdfast list' }, 'x.md'), /"sh" block/);
});
