/** What the API takes and answers: requests are checked by these, and the OpenAPI document is made of them. */
import * as v from 'valibot';
import { LogLevel, type LogLevelName } from '../../devicemodel/core/log.ts';

const text = v.string();
const whole = v.pipe(v.number(), v.integer());
const described = (description: string) => v.pipe(v.string(), v.description(description));

export const powerActions = ['shutdown', 'off', 'reset', 'wake', 'button'] as const;
export const logLevels = Object.keys(LogLevel) as LogLevelName[];

/** Bodies of requests. */
export const Take = {
  power: v.strictObject({ action: v.picklist(powerActions), force: v.optional(v.boolean()) }),
  medium: v.strictObject({ path: described('PATH[,OPTIONS]') }),
  size: v.strictObject({ sizeBytes: v.optional(v.pipe(v.number(), v.integer(), v.minValue(1))) }),
  link: v.strictObject({ up: v.boolean() }),
  logLevel: v.strictObject({
    level: v.picklist(logLevels),
    sink: v.optional(v.picklist(['console', 'kmsg', 'disk'])),
  }),
  // Of Cloud Hypervisor's dialect.
  device: v.object({ id: text }),
  diskSize: v.object({ id: text, desired_size: whole }),
} as const;

const logLine = v.object({ seq: whole, time: text, level: v.picklist(logLevels), message: text });
const counters = v.looseObject({ kind: text, id: text });
const sample = v.object({
  suffix: v.optional(text),
  labels: v.optional(v.record(v.string(), v.string())),
  value: v.number(),
});

/** Bodies of answers. */
export const Give = {
  vm: v.object({
    state: text,
    pid: whole,
    version: text,
    events: whole,
    name: v.optional(text),
    hypervisor: v.optional(text),
    memoryBytes: v.optional(v.number()),
    uptimeS: v.optional(v.number()),
  }),
  devices: v.array(v.object({ slot: text, driver: text, options: text })),
  consoles: v.array(v.object({ id: text, backend: text })),
  counters: v.array(counters),
  size: v.object({ sizeBytes: v.number() }),
  events: v.array(v.object({ seq: whole, time: text, source: text, event: text, data: v.optional(v.looseObject({})) })),
  metrics: v.array(
    v.object({
      name: text,
      type: v.picklist(['gauge', 'counter', 'histogram']),
      help: text,
      samples: v.array(sample),
    }),
  ),
  log: v.object({ levels: v.array(v.object({ sink: text, level: whole })), lines: v.array(logLine) }),
  crash: v.object({
    cause: v.picklist(['triple-fault', 'watchdog']),
    time: text,
    name: text,
    hypervisor: text,
    uptimeS: v.number(),
    memoryBytes: v.number(),
    vcpus: v.array(text),
    consoles: v.record(v.string(), v.string()),
    counters: v.array(counters),
    log: v.array(v.object({ time: text, level: v.picklist(logLevels), message: text })),
  }),
  // Of Cloud Hypervisor's dialect.
  ping: v.object({ build_version: text, version: text, pid: whole, features: v.array(text) }),
  info: v.looseObject({
    config: v.looseObject({}),
    state: v.picklist(['Created', 'Running', 'Paused', 'Shutdown']),
    memory_actual_size: v.optional(v.number()),
  }),
  deviceCounters: v.record(v.string(), v.record(v.string(), v.number())),
  device: v.object({ id: text, bdf: text }),
} as const;
