export declare function sweepDead(parent: string, pattern: RegExp): void;
export declare function makeScratch(kind: string, parent?: string): string;
