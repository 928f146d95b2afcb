export interface Contract {
  readonly contract: string;
  readonly owner: string;
  readonly mutation: string;
  readonly file: string;
  readonly from: string;
  readonly to: string;
  readonly test: string;
}
export declare const contracts: readonly Contract[];
