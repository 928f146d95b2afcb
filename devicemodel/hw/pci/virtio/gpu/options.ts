/** Options of virtio-gpu. */
import * as v from 'valibot';
import { ConfigError } from '../../../../core/errors.ts';
import { UnknownOption } from '../../../../core/options.ts';
import { describePciDriver } from '../../driver.ts';

/** As the C device model: what is given is brought into these bounds. */
const MIN = { width: 640, height: 480 } as const;
const MAX = { width: 1920, height: 1080 } as const;
const DEFAULT = { width: 1024, height: 768 } as const;
const MAX_SCREENS = 2;

const screen = v.strictObject({
  width: v.pipe(v.number(), v.integer()),
  height: v.pipe(v.number(), v.integer()),
  /** Where its window is, if there is one. */
  x: v.number(),
  y: v.number(),
  /** What was written, where that is another size or none. */
  asked: v.optional(v.string()),
  isFullscreen: v.boolean(),
});
export type GpuScreen = v.InferOutput<typeof screen>;

export const GpuOptions = v.strictObject({
  screens: v.pipe(
    v.array(screen),
    v.metadata({
      arg: 'geometry=WxH[+X+Y]|geometry=fullscreen',
      help: 'a screen of 640x480 to 1920x1080; a second geometry= is a second one',
    }),
  ),
  blob: v.optional(
    v.pipe(
      v.picklist(['auto', 'on', 'off']),
      v.metadata({
        arg: 'blob=auto|on|off',
        help: 'show guest memory without a copy; auto: where the host has udmabuf, as with C',
        named: true,
      }),
    ),
    'auto',
  ),
});

/** @throws ConfigError */
export function parseGpuText(text: string): Record<string, unknown> {
  const screens: GpuScreen[] = [];
  const others: Record<string, unknown> = {};
  // Compat: nothing between two commas, or behind the last, is passed over.
  for (const word of text.split(',').filter((word) => word !== '')) {
    const [, name = '', value = ''] = /^([^=]*)=?(.*)$/.exec(word) ?? [];
    if (name.toLowerCase() === 'geometry') screens.push(parseGeometry(value));
    else if (name === 'blob') others['blob'] = value;
    else throw new UnknownOption(word, 'virtio-gpu', ['geometry', 'blob']);
  }
  if (screens.length > MAX_SCREENS)
    throw new ConfigError(`virtio-gpu: at most ${MAX_SCREENS} screens, ${screens.length} are given`);
  // Compat: C dies without options.
  if (screens.length === 0) throw new ConfigError('virtio-gpu: which screen?', { hint: 'geometry=1024x768' });
  return { screens, ...others };
}

/** Compat: of what is no size C takes the part that it understands; so does this program, with a warning. */
function parseGeometry(value: string): GpuScreen {
  const [, afterFullscreen] = /^fullscreen(.*)$/i.exec(value) ?? [];
  if (afterFullscreen !== undefined) {
    const monitor = Number(/^:(\d+)/.exec(afterFullscreen)?.[1] ?? 0);
    // The pictures are not on a monitor of this host: there is one, of the largest size. C refuses those it has not.
    if (monitor > 0) {
      throw new ConfigError(`virtio-gpu: geometry=${value}: there is no monitor ${monitor}`, {
        hint: 'the screen is shown by --display: geometry=fullscreen, or a size',
      });
    }
    return { ...MAX, x: 0, y: 0, ...(/^(:0)?$/.test(afterFullscreen) ? {} : { asked: value }), isFullscreen: true };
  }
  const [read = '', width = '0', height = '0', x = '0', y = '0'] =
    /^(-?\d{1,9})x(-?\d{1,9})(?:\+(-?\d{1,9})(?:\+(-?\d{1,9}))?)?/.exec(value) ?? [];
  // Compat: a side of 0 makes it the default, everything else is brought into the bounds.
  const size =
    Number(width) === 0 || Number(height) === 0
      ? DEFAULT
      : { width: bounded(Number(width), 'width'), height: bounded(Number(height), 'height') };
  const isAsWritten = read === value && size.width === Number(width) && size.height === Number(height);
  return { ...size, ...(isAsWritten ? {} : { asked: value }), x: Number(x), y: Number(y), isFullscreen: false };
}

function bounded(value: number, side: 'width' | 'height'): number {
  return Math.max(MIN[side], Math.min(MAX[side], value));
}

export const gpuInfo = describePciDriver({
  name: 'virtio-gpu',
  summary: 'screens, with a VGA for firmware',
  options: GpuOptions,
  parseText: parseGpuText,
  passedOver: ({ screens }) =>
    screens.flatMap(({ asked, width, height }) =>
      asked === undefined ? [] : [`geometry=${asked} cannot be: the screen has ${width}x${height}`],
    ),
  isSingle: true,
});
