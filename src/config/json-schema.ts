import { z } from 'zod';

import { configurationSchema } from './schema.ts';

/** The JSON Schema of the configuration file, for editors; published as `docs/holdfast.schema.json`. */
export function configurationJsonSchema(): Record<string, unknown> {
  const schema = z.toJSONSchema(configurationSchema, { io: 'input', target: 'draft-2020-12' });
  return { ...schema, title: 'holdfast.yaml', description: 'Configuration of Holdfast' };
}
