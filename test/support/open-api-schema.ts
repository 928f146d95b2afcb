/** The part of OpenAPI 3.0's schemas that the documents in our tests use: what a value violates. */
export interface Schema {
  readonly $ref?: string;
  readonly type?: string;
  readonly enum?: readonly unknown[];
  readonly nullable?: boolean;
  readonly required?: readonly string[];
  readonly properties?: Readonly<Record<string, Schema>>;
  readonly additionalProperties?: Schema | boolean;
  readonly items?: Schema;
}

export interface OpenApiDocument {
  readonly components: { readonly schemas: Readonly<Record<string, Schema>> };
}

const typeOf = (value: unknown): string => {
  if (value === null) return 'null';
  if (Array.isArray(value)) return 'array';
  return Number.isInteger(value) ? 'integer' : typeof value;
};

/** @returns one line for each, with where it is. */
export function violations(document: OpenApiDocument, schema: Schema, value: unknown, where = '$'): string[] {
  const { $ref } = schema;
  if ($ref !== undefined) {
    const named = document.components.schemas[$ref.replace('#/components/schemas/', '')];
    return named === undefined ? [`${where}: no schema ${$ref}`] : violations(document, named, value, where);
  }
  if (value === null && schema.nullable === true) return [];
  const type = typeOf(value);
  if (schema.type !== undefined && schema.type !== type && !(schema.type === 'number' && type === 'integer')) {
    return [`${where}: ${type} instead of ${schema.type}`];
  }
  if (schema.enum !== undefined && !schema.enum.includes(value))
    return [`${where}: ${JSON.stringify(value)} is none of its words`];
  if (Array.isArray(value)) {
    return value.flatMap((item, i) => violations(document, schema.items ?? {}, item, `${where}[${i}]`));
  }
  if (type !== 'object') return [];
  const object = value as Readonly<Record<string, unknown>>;
  const missing = (schema.required ?? []).filter((name) => object[name] === undefined);
  const wrong = Object.entries(object).flatMap(([name, member]) => {
    const more = typeof schema.additionalProperties === 'object' ? schema.additionalProperties : {};
    return violations(document, schema.properties?.[name] ?? more, member, `${where}.${name}`);
  });
  return [...missing.map((name) => `${where}.${name}: is missing`), ...wrong];
}
