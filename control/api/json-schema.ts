/** valibot's schemas as JSON Schema 2020-12, for those kinds that the API has. */
import type * as v from 'valibot';

/** What of a schema is looked at: its kind and what is inside. */
interface Kind {
  readonly kind: string;
  readonly type: string;
  readonly wrapped?: Kind;
  readonly item?: Kind;
  readonly key?: Kind;
  readonly value?: Kind;
  readonly entries?: Readonly<Record<string, Kind>>;
  readonly options?: readonly unknown[];
  readonly literal?: unknown;
  readonly pipe?: readonly Kind[];
  readonly requirement?: unknown;
  readonly description?: string;
  readonly reference?: unknown;
}

/** @throws Error for a kind that is not known here: a mistake of ours, found by the document's test. */
export function jsonSchemaOf(schema: v.GenericSchema): object {
  return convert(schema as unknown as Kind);
}

function convert(schema: Kind): Record<string, unknown> {
  if (schema.pipe !== undefined) return Object.assign({}, ...schema.pipe.map(step));
  switch (schema.type) {
    case 'string':
    case 'number':
    case 'boolean':
      return { type: schema.type };
    case 'optional':
      return convert(schema.wrapped as Kind);
    case 'nullish':
      return { anyOf: [convert(schema.wrapped as Kind), { type: 'null' }] };
    case 'array':
      return { type: 'array', items: convert(schema.item as Kind) };
    case 'record':
      return { type: 'object', additionalProperties: convert(schema.value as Kind) };
    case 'picklist':
      return { enum: [...(schema.options ?? [])] };
    case 'unknown':
      return {};
    case 'object':
    case 'loose_object':
      return objectOf(schema.entries ?? {});
    case 'strict_object':
      return { ...objectOf(schema.entries ?? {}), additionalProperties: false };
    default:
      throw new Error(`no JSON Schema for ${schema.type}`);
  }
}

function step(part: Kind): Record<string, unknown> {
  if (part.kind === 'schema') return convert({ ...part, pipe: undefined } as unknown as Kind);
  switch (part.type) {
    case 'integer':
      return { type: 'integer' };
    case 'min_value':
      return { minimum: part.requirement };
    case 'description':
      return { description: part.description };
    default:
      throw new Error(`no JSON Schema for ${part.type}`);
  }
}

function objectOf(entries: Readonly<Record<string, Kind>>): Record<string, unknown> {
  const required = Object.keys(entries).filter((name) => !['optional', 'nullish'].includes(entries[name]?.type ?? ''));
  return {
    type: 'object',
    ...(required.length === 0 ? {} : { required }),
    properties: Object.fromEntries(Object.entries(entries).map(([name, entry]) => [name, convert(entry)])),
  };
}
