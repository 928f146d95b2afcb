/** Tables of contents of a disc with one session of one data track (MMC-6 §6.26). */

/** Control: data track that may not be copied. */
const DATA_TRACK = 0x14;
const LEAD_OUT = 0xaa;
/** Points of the full table: first track, last track, lead-out. */
const Point = { FirstTrack: 0xa0, LastTrack: 0xa1, LeadOut: 0xa2 } as const;
/** Minutes, seconds and frames begin two seconds before the first sector. */
const PREGAP_FRAMES = 150;
const FRAMES_PER_SECOND = 75;

/** Format 0. @param track to begin with. @returns undefined for a track that there is not. */
export function toc(track: number, isMsf: boolean, sectors: number): Uint8Array | undefined {
  if (track > 1 && track !== LEAD_OUT) return undefined;
  const bytes = [0, 0, 1, 1];
  if (track <= 1) bytes.push(0, DATA_TRACK, 1, 0, ...address(0, isMsf));
  bytes.push(0, DATA_TRACK, LEAD_OUT, 0, ...address(sectors, isMsf));
  return withLength(bytes);
}

/** Format 1. */
export function sessionInfo(): Uint8Array {
  return withLength([0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/** Format 2. */
export function fullToc(isMsf: boolean, sectors: number): Uint8Array {
  const entry = (point: number, ...where: number[]) => [1, DATA_TRACK, 0, point, 0, 0, 0, ...where];
  return withLength([
    0,
    0,
    1,
    1,
    ...entry(Point.FirstTrack, 0, 1, 0, 0),
    ...entry(Point.LastTrack, 0, 1, 0, 0),
    ...entry(Point.LeadOut, ...address(sectors, isMsf)),
    ...entry(1, ...address(0, isMsf)),
  ]);
}

/** Four bytes: zero, minute, second, frame; or an LBA. */
function address(lba: number, isMsf: boolean): number[] {
  if (!isMsf) return [24, 16, 8, 0].map((shift) => (lba >>> shift) & 0xff);
  const frames = lba + PREGAP_FRAMES;
  const seconds = Math.floor(frames / FRAMES_PER_SECOND);
  return [0, Math.floor(seconds / 60) & 0xff, seconds % 60, frames % FRAMES_PER_SECOND];
}

/** The first two bytes count those after them. */
function withLength(bytes: number[]): Uint8Array {
  const out = Uint8Array.from(bytes);
  out[0] = (bytes.length - 2) >> 8;
  out[1] = (bytes.length - 2) & 0xff;
  return out;
}
