import { writeFile } from 'node:fs/promises';

import { configurationJsonSchema } from '../src/config/json-schema.ts';

/** Writes docs/holdfast.schema.json out of the schema the program itself uses: `npm run schema`. */
const target = new URL('../docs/holdfast.schema.json', import.meta.url);
await writeFile(target, `${JSON.stringify(configurationJsonSchema(), null, 2)}\n`);
