/** @returns names of the chosen directories of `goldenDir`, sorted. */
export function selectCases(goldenDir: string): string[];
