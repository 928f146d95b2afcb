/** "Did you mean": the closest known word to a mistyped one. */

/** Edits that still count as a typing mistake, in a word of more letters, and in a long one. */
const MAX_DISTANCE = 2;
const LONG_WORD = { letters: 10, maxDistance: 3 } as const;

/**
 * The closest of `known`, or undefined if nothing is close: at most two edits (one in a word of up to four letters,
 * three from ten on), or `text` is the beginning of exactly one word.
 */
export function didYouMean(text: string, known: readonly string[]): string | undefined {
  const wanted = text.toLowerCase();
  if (wanted === '' || wanted.length > 64) return undefined;
  const { length } = wanted;
  const limit = length <= 4 ? 1 : length < LONG_WORD.letters ? MAX_DISTANCE : LONG_WORD.maxDistance;
  let best: string | undefined;
  let bestDistance = limit + 1;
  for (const word of known) {
    const distance = editDistance(wanted, word.toLowerCase());
    if (distance < bestDistance) {
      best = word;
      bestDistance = distance;
    }
  }
  if (best !== undefined) return best;
  const longer = known.filter((word) => word.toLowerCase().startsWith(wanted));
  return longer.length === 1 ? longer[0] : undefined;
}

/** Damerau-Levenshtein distance (optimal string alignment): insert, delete, replace, swap neighbours. */
function editDistance(a: string, b: string): number {
  let beforePrevious: number[] = [];
  let previous = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const row = [i];
    for (let j = 1; j <= b.length; j++) {
      const same = a[i - 1] === b[j - 1];
      let cost = Math.min(
        (previous[j] as number) + 1,
        (row[j - 1] as number) + 1,
        (previous[j - 1] as number) + (same ? 0 : 1),
      );
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1]) {
        cost = Math.min(cost, (beforePrevious[j - 2] as number) + 1);
      }
      row.push(cost);
    }
    beforePrevious = previous;
    previous = row;
  }
  return previous[b.length] as number;
}
